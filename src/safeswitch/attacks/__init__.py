"""Published attacks on the user's own model, to measure a defence with. Content-free: they reshape
requests, no more."""
