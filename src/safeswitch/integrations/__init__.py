"""Guard objects for frameworks that take one: each module imports its framework when it is used."""
