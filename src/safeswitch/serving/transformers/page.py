"""The page on the transformers server: facts from its front end, and a chat that is traced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Request, Response
from starlette.types import Scope

from safeswitch.serving.transformers.app import Events, conversation, error_for_client
from safeswitch.serving.transformers.front_end import Answering, FrontEnd, Sampling
from safeswitch.serving.transformers.openai_replies import DONE, event
from safeswitch.serving.transformers.trace import TracedChoice
from safeswitch.serving.ui.events import end_event
from safeswitch.serving.ui.page import ChatBody, Facts
from safeswitch.switch.switch import Switch


@dataclass(frozen=True)
class FrontFacts:
    """What the page tells of this server.

    Args:
        front: Its front end.
        served_as: Name of the model.
    """

    front: FrontEnd
    served_as: str

    def name(self, scope: Scope) -> str:
        return self.served_as

    def policy(self, scope: Scope) -> str:
        return self.front.policy

    def default(self, scope: Scope) -> str:
        return self.front.guard.default

    def pilot(self, scope: Scope, bundle: str) -> int:
        return self.front.switches[bundle].gate.pilot

    async def switches(self, scope: Scope, names: Sequence[str]) -> dict[str, Switch]:
        return {name: self.front.switches[name] for name in names if name in self.front.switches}


@dataclass(frozen=True)
class TracedChat:
    """Answers with what happens to each token of a reply (:class:`TracedChoice`).

    Args:
        front: The server's front end.
        undecided: Whether the text of tokens that are not decided may be told.
    """

    front: FrontEnd
    undecided: bool

    traces = True

    async def answer(self, request: Request, body: ChatBody, facts: Facts) -> Response:
        """A stream of events."""
        make = partial(TracedChoice, lm=self.front.lm, undecided=self.undecided)
        prompts, sampling = [conversation(body.messages)], Sampling(temperature=0.0)
        answering = await self.front.begin(prompts, sampling, limit=body.max_tokens, traced=make)
        return Events(answering, _stream(answering))


async def _stream(answering: Answering) -> AsyncIterator[bytes]:
    """Server-sent events of one traced choice, then ``end``, with the decision once it is on
    record."""
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
        yield event(end_event(reply.finish_reason, answering.context.decisions.get(choice.index)))
        yield DONE
    except Exception as error:  # a stream that has begun can only tell of it in its last event
        yield event(error_for_client(error).to_dict())
