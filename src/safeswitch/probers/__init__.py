"""Probers: fit on hidden states and labels, score in [0, 1]. Know nothing of where states come
from.

Every file here is found by itself: a prober registers under its kind
(:data:`safeswitch.probers.base.PROBERS`).
"""
