"""What is examined, and what a check says of it. Knows none of the checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

State = Literal["ok", "hint", "fault"]


@dataclass(frozen=True)
class Installation:
    """What is to be examined beside the machine itself; what is empty is not.

    Args:
        engine: ``vllm`` or ``transformers``, which the server is to run on.
        bundle: Switch folder or hub id.
        model: Model folder or hub id.
        policy_file: Policy file of the server.
        keys: File of API keys.
        audit_db: SQLAlchemy URL of the audit database.
        url: Address of a running server, with or without ``/v1``.
    """

    engine: str
    bundle: str = ""
    model: str = ""
    policy_file: Path | None = None
    keys: Path | None = None
    audit_db: str = ""
    url: str = ""


class Hint(str):
    """What a check found, where the server runs all the same and something should be done."""


class Check(NamedTuple):
    """One thing that is looked at.

    Args:
        name: Shown in front of what was found.
        run: Says what was found, a :class:`Hint` where something should be done; raises where it is
            a fault, with what to do in the message.
        about: Field of :class:`Installation` without which there is nothing to look at; empty for
            the machine itself.
    """

    name: str
    run: Callable[[Installation], str]
    about: str = ""


@dataclass(frozen=True)
class Finding:
    """What a check said: ``fault`` keeps a server from running, or leaves it without its guard."""

    check: str
    state: State
    text: str


def finding(check: Check, at: Installation) -> Finding:
    """Run one check; whatever it raises is what it found."""
    try:
        text = check.run(at)
    except ModuleNotFoundError as error:
        extra = "vllm" if error.name == "vllm" else "server"
        text = f"{error.name} is not installed: pip install 'safeswitch[{extra}]'"
        return Finding(check.name, "fault", text)
    except Exception as error:  # a doctor that falls over helps nobody
        text = " ".join(str(error).split()) or "no further word"
        return Finding(check.name, "fault", f"{type(error).__name__}: {text}")
    return Finding(check.name, "hint" if isinstance(text, Hint) else "ok", text)
