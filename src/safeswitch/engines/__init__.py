"""Engines run a switch on prompts. They know nothing of methods, labels or reports."""
