"""API keys in a file: who may ask, how often, for what. Only hashes are kept. Knows nothing of
HTTP."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from limits import parse_many

from safeswitch.core.artifact import write_atomic
from safeswitch.core.errors import ArtifactError, SettingError, check_choice
from safeswitch.core.json_types import JsonObject
from safeswitch.core.lock import file_writer
from safeswitch.engines.context import POLICIES

_WAIT_S = 30.0
"""How long a change of the file waits for another one to end; each takes milliseconds."""


@dataclass(frozen=True)
class Key:
    """One client.

    Args:
        name: Shown in the audit and the log.
        sha256: Hash of the key. Keys are 256 random bits, so a plain hash cannot be turned back.
        rate: Replies in a time, as ``60/minute`` or ``10/second;1000/hour``; a request for several
            counts as so many. Empty for no limit.
        concurrent: Most requests at one time, in each server process; 0 for no limit.
        may: Policies that this client may ask for.
        bundles: Bundles that it is served with; the first is its default. Empty leaves it the
            server's default.
        admin: May read and change thresholds, and see scores.
        scores: May see scores and thresholds, which would guide whoever searches for a way round
            the guard.
        extra_fields: May send fields that are marked ``right`` in the page of request fields.
    """

    name: str
    sha256: str
    rate: str = ""
    concurrent: int = 0
    may: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()
    admin: bool = False
    scores: bool = False
    extra_fields: bool = False

    def __post_init__(self) -> None:
        for name in ("may", "bundles"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.name or len(self.name) > 100:
            raise SettingError(f"Key: a name has 1 to 100 characters; got {self.name!r}")
        for policy in self.may:
            check_choice(f"Key {self.name!r}", "may", policy, POLICIES)
        if self.concurrent < 0:
            raise SettingError(
                f"Key {self.name!r}: concurrent must be 0 (no limit) or more; got {self.concurrent}"
            )
        try:
            parse_many(self.rate or "1/second")
        except ValueError as error:
            raise SettingError(
                f"Key {self.name!r}: rate must look like 60/minute or 10/second;1000/hour: {error}"
            ) from error


def hash_of(secret: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> dict[str, Key]:
    """Keys by their hash.

    Raises:
        ArtifactError: no such file, or not a list of keys.
    """
    known = {field.name for field in fields(Key)}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["keys"]
        keys = [Key(**entry) for entry in entries if set(entry) <= known]
    except (OSError, ValueError, TypeError, KeyError, SettingError) as error:
        raise ArtifactError(
            f"{path} is no file of API keys (safeswitch keys add): {error}"
        ) from error
    if (
        len(keys) != len(entries)
        or len({k.sha256 for k in keys}) != len(keys)
        or len({k.name for k in keys}) != len(keys)
    ):
        raise ArtifactError(
            f"{path}, the file of API keys: two share a name, or a field is none of "
            f"{', '.join(sorted(known))}"
        )
    return {key.sha256: key for key in keys}


def check_names(named: Collection[str], path: Path) -> None:
    """Refuse names of which the file has no key.

    Raises:
        SettingError: the first of them.
        ArtifactError: see :func:`read_keys`.
    """
    known = {key.name for key in read_keys(path).values()}
    unknown = sorted(set(named) - known)
    if unknown:
        have = ", ".join(sorted(known)) or "none"
        raise SettingError(f"{path} has no key named {unknown[0]!r}; it has: {have}")


def write_keys(path: Path, keys: Mapping[str, Key]) -> None:
    """Replace the file, readable by its owner alone.

    Raises:
        ArtifactError: it cannot be written.
    """
    entries: list[JsonObject] = [asdict(key) for key in keys.values()]

    def write(temporary: Path) -> None:
        temporary.write_text(json.dumps({"keys": entries}, indent=2) + "\n", encoding="utf-8")

    write_atomic(path, write, mode=0o600)


def add_key(path: Path, name: str, **fields: Any) -> str:
    """Put a new key into the file, made where there is none; returns the key, which is kept
    nowhere.

    Raises:
        SettingError: a name that is taken, a field out of its range.
    """
    secret = f"sk-safeswitch-{secrets.token_urlsafe(32)}"
    key = Key(name, hash_of(secret), **fields)
    with file_writer(path, wait_s=_WAIT_S):
        keys = read_keys(path) if path.exists() else {}
        if name in {key.name for key in keys.values()}:
            raise SettingError(f"{path} has a key named {name!r} already; remove it first")
        write_keys(path, {**keys, key.sha256: key})
    return secret


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file; running servers refuse it from their next request on.

    Raises:
        SettingError: there is none of that name.
    """
    with file_writer(path, wait_s=_WAIT_S):
        keys = read_keys(path)
        left = {sha: key for sha, key in keys.items() if key.name != name}
        if len(left) == len(keys):
            raise SettingError(f"{path} has no key named {name!r}")
        write_keys(path, left)
