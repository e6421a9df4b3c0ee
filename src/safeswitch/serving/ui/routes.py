"""The page's routes on the transformers server: its files, what it may know, traced replies, and
the audit in figures.

Who may come in is settled before, by :mod:`safeswitch.serving.ui.rights`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from mimetypes import guess_type
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as Parameter
from pydantic import Field

from safeswitch._version import __version__
from safeswitch.core.errors import ArtifactError
from safeswitch.core.json_types import JsonObject
from safeswitch.data.reviews import Review, ReviewVerdict, add_reviews, read_reviews, settled
from safeswitch.serving.audit import Audit, days_ago
from safeswitch.serving.errors import ApiError
from safeswitch.serving.replies.form import public
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.transformers.app import Events, conversation, error_for_client
from safeswitch.serving.transformers.front_end import Answering, FrontEnd, Sampling
from safeswitch.serving.transformers.openai_replies import DONE, event
from safeswitch.serving.transformers.openai_schema import ChatMessage, Strict
from safeswitch.serving.ui.card import card_of
from safeswitch.serving.ui.rights import API, FILES, PAGE, VISITOR, Visitor
from safeswitch.serving.ui.trace import TracedChoice
from safeswitch.serving.ui.traffic import MOST_ROWS, traffic

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Of every file of the page."""
NAMELESS = "page"
"""Who gives a verdict on a server without keys."""
_LOCK_S = 2.0
_log = logging.getLogger("safeswitch.server")


class TracedRequest(Strict):
    """``POST /ui/api/chat``: answered with the likeliest tokens, so that two policies can be
    compared."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True)
class Page:
    """What the page is made from.

    Args:
        front: Answers.
        name: Of the model.
        settings: The operator's.
        audit: The records; None where none are kept.
    """

    front: FrontEnd
    name: str
    settings: ServerSettings
    audit: Audit | None

    def about(self, visitor: Visitor) -> JsonObject:
        """What the visitor may know and do."""
        default = visitor.bundle or self.front.guard.default
        bundles = dict.fromkeys((default, *visitor.bundles))
        switches = self.front.switches
        return {
            "model": self.name,
            "version": __version__,
            "client": visitor.name,
            "policy": self.front.policy,
            "policies": list(visitor.policies),
            "pilot_text": self.settings.ui_pilot_text,
            "records": self.audit is not None and visitor.records,
            "reviews": bool(self.settings.ui_reviews) and visitor.records,
            "bundle": default,
            "bundles": {name: card_of(switches[name]) for name in bundles if name in switches},
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

    def review(self, visitor: Visitor, text_sha256: str, verdict: ReviewVerdict) -> JsonObject:
        """Add the visitor's verdict on a flagged text to the file of ``safeswitch review``.

        Raises:
            ApiError: see :meth:`records`; 404, no verdicts are taken or the text was not flagged;
                503, the file cannot be written now.
        """
        audit = self.records(visitor)
        if not self.settings.ui_reviews:
            raise ApiError(404, "this server takes no verdicts (safeswitch serve --ui-reviews)")
        record = audit.flagged(text_sha256)
        if record is None:
            raise ApiError(404, f"no request with text_sha256 {text_sha256} was flagged")
        by = visitor.name or NAMELESS
        given = Review(text_sha256, verdict, by, time.time(), str(record["bundle_id"]))
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


def add_page(app: FastAPI, page: Page) -> None:
    """Serve the page at ``/ui``."""
    files = {name: path.read_bytes() for name, path in FILES.items()}
    counting = asyncio.Semaphore(1)

    @app.get(PAGE)
    async def moved() -> Response:
        return Response(status_code=307, headers={**HEADERS, "Location": "ui/"})

    @app.get(f"{API}about")
    async def about(request: Request) -> JsonObject:
        return page.about(request.scope[VISITOR])

    @app.get(f"{API}traffic")
    async def records(
        request: Request, days: Annotated[int, Query(ge=1, le=365)] = 7
    ) -> JsonObject:
        # one at a time: the threads are those that write the audit
        async with counting:
            return await asyncio.to_thread(page.traffic, request.scope[VISITOR], days)

    @app.put(f"{API}verdicts/{{text_sha256}}/{{verdict}}")
    async def review(
        request: Request,
        text_sha256: Annotated[str, Parameter(pattern="^[0-9a-f]{64}$")],
        verdict: ReviewVerdict,
    ) -> JsonObject:
        visitor = request.scope[VISITOR]
        return await asyncio.to_thread(page.review, visitor, text_sha256, verdict)

    @app.post(f"{API}chat")
    async def chat(body: TracedRequest) -> Response:
        make = partial(TracedChoice, lm=page.front.lm, undecided=page.settings.ui_pilot_text)
        sampling = Sampling(temperature=0.0)
        prompts = [conversation(body.messages)]
        answering = await page.front.begin(prompts, sampling, limit=body.max_tokens, traced=make)
        return Events(answering, _stream(answering))

    @app.get(f"{PAGE}/{{name:path}}")
    async def file(name: str) -> Response:
        found = files.get(name or "index.html")
        if found is None:
            raise ApiError(404, "the page has no such file")
        return Response(found, headers=HEADERS, media_type=guess_type(name or "index.html")[0])


async def _stream(answering: Answering) -> AsyncIterator[bytes]:
    """Server-sent events of one traced choice (:class:`TracedChoice`), then ``end``, with the
    decision once it is on record."""
    (choice,), (replied,) = answering.choices, answering.replies
    assert isinstance(choice, TracedChoice)
    try:
        reply = None
        while reply is None:
            await answering.news.wait()
            answering.news.clear()
            if choice.reply.done():
                reply = await asyncio.shield(replied)
            for happened in choice.events():
                yield event(happened)
        decided = answering.context.decisions.get(choice.index)
        decision = public(decided, True) if decided is not None else None
        yield event({"type": "end", "finish_reason": reply.finish_reason, "decision": decision})
        yield DONE
    except Exception as error:  # a stream that has begun can only tell of it in its last event
        yield event(error_for_client(error).to_dict())
