"""Tasks that ship with the package, as lm-evaluation-harness finds them in a folder."""
