"""The guarded OpenAI-compatible server on the transformers engine."""
