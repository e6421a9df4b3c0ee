"""The switch inside stock vLLM: a model class, a logits processor, a worker extension and a guarded
front end."""
