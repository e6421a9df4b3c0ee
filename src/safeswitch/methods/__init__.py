"""Published methods, one small file each: from a model and data to a Switch. They never reach for
an engine."""

from safeswitch.methods.resolve import resolve

__all__ = ["resolve"]
