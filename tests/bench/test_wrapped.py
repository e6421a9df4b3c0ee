"""What a method does around generation is run, and counted, by the one way of running suites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from safeswitch.bench.candidates import check_methods
from safeswitch.bench.log import plain
from safeswitch.bench.runner import Meter
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Decision, Reply
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.engine import Around
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch

SWITCH = Switch(Gate(), NoAction())


class Echo:
    """Three tokens in, two out, and a note of what it was asked."""

    lm = None
    asked: list[tuple[Any, Any, Any]]

    def __init__(self) -> None:
        self.asked = []

    def generate(
        self, prompts: Sequence[Any], switch: Switch | None = None, **options: Any
    ) -> list[Reply]:
        self.asked.append((list(prompts), switch, options))
        return [Reply(str(p), (1, 2), "stop", Decision(False, "none"), 3) for p in prompts]


class AsksTwice(Around):
    def generate(
        self, prompts: Sequence[Any], switch: Switch | None = None, **options: Any
    ) -> list[Reply]:
        self.inner.generate(prompts, **options)
        return self.inner.generate([f"{p}!" for p in prompts], switch=switch, **options)


def test_a_wrapper_is_given_the_engine_and_all_its_tokens_are_counted() -> None:
    engine = Echo()
    meter = Meter(engine, AsksTwice)  # type: ignore[arg-type]
    replies = meter.generate(["a", "b"], SWITCH, max_new_tokens=5)
    assert [r.text for r in replies] == ["a!", "b!"]
    assert [(switch, options) for _, switch, options in engine.asked] == [
        (None, {"max_new_tokens": 5}),
        (SWITCH, {"max_new_tokens": 5}),
    ]
    assert meter.read(2) == {"fed_tokens": 6.0, "made_tokens": 4.0, "peak_bytes": None}
    assert meter.read(2)["fed_tokens"] == 0


def test_joined_names_are_methods_and_unknown_ones_are_refused() -> None:
    check_methods(["base", "safeswitch+scans", "cast+head"])
    for names, message in (
        (["laser"], "unknown method 'laser'"),
        (["base", "base"], "each once"),
        ([], "at least one"),
    ):
        with pytest.raises(SettingError, match=message):
            check_methods(names)
    assert plain("merge:/tmp/d.safetensors") == "merge:_tmp_d.safetensors"
