"""``safeswitch doctor``: what of an installation is wrong, and what to do about it."""
