"""Shared frozen vocabulary, error tree, registry and artefact format. Knows nothing of torch
models."""
