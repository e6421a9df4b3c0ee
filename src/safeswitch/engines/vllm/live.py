"""Guarded models of this process, for those that vLLM makes without telling them which model they serve."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

LIVE: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""By ``instance_id`` of the engine's configuration."""
