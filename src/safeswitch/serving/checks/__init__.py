"""Score only: routes on which a request is read and not answered, the same for both engines."""
