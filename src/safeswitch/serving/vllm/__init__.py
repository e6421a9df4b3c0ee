"""vLLM's own OpenAI server with the guard in it: an allow-list over its interface, and what puts
the guard there."""
