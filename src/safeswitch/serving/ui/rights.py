"""Who may see what of the page. Knows nothing of what is on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from safeswitch.data.reviews import VERDICTS
from safeswitch.serving.errors import ApiError
from safeswitch.serving.keys import Key
from safeswitch.serving.settings import ServerSettings

PAGE = "/ui"
API = "/ui/api/"
STATIC = Path(__file__).parent / "static"
FILES = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}
"""The page's files by address below ``/ui/``; there are no others."""
OPEN = frozenset({PAGE, f"{PAGE}/", *(f"{PAGE}/{name}" for name in FILES)})
"""Answered without a key, to ``GET`` and ``HEAD``: the page itself, which asks for the key."""
READS = ("GET", "HEAD")
"""Methods by which the page's files are asked for."""
HASH = "[0-9a-f]{64}"
"""Pattern of a text's SHA-256 in an address."""
BUNDLE = "[0-9a-f]{16}"
"""Pattern of a switch's fingerprint there."""
_VERDICT = re.compile(rf"{re.escape(API)}verdicts/{BUNDLE}/{HASH}/({'|'.join(VERDICTS)})")
VISITOR = "safeswitch.visitor"
"""Where in an ASGI scope the :class:`Visitor` of a request stands."""


def is_listed(method: str, path: str) -> bool:
    """Whether the page answers a request: to everything else at ``/ui`` it says that it is not
    there."""
    if method in READS and path in OPEN:
        return True
    if method == "GET":
        return path in (f"{API}about", f"{API}traffic")
    if method == "POST":
        return path == f"{API}chat"
    return method == "PUT" and _VERDICT.fullmatch(path) is not None


@dataclass(frozen=True)
class Visitor:
    """What a client may have of the page.

    Args:
        name: Of its key.
        policies: Policies that it may ask for.
        bundles: Bundles that it may ask for.
        bundle: Bundle that it gets without asking; None leaves it the server's default.
        records: Whether it may read what the audit holds of all clients.
        texts: Whether it may read the requests' text there.
    """

    name: str | None
    policies: tuple[str, ...]
    bundles: tuple[str, ...]
    bundle: str | None
    records: bool
    texts: bool


def visitor_of(key: Key | None, settings: ServerSettings) -> Visitor:
    """What the holder of ``key`` may have; without keys, everybody.

    Raises:
        ApiError: 403, a client that may not see scores: the page shows little else.
    """
    if key is None:
        if not settings.clients_scores:
            raise ApiError(
                403,
                "the page shows scores, which clients of this server may not see "
                "(safeswitch serve --clients-scores)",
                "permission_error",
            )
        return Visitor(
            None, settings.clients_may, settings.clients_bundles, None, True, settings.ui_pilot_text
        )
    if not (key.scores or key.admin):
        raise ApiError(
            403,
            "the page is for keys with the right to see scores (safeswitch keys add --scores)",
            "permission_error",
        )
    default = key.bundles[0] if key.bundles else None
    return Visitor(key.name, key.may, key.bundles, default, key.admin, key.admin)
