"""What a vLLM worker answers to the front end (``--worker-extension-cls``, called through
``collective_rpc``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.engines.vllm.guard import Guard
from safeswitch.engines.vllm.live import find, is_at_work

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class SafeSwitchWorker:
    """Mixed into vLLM's worker class."""

    vllm_config: VllmConfig

    @property
    def _guard(self) -> Guard | None:
        model = find(self.vllm_config)
        return None if model is None or not is_at_work(self.vllm_config) else model.safeswitch_guard

    def safeswitch_peek(self, counts: dict[str, int | None]) -> dict[str, str]:
        """How requests stand, by id, after the reply tokens that the front end has seen."""
        return {} if self._guard is None else dict(self._guard.standing(counts))

    def safeswitch_take(self, counts: dict[str, int | None]) -> dict[str, JsonObject]:
        """Decisions on requests by id, after the tokens of their reply (None: left before its end),
        as plain JSON; each can be taken once."""
        return (
            {}
            if self._guard is None
            else {key: d.to_dict() for key, d in self._guard.take(counts).items()}
        )

    def safeswitch_recorded(self, ids: list[str]) -> dict[str, dict[str, bytes]]:
        """States of requests, as float32; each can be taken once."""
        model = find(self.vllm_config)
        return {} if model is None else model.safeswitch_recorder.take(ids)

    def safeswitch_bundles(self) -> dict[str, JsonObject]:
        """How replies are to be held back under each loaded bundle; empty where nothing guards."""
        guard = self._guard
        if guard is None:
            return {}
        return {
            name: {
                "id": tenant.id,
                "pilot": tenant.gate.pilot,
                "staged": tenant.gate.stage2 is not None,
                "asks_first": tenant.gate.stage1 is not None,
                "changes_replies": tenant.head is not None,
                "text": tenant.gate.reads_text,
                "whole": tenant.gate.reads_means,
                "watch_until": tenant.gate.watch_until,
                "watch_every": tenant.gate.watch_every if tenant.gate.watch is not None else None,
            }
            for name, tenant in guard.tenants.items()
        }

    def safeswitch_rows(self) -> int:
        """How many requests the guard remembers."""
        return 0 if self._guard is None else len(self._guard.rows)

    def safeswitch_thresholds(self, bundle: str, thresholds: dict[str, float]) -> JsonObject:
        """Put new thresholds in force for requests that come from now on; returns those in force,
        or ``error``."""
        try:
            return {} if self._guard is None else self._guard.set_thresholds(bundle, thresholds)
        except SettingError as error:
            return {"error": str(error)}
