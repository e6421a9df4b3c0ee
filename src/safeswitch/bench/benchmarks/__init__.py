"""Benchmarks, one small file each; the docstring is the card: source, licence, revision, rows,
label, known noise."""
