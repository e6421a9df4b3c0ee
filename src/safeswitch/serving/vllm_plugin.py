"""What ``vllm serve --middleware`` names: the middleware, with the guarded front end put around ``AsyncLLM.generate``.

vLLM 0.32 imports it in every API server process before the first request (``entrypoints/serve/middleware/register.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from safeswitch.core.errors import SettingError
from safeswitch.engines.vllm.install import Door, check_at_work, install
from safeswitch.serving.errors import ending
from safeswitch.serving.middleware import Receive, Scope
from safeswitch.serving.middleware import SafeSwitchMiddleware as Base
from safeswitch.serving.refused import Send

install()


class SafeSwitchMiddleware(Base):
    """The middleware, in a process whose engine client is guarded."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A server whose requests would pass unguarded does not start."""
        if scope["type"] == "lifespan":
            try:
                await check_at_work(getattr(scope["app"].state, "engine_client", None))
            except SettingError as error:
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
        await super().__call__(scope, receive, send)

    @contextmanager
    def admitted(self, scope: Scope) -> Iterator[None]:
        """No requests are let in any more once the server has been told to stop; those inside are waited for."""
        door = Door.of(scope["app"].state.engine_client)
        if door.closed:
            raise ending()
        with door:
            yield

    async def set_thresholds(self, scope: Scope, bundle: str, thresholds: Mapping[str, float]) -> dict[str, float]:
        """In every worker of the engine."""
        engine = scope["app"].state.engine_client
        answers = await engine.collective_rpc("safeswitch_thresholds", args=(bundle, dict(thresholds)))
        found: dict[str, float] = next((a for a in answers if a), {})
        if "error" in found:
            raise SettingError(str(found["error"]))
        return dict(found)
