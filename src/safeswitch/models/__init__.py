"""Loading models, finding their parts, chat templates. Knows nothing of what is read from them."""
