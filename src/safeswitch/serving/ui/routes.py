"""The page's own application, and the server with the page in front of it.

One application for every server: it answers the addresses at and below ``/ui``, and the server
never sees them.
"""

from __future__ import annotations

import asyncio
from mimetypes import guess_type
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as Parameter
from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from safeswitch.core.json_types import JsonObject
from safeswitch.data.reviews import ReviewVerdict
from safeswitch.serving.errors import ApiError
from safeswitch.serving.fastapi_errors import answer_errors, error_for_client
from safeswitch.serving.ui.page import SERVED, ChatBody, Page
from safeswitch.serving.ui.rights import API, BUNDLE, FILES, HASH, PAGE, READS, VISITOR

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


class WithPage:
    """An application with the page in front.

    Args:
        app: The server's, which goes on answering every other address.
        page: What the page is made from.
    """

    def __init__(self, app: ASGIApp, page: Page) -> None:
        self._app, self._page = app, page_app(page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and f"{get_route_path(scope)}/".startswith(f"{PAGE}/"):
            await self._page({**scope, SERVED: scope}, receive, send)
        else:
            await self._app(scope, receive, send)


def page_app(page: Page) -> FastAPI:
    """The application that serves the page at ``/ui``."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    files = {name: path.read_bytes() for name, path in FILES.items()}
    # one look into the audit at a time: the threads are those that write it, for all replies
    counting = asyncio.Semaphore(1)

    @app.api_route(PAGE, methods=[*READS])
    async def moved() -> Response:
        return Response(status_code=307, headers={**HEADERS, "Location": "ui/"})

    @app.get(f"{API}about")
    async def about(request: Request) -> JsonObject:
        return await page.about(request.scope[SERVED], request.scope[VISITOR])

    @app.get(f"{API}traffic")
    async def records(
        request: Request, days: Annotated[int, Query(ge=1, le=365)] = 7
    ) -> JsonObject:
        async with counting:
            return await asyncio.to_thread(page.traffic, request.scope[VISITOR], days)

    @app.put(f"{API}verdicts/{{bundle_id}}/{{text_sha256}}/{{verdict}}")
    async def review(
        request: Request,
        bundle_id: Annotated[str, Parameter(pattern=f"^{BUNDLE}$")],
        text_sha256: Annotated[str, Parameter(pattern=f"^{HASH}$")],
        verdict: ReviewVerdict,
    ) -> JsonObject:
        visitor = request.scope[VISITOR]
        async with counting:
            return await asyncio.to_thread(page.review, visitor, bundle_id, text_sha256, verdict)

    @app.post(f"{API}chat")
    async def chat(request: Request, body: ChatBody) -> Response:
        return await page.chat.answer(request, body, page.facts)

    @app.api_route(f"{PAGE}/{{name:path}}", methods=[*READS])
    async def file(name: str) -> Response:
        found = files.get(name or "index.html")
        if found is None:
            raise ApiError(404, "the page has no such file")
        return Response(found, headers=HEADERS, media_type=guess_type(name or "index.html")[0])

    answer_errors(app, error_for_client)
    return app
