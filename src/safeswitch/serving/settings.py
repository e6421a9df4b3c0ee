"""What the operator decides about the server. Handed to the server's processes in one environment variable, as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from safeswitch.core.errors import SettingError, check_choice
from safeswitch.engines.context import POLICIES

VARIABLE = "SAFESWITCH_SERVER"
AUDIT_FAILURES = ("block", "buffer")


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server around the engine.

    Args:
        clients_may: Policies that a client may ask for with ``{"safeswitch": {"policy": ...}}``; nobody may by default.
        refusal_field: Move the text of a switched chat reply into ``message.refusal``, where OpenAI's clients look for it
            (replies that are not streamed).
        max_body: Largest request body, in bytes.
        audit: SQLAlchemy URL of the audit database; empty for none.
        audit_failure: When the audit database cannot be written: ``block`` answers 503, ``buffer`` keeps records in
            ``audit_buffer`` until it can.
        audit_buffer: JSONL file for records that wait.
        audit_buffer_limit: Most bytes in that file; beyond it requests are blocked.
        audit_text: Keep the request's text in the audit, not only its hash.
    """

    clients_may: tuple[str, ...] = ()
    refusal_field: bool = False
    max_body: int = 1 << 20
    audit: str = ""
    audit_failure: str = "block"
    audit_buffer: str = "audit-buffer.jsonl"
    audit_buffer_limit: int = 64 << 20
    audit_text: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "clients_may", tuple(self.clients_may))
        for policy in self.clients_may:
            check_choice("ServerSettings", "clients_may", policy, POLICIES)
        check_choice("ServerSettings", "audit_failure", self.audit_failure, AUDIT_FAILURES)
        if self.max_body < 1 or self.audit_buffer_limit < 1:
            raise SettingError("ServerSettings: max_body and audit_buffer_limit must be 1 byte or more")

    def export(self) -> None:
        """Put these settings into the environment, for the processes that are started from here."""
        os.environ[VARIABLE] = json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> ServerSettings:
        """What :meth:`export` wrote; the defaults where nothing was.

        Raises:
            SettingError: not JSON, or fields that do not exist.
        """
        text = os.environ.get(VARIABLE, "{}")
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise SettingError(f"{VARIABLE} must hold a JSON object of ServerSettings' fields: {error}") from error
