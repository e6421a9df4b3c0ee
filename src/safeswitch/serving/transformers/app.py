"""The HTTP side of the transformers server: OpenAI's routes, errors and streams over a guarded
front end.

Stands inside the middleware, which brings ids, policies, decisions in replies, audit and metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import Receive, Scope, Send

from safeswitch._version import __version__
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Message, Reply
from safeswitch.serving import fastapi_errors
from safeswitch.serving.errors import ApiError, ending
from safeswitch.serving.fastapi_errors import answer_errors, json_answer
from safeswitch.serving.transformers.batcher import Closed
from safeswitch.serving.transformers.front_end import Answering, FrontEnd, Sampling
from safeswitch.serving.transformers.openai_replies import DONE, ReplyObjects, event, usage
from safeswitch.serving.transformers.openai_schema import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    turns_of,
)
from safeswitch.serving.transformers.prompts import ClientPrompt
from safeswitch.serving.transformers.stop_text import before_stop


def create_app(front: FrontEnd, name: str) -> FastAPI:
    """The application that serves ``front`` under the model name ``name``."""
    app = FastAPI(title="SafeSwitch", version=__version__, docs_url=None, redoc_url=None)
    card = {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "safeswitch",
        "max_model_len": front.lm.context_length,
    }

    def known(model: str | None) -> None:
        if model not in (None, name):
            raise ApiError(
                404, "there is no model of that name", code="model_not_found", param="model"
            )

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        known(body.model)
        return await _complete(front, request, body, [conversation(body.messages)], name)

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        known(body.model)
        return await _complete(front, request, body, body.prompts, name)

    @app.get("/v1/models")
    async def models() -> JsonObject:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> JsonObject:
        known(model)
        return card

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        known(body.model)
        return await front.lanes.run(body.size, lambda: _tokenized(front, body))

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        known(body.model)
        return await front.lanes.run(len(body.tokens), lambda: _detokenized(front, body))

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if front.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    answer_errors(app, error_for_client, (Closed,))
    return app


def conversation(messages: list[ChatMessage]) -> list[Message]:
    if messages and messages[-1].role == "assistant":
        raise ApiError(
            400,
            "the last message is the assistant's: prefilled replies are not served",
            param="messages",
        )
    return turns_of(messages)


def _tokenized(front: FrontEnd, body: TokenizeRequest) -> Response:
    """The tokens of a body. The JSON is written here too, on the thread: it may be long."""
    if body.messages is not None:
        ids = front.prompts.encode(conversation(body.messages))
    else:
        ids = list(
            front.lm.tokenizer(body.prompt, add_special_tokens=body.add_special_tokens)["input_ids"]
        )
    content = {
        "count": len(ids),
        "max_model_len": front.lm.context_length,
        "tokens": ids,
        "token_strs": None,
    }
    return json_answer(200, content)


def _detokenized(front: FrontEnd, body: DetokenizeRequest) -> Response:
    front.prompts.check_known(body.tokens)
    return json_answer(200, {"prompt": str(front.lm.tokenizer.decode(body.tokens))})


async def _complete(
    front: FrontEnd,
    request: Request,
    body: ChatRequest | CompletionRequest,
    prompts: Sequence[ClientPrompt],
    name: str,
) -> Response:
    sampling = Sampling(
        body.temperature,
        body.top_p,
        show_thinking=body.include_reasoning,
        thinking_budget=body.thinking_token_budget,
    )
    answering = await front.begin(
        prompts,
        sampling,
        stops=body.stops,
        n=body.n,
        limit=body.limit,
        seed=body.seed,
        stream=body.stream,
    )
    form = ReplyObjects(name, isinstance(body, ChatRequest), usage_in_chunks=body.usage_wanted)
    if body.stream:
        return Events(answering, _stream(answering, form))
    return await _whole(request, answering, form, body.stops)


async def _whole(
    request: Request, answering: Answering, form: ReplyObjects, stops: tuple[str, ...]
) -> Response:
    """The reply once every choice is there; nothing where the client leaves before."""
    left = asyncio.create_task(_left(request))
    everything: asyncio.Future[list[Reply]] = asyncio.gather(*answering.replies)
    either: list[asyncio.Future[Any]] = [left, everything]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not everything.done():
            return Response(status_code=499)
        replies = everything.result()
    finally:
        left.cancel()
        answering.leave()
        everything.add_done_callback(lambda done: done.cancelled() or done.exception())
    choices = []
    for choice, reply in zip(answering.choices, replies, strict=True):
        text, stopped = before_stop(reply.text + choice.explanation, stops)
        choices.append((text, "stop" if stopped else reply.finish_reason))
    written = usage(answering.prompt_tokens, sum(len(reply.token_ids) for reply in replies))
    return json_answer(200, form.whole(choices, written))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Events(StreamingResponse):
    """A stream that nobody waits for any more once it has ended, however it has ended."""

    def __init__(self, answering: Answering, lines: AsyncIterator[bytes]) -> None:
        super().__init__(lines, media_type="text/event-stream")
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answering.leave()


async def _stream(answering: Answering, form: ReplyObjects) -> AsyncIterator[bytes]:
    """Server-sent events; a choice's last text and its end follow when its decision is on
    record."""
    running = list(zip(answering.choices, answering.replies, strict=True))
    try:
        for choice in answering.choices:
            if opening := form.opening(choice.index):
                yield opening
        while running:
            await answering.news.wait()
            answering.news.clear()
            for choice, replied in list(running):
                ended = choice.reply.done()
                reply = await asyncio.shield(replied) if ended else None
                for refuses, text in choice.take():
                    if refuses:
                        answering.context.refusing.add(choice.index)
                    yield form.piece(choice.index, text)
                if reply is not None:
                    if choice.explanation and not choice.stopped:
                        answering.context.refusing.add(choice.index)
                        yield form.piece(choice.index, choice.explanation)
                    yield form.closing(
                        choice.index, "stop" if choice.stopped else reply.finish_reason
                    )
                    running.remove((choice, replied))
        if form.usage_in_chunks:
            yield form.usage(
                usage(answering.prompt_tokens, sum(choice.shown for choice in answering.choices))
            )
        yield DONE
    except Exception as error:  # a stream that has begun can only tell of it in its last event
        yield event(error_for_client(error).to_dict())


def error_for_client(error: Exception) -> ApiError:
    """The answer to a failure."""
    return ending() if isinstance(error, Closed) else fastapi_errors.error_for_client(error)
