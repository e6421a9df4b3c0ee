"""What the page shows on every server: what a visitor may know, the audit in figures, verdicts.

Two things differ between servers and are handed to it: facts about the server, and the chat. Who
may come in is settled before, by :mod:`safeswitch.serving.ui.rights`. Knows nothing of engines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Protocol

from fastapi import Request, Response
from pydantic import Field
from starlette.types import Scope

from safeswitch._version import __version__
from safeswitch.core.errors import ArtifactError
from safeswitch.core.json_types import JsonObject
from safeswitch.data.reviews import Review, ReviewVerdict, add_reviews, read_reviews, settled
from safeswitch.serving.audit import Audit, days_ago
from safeswitch.serving.errors import ApiError
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.transformers.openai_schema import ChatMessage, Strict
from safeswitch.serving.ui.card import card_of
from safeswitch.serving.ui.rights import Visitor
from safeswitch.serving.ui.traffic import MOST_ROWS, traffic
from safeswitch.switch.switch import Switch

SERVED = "safeswitch.served"
"""Where in the page's ASGI scope that of the server stands, by which it knows the request."""
NAMELESS = "page"
"""Who gives a verdict on a server without keys."""
_LOCK_S = 2.0
_log = logging.getLogger("safeswitch.server")


class ChatBody(Strict):
    """``POST /ui/api/chat``: answered with the likeliest tokens, so that two policies can be
    compared."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class Facts(Protocol):
    """What the page tells of its server; ``scope`` is a request's, as the server has it."""

    def name(self, scope: Scope) -> str:
        """Under which the model is served."""

    def policy(self, scope: Scope) -> str:
        """Of requests that ask for none."""

    def default(self, scope: Scope) -> str:
        """Name of the bundle of requests that ask for none."""

    def pilot(self, scope: Scope, bundle: str) -> int:
        """Reply tokens that stage 2 of a bundle reads."""

    async def switches(self, scope: Scope, names: Sequence[str]) -> Mapping[str, Switch]:
        """Those bundles of ``names`` that there are, with the thresholds in force."""


class Chat(Protocol):
    """How a request from the page is answered."""

    @property
    def traces(self) -> bool:
        """Whether a reply is told token by token, with scores; else as text, with the decision."""

    async def answer(self, request: Request, body: ChatBody, facts: Facts) -> Response:
        """A stream of events (:mod:`safeswitch.serving.ui.events`).

        Raises:
            ApiError: why the client cannot be served.
        """


@dataclass(frozen=True)
class Page:
    """What the page is made from.

    Args:
        facts: About the server.
        chat: Answers.
        settings: The operator's.
        audit: The records; None where none are kept.
    """

    facts: Facts
    chat: Chat
    settings: ServerSettings
    audit: Audit | None

    async def about(self, scope: Scope, visitor: Visitor) -> JsonObject:
        """What the visitor may know and do."""
        default = visitor.bundle or self.facts.default(scope)
        wanted = tuple(dict.fromkeys((default, *visitor.bundles)))
        switches = await self.facts.switches(scope, wanted)
        return {
            "model": self.facts.name(scope),
            "version": __version__,
            "client": visitor.name,
            "policy": self.facts.policy(scope),
            "policies": list(visitor.policies),
            "traces": self.chat.traces,
            "pilot_text": self.chat.traces and self.settings.ui_pilot_text,
            "records": self.audit is not None and visitor.records,
            "reviews": bool(self.settings.ui_reviews) and visitor.records,
            "bundle": default,
            "bundles": {name: card_of(switch) for name, switch in switches.items()},
        }

    def traffic(self, visitor: Visitor, days: int) -> JsonObject:
        """The audit of the last ``days``, in figures.

        Raises:
            ApiError: see :meth:`records`.
        """
        audit = self.records(visitor)
        since = days_ago(days)
        rows = audit.latest(MOST_ROWS, since=since, texts=visitor.texts)
        found = traffic(
            rows,
            self.settings.calibration,
            self.settings.drift_bound,
            since,
            time.time(),
            visitor.texts,
        )
        return found | {"queue": self._with_verdicts(found["queue"])}

    def records(self, visitor: Visitor) -> Audit:
        """The audit, for those who may read it.

        Raises:
            ApiError: 403, another client's records; 404, none are kept.
        """
        if not visitor.records:
            raise ApiError(403, "records are for admin keys", "permission_error")
        if self.audit is None:
            raise ApiError(404, "this server keeps no records (safeswitch serve --audit)")
        return self.audit

    def review(
        self, visitor: Visitor, bundle_id: str, text_sha256: str, verdict: ReviewVerdict
    ) -> JsonObject:
        """Add the visitor's verdict on a text that a switch flagged to the file of ``safeswitch
        review``.

        Raises:
            ApiError: see :meth:`records`; 404, no verdicts are taken or that switch has not flagged
                the text; 503, the file cannot be written now.
        """
        audit = self.records(visitor)
        if not self.settings.ui_reviews:
            raise ApiError(404, "this server takes no verdicts (safeswitch serve --ui-reviews)")
        if not audit.has_flagged(bundle_id, text_sha256):
            raise ApiError(404, f"switch {bundle_id} has flagged no text {text_sha256}")
        by = visitor.name or NAMELESS
        given = Review(text_sha256, verdict, by, time.time(), bundle_id)
        try:
            add_reviews(Path(self.settings.ui_reviews), [given], wait_s=_LOCK_S)
        except ArtifactError as error:
            _log.warning("a verdict from the page was lost: %s", error)
            raise ApiError(503, "verdicts cannot be written now; try again") from error
        return asdict(given)

    def _with_verdicts(self, queue: Sequence[JsonObject]) -> list[JsonObject]:
        """Rows of the queue with what reviewers say of each in the end; None without a verdict."""
        path = Path(self.settings.ui_reviews)
        said = read_reviews(path) if self.settings.ui_reviews and path.exists() else []
        verdicts = {row["bundle_id"]: settled(said, row["bundle_id"]) for row in queue}
        return [
            {**row, "verdict": verdicts[row["bundle_id"]].get(row["text_sha256"])} for row in queue
        ]
