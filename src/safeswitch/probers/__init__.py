"""Probers: fit on hidden states and labels, score in [0, 1]. Know nothing of where states come from."""
