"""What ``vllm serve --middleware`` names: the middleware, with the guarded front end put around ``AsyncLLM.generate``.

vLLM 0.32 imports it in every API server process before the first request (``entrypoints/serve/middleware/register.py``).
"""

from __future__ import annotations

from safeswitch.engines.vllm.frontend import install
from safeswitch.serving.middleware import SafeSwitchMiddleware as Base

install()


class SafeSwitchMiddleware(Base):
    """The middleware, in a process whose engine client is guarded."""
