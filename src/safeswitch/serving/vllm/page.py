"""What the page tells of a vLLM server. Its switches are in the workers: here their bundles are
read once more, for the card, and the workers are asked for the thresholds in force."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.types import Scope

from safeswitch.core.errors import SettingError
from safeswitch.engines.settings import switched_off
from safeswitch.engines.vllm.calls import set_thresholds
from safeswitch.engines.vllm.frontend import FrontEnd
from safeswitch.engines.vllm.install import front_of
from safeswitch.serving.settings import ServerSettings
from safeswitch.switch.switch import Switch


class VLLMFacts:
    """See :class:`safeswitch.serving.ui.page.Facts`."""

    def __init__(self) -> None:
        self._switches: dict[str, Switch] = {}

    def name(self, scope: Scope) -> str:
        config = scope["app"].state.engine_client.vllm_config.model_config
        return str(config.served_model_name or config.model)

    def policy(self, scope: Scope) -> str:
        return "off" if switched_off() else _front(scope).settings.policy

    def default(self, scope: Scope) -> str:
        return _front(scope).settings.default

    def pilot(self, scope: Scope, bundle: str) -> int:
        return _front(scope).plans[bundle].pilot

    async def switches(self, scope: Scope, names: Sequence[str]) -> dict[str, Switch]:
        """With one question to the workers for each; a bundle is read at the first."""
        found = {}
        for name in names:
            folder = _front(scope).settings.bundles.get(name)
            if folder is None:
                continue
            if name not in self._switches:
                self._switches[name] = await asyncio.to_thread(Switch.from_pretrained, folder)
            switch = self._switches[name]
            bars = await set_thresholds(scope["app"].state.engine_client, name, {})
            found[name] = replace(switch, gate=switch.gate.with_thresholds(bars))
        return found


def refuse_page_behind_other_keys(args: Any, server: ServerSettings) -> None:
    """Raise where the page would be open to whoever has not vLLM's own key, which is asked for at
    vLLM's routes alone.

    Args:
        args: What vLLM's parser has made of the flags.
        server: Settings of the middleware.

    Raises:
        SettingError: both are wanted.
    """
    if server.ui and (args.api_key or os.environ.get("VLLM_API_KEY")):
        raise SettingError(
            "safeswitch serve: vLLM's --api-key (VLLM_API_KEY) does not close the page of --ui; "
            "give --keys in its place"
        )


def _front(scope: Scope) -> FrontEnd:
    return front_of(scope["app"].state.engine_client)
