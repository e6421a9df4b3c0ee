"""What the operator tells the guard of one engine, the same for both engines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from safeswitch.core.errors import SettingError, check_choice
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Decision
from safeswitch.data.reasons import EXPLAIN, GAP, reason
from safeswitch.engines.context import POLICIES

KEY = "safeswitch"
"""Name of our entry in vLLM's ``additional_config``, ``extra_args`` and ``vllm_xargs``."""
INJECTION = "injection"
"""Name of the bundle that reads what came with a request as data, where there is one."""
OFF = "SAFESWITCH_OFF"
"""Environment variable: ``1`` lets every request pass untouched."""


@dataclass(frozen=True)
class GuardSettings:
    """Settings of the guard on one engine.

    Args:
        bundles: Switch folders by name; the first is the default.
        policy: ``enforce``, ``observe`` (scores only, nothing changed) or ``off``, for requests
            that do not say.
        allow_other_model: Accept bundles fitted on other weights.
        stop_token: Id that a worker emits for a request to be rolled back; None takes the
            tokenizer's padding token, or the last id of the vocabulary. No guarded request can
            produce it by itself.
        try_v2_runner: Let the engine start on vLLM's V2 model runner, on which the guard has not
            been run yet.
        explain: ``sentence`` puts a sentence behind each refusal that names the kind of harm and a
            safe way on (:mod:`safeswitch.data.reasons`); ``off`` leaves refusals as they are.
        record: Read points whose states are kept for fitting; such an engine guards nothing and has
            no bundles.
    """

    bundles: Mapping[str, str]
    policy: str = "enforce"
    allow_other_model: bool = False
    stop_token: int | None = None
    try_v2_runner: bool = False
    explain: str = "off"
    record: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("GuardSettings", "policy", self.policy, POLICIES)
        check_choice("GuardSettings", "explain", self.explain, EXPLAIN)
        object.__setattr__(self, "record", tuple(self.record))
        if bool(self.bundles) == bool(self.record):
            raise SettingError(
                "GuardSettings: give at least one switch folder in bundles, or else points to "
                "record"
            )

    @property
    def default(self) -> str:
        """Name of the bundle for requests that name none."""
        return next(iter(self.bundles))

    def explanation(self, decision: Decision, text: str) -> str:
        """What is put behind the reply to a request with this ``text``; empty where nothing is."""
        explained = self.explain == "sentence" and decision.refuses and decision.actuator != "none"
        return GAP + reason(decision.category, text) if explained and decision.category else ""

    def to_dict(self) -> JsonObject:
        return {**asdict(self), "bundles": dict(self.bundles)}

    @classmethod
    def parse(cls, additional_config: object) -> GuardSettings | None:
        """Settings in an engine's ``additional_config``, None when it holds none.

        Raises:
            SettingError: an entry that cannot be used.
        """
        found = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if found is None:
            return None
        known = set(cls.__dataclass_fields__)
        if not isinstance(found, Mapping) or set(found) - known or "bundles" not in found:
            raise SettingError(
                f"additional_config[{KEY!r}] needs 'bundles' (name to folder) and takes "
                f"{', '.join(sorted(known))}; got {found!r}"
            )
        return cls(**found)


def switched_off() -> bool:
    """Whether the operator has switched the guard off by environment variable."""
    return os.environ.get(OFF, "") == "1"
