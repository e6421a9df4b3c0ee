"""Names for plain JSON in annotations: what a file, a request or a reply holds before it is
checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""An object that is being made; its values are plain JSON."""
JsonMapping: TypeAlias = Mapping[str, Any]
"""An object that is read and not changed."""
