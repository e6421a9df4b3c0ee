"""Recording hidden states at chosen layers and positions. Knows nothing of labels."""
