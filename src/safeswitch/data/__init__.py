"""Prompt schema, readers, splits, leakage checks. Knows nothing of models."""
