"""``safeswitch version`` and ``safeswitch --version``."""

from __future__ import annotations

from importlib import metadata

from safeswitch._version import __version__
from safeswitch.cli.screen import put


def version() -> None:
    """Print the versions of the library and of what it stands on."""
    beneath = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers")]
    put(f"safeswitch {__version__}, {', '.join(beneath)}")
