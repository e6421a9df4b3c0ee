"""Intervals, bootstrap, paired tests and figures of probers. Knows nothing of where numbers come
from."""
