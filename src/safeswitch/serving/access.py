"""Who is let in: API keys, rate limits, caps on concurrency."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from limits import RateLimitItem, parse_many
from limits.aio.strategies import MovingWindowRateLimiter
from limits.storage import storage_from_string

from safeswitch.core.errors import ArtifactError
from safeswitch.serving.errors import ApiError
from safeswitch.serving.keys import Key, hash_of, read_keys

OPEN_PATHS = ("/health", "/ping")
"""Answered without a key: what probes ask for."""


class Access:
    """The door.

    Args:
        keys: File of keys; it is read again when it has changed.
        storage: Where ``limits`` counts: ``async+memory://`` for each process on its own,
            ``async+redis://...`` for all.

    Raises:
        ArtifactError: no file of keys.
    """

    def __init__(self, keys: Path, storage: str) -> None:
        self._path = keys
        self._limiter = MovingWindowRateLimiter(storage_from_string(storage))
        self._running: Counter[str] = Counter()
        self._seen: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._read()

    def _read(self) -> None:
        found = self._path.stat() if self._path.exists() else None
        seen = (found.st_mtime_ns, found.st_ino) if found else None
        if seen is None or seen != self._seen:
            self._seen, self._keys = None, read_keys(self._path)
            self._seen = seen

    def key(self, headers: Iterable[tuple[bytes, bytes]]) -> Key:
        """The client that sent these headers: ``Authorization: Bearer``, or ``X-Api-Key`` as
        Anthropic's clients do.

        Raises:
            ApiError: 401 without a known key; 503 while the file of keys cannot be read.
        """
        try:
            self._read()
        except ArtifactError as error:
            raise ApiError(503, "keys cannot be checked at the moment", "server_error") from error
        key = self._keys.get(hash_of(_secret(dict(reversed(list(headers))))))
        if key is None:
            raise ApiError(
                401, "a known API key is needed: Authorization: Bearer ...", code="invalid_api_key"
            )
        return key

    @asynccontextmanager
    async def admitted(self, key: Key) -> AsyncIterator[None]:
        """One request of ``key``, from here to the end of its reply.

        Raises:
            ApiError: 429, too many at one time or in a time.
        """
        if key.concurrent and self._running[key.name] >= key.concurrent:
            raise ApiError(
                429,
                f"{key.concurrent} requests at one time are allowed",
                "rate_limit_error",
                code="concurrency_exceeded",
                retry_after=1,
            )
        self._running[key.name] += 1
        try:
            await self.charge(key, 1)
            yield
        finally:
            self._running[key.name] -= 1

    async def charge(self, key: Key, replies: int) -> None:
        """Count replies against the rates of ``key``: the first of a request at the door, the
        others once it has been read.

        Raises:
            ApiError: 429, more than are allowed in a time.
        """
        for item in parse_many(key.rate) if key.rate and replies else ():
            await self._count(item, key, replies)

    async def _count(self, item: RateLimitItem, key: Key, replies: int) -> None:
        if not await self._limiter.hit(item, key.name, cost=replies):
            window = await self._limiter.get_window_stats(item, key.name)
            wait = max(1, round(window.reset_time - time.time()))
            raise ApiError(
                429,
                f"{item} are allowed",
                "rate_limit_error",
                code="rate_limit_exceeded",
                retry_after=wait,
            )


def _secret(headers: Mapping[bytes, bytes]) -> str:
    """The key that a client names, in the first header of each name; empty where it names none."""
    given = headers.get(b"authorization")
    if given is None:
        return headers.get(b"x-api-key", b"").decode("latin-1").strip()
    scheme, _, secret = given.decode("latin-1").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""
