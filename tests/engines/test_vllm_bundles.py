"""Several switches in one vLLM engine on the CPU, in the same batches: each request is held to its
own. The transformers engine is the independent expectation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from safeswitch.core.harms import OTHER
from safeswitch.core.types import Reply
from safeswitch.engines.context import Context
from safeswitch.engines.settings import GuardSettings
from safeswitch.methods.base import METHODS
from safeswitch.methods.resolve import resolve
from safeswitch.probers.harms import HarmReader
from safeswitch.switch.rules import Rule, Rules
from safeswitch.switch.switch import Switch
from tests.engines.test_vllm_guard import END
from tests.engines.vllm_asked import (
    ROWS,
    assert_same,
    be_late,
    collect,
    expected,
    sampling,
    sent,
    unwatched,
)
from tests.engines.vllm_made import NEW, SUPPRESS, needs_vllm, reference, switch, vllm_engine
from tests.methods.test_contract import PARTS, SETTINGS, obeys
from tests.switch.made import requests, settings, two_of_three

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CYBER_LOGGED = Rules(kinds=(("cyber", Rule("log")),))


def midway(reader: str, layers: tuple[int, ...]) -> Switch:
    """A first stage fitted on ``reader``, at a threshold where rounding decides nothing."""
    chosen = settings(stages="stage1", readers=(reader,), layers=layers)
    made = Switch.fit(reference("llama"), ROWS, chosen, complied=two_of_three)
    assert made.gate.stage1 is not None
    return replace(made, gate=replace(made.gate, stage1=replace(made.gate.stage1, threshold=0.5)))


def first_token() -> Switch:
    """One whose stage 1 decides alone, so that refusals begin with the first token."""
    made = switch("llama")
    return replace(made, gate=replace(made.gate, stage2=None, watch=None, watch_until=None))


def seeing() -> Switch:
    """The fitted switch of other tests, with a reader that tells its requests apart."""
    made = switch("llama")
    states = reference("llama").collect(requests(), [END], max_new_tokens=0)[1].at(END)
    middle = states.median(0).values
    axis = int((states - middle).abs().mean(0).argmax())
    weight = torch.zeros(4, 1, states.shape[1])
    weight[0, 0, axis], weight[1, 0, axis] = 1.0, -1.0
    bias = torch.tensor([-float(middle[axis]), float(middle[axis]), -9.0, -9.0])
    seen = HarmReader(("violence", "cyber", OTHER), (END,), weight, bias)
    return replace(made, gate=replace(made.gate, harms=seen))


def methods() -> list[str]:
    """Names of the methods that say that they run in vLLM, and of one that is joined."""
    names = [name for name in METHODS if "vllm" in METHODS[name].tags.engines]
    assert {"safeswitch", "head", "interpolate", "patch", "ensemble"} <= set(names)
    return [*names, "ensemble+patch"]


@cache
def switches() -> dict[str, Switch]:
    """Every switch of this file, by the name of its bundle."""
    found = {
        "default": switch("llama"),
        "other": unwatched(),
        "first": first_token(),
        "seeing": seeing(),
        # what the first two of three blocks add: it reads the embedding and both middle layers
        "steps": midway("steps", (1, 2)),
        "outputs": midway("outputs", (1, 2)),
    }
    for name in methods():
        found[name] = resolve(name, SETTINGS, obeys).prepare(reference("llama"), PARTS)
    return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("bundles")
    for name, made in switches().items():
        made.save_pretrained(folder / name)
    bundles = {name: str(folder / name) for name in switches()}
    made = vllm_engine("llama", switch=GuardSettings(bundles))
    yield made
    made.close()


@pytest.fixture
def replies(engine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replies under the bundle and the rules that are asked for."""

    def generate(prompts: Any, **context: Any) -> list[Reply]:
        made = "safeswitch.engines.vllm.engine.Context"
        monkeypatch.setattr(made, lambda: Context(**context))
        found: list[Reply] = engine.generate(prompts, max_new_tokens=NEW)
        return found

    return generate


def bare(reply: Reply) -> tuple[Any, ...]:
    return reply.token_ids, reply.decision.fired, reply.decision.stage


def mixed(engine: Any, count: int, names: list[str]) -> dict[str, list[tuple[Any, ...]]]:
    """Tokens and decisions by bundle, of the same requests under each, all sent together."""
    rows = reference("llama").lm.encode(ROWS[:count])

    async def everything() -> list[list[list[Any]]]:
        work = []
        for name in names:
            bias = {"logit_bias": {0: -100.0}} if name == "base" else {}
            work.append(collect(engine, rows, sampling("FINAL_ONLY", **bias), bundle=name))
        return await asyncio.gather(*work)

    found = {}
    for name, outs in zip(names, engine._wait(everything()), strict=True):
        last = [one[-1] for one in outs]
        found[name] = [
            (tuple(o.outputs[0].token_ids), o.safeswitch.fired, o.safeswitch.stage) for o in last
        ]
    return found


@pytest.mark.parametrize("name", ["steps", "outputs"])
def test_what_blocks_add_scores_as_in_the_transformers_engine(replies: Any, name: str) -> None:
    want = expected("llama", switches()[name])
    assert {reply.decision.fired for reply in want} == {True, False}
    assert len({reply.decision.scores["stage1"] for reply in want}) > 10
    assert_same(replies(ROWS, bundle=name), want)


def test_the_step_between_layers_reads_the_embedding_too() -> None:
    assert switches()["steps"].gate.layers == (0, 1, 2)


@pytest.mark.parametrize("late", [0.0, 0.05], ids=["prompt", "late"])
def test_refusals_that_begin_with_the_first_token_are_known_in_streams(
    engine: Any, late: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a whole reply comes as one output, as it does when the front end is late."""
    want = expected("llama", switches()["first"])
    assert {reply.decision.token_index for reply in want if reply.decision.fired} == {0}
    be_late(engine, late, monkeypatch)
    got = sent(engine, sampling("DELTA"), tell_refusals=True, bundle="first")
    for reply, outs in zip(want, got, strict=True):
        assert [o.refusing for o in outs] == [reply.decision.fired] * len(outs)
        assert tuple(t for o in outs for t in o.outputs[0].token_ids) == reply.token_ids


def test_two_bundles_in_one_batch_are_each_enforced(engine: Any) -> None:
    """The second has no watch and other thresholds; its own change by HTTP's way leaves the first
    alone."""
    names = ["default", "other"]
    want = {name: list(map(bare, expected("llama", switches()[name]))) for name in names}
    assert want["default"] != want["other"]
    assert mixed(engine, len(ROWS), names) == want
    set_to = engine.llm.collective_rpc
    before = engine._wait(set_to("safeswitch_thresholds", args=("other", {})))[0]
    try:
        engine._wait(set_to("safeswitch_thresholds", args=("other", {"stage1": 1.0})))
        got = mixed(engine, len(ROWS), names)
    finally:
        engine._wait(set_to("safeswitch_thresholds", args=("other", before)))
    assert got["default"] == want["default"]
    assert not any(fired for _, fired, _ in got["other"])


def test_every_method_that_says_so_runs_here_as_in_the_transformers_engine(engine: Any) -> None:
    asked = ROWS[:32]
    found = mixed(engine, len(asked), methods())
    fired = {}
    for name in methods():
        options = {"max_new_tokens": NEW, "do_sample": False, **SUPPRESS}
        want = list(map(bare, reference("llama").generate(asked, switches()[name], **options)))
        assert found[name] == want, name
        fired[name] = sum(flagged for _, flagged, _ in want)
    assert fired["base"] == 0 < fired["ensemble"] < fired["head"] == len(asked)


def kinds(found: list[Reply]) -> list[tuple[Any, ...]]:
    return [
        (r.token_ids, r.decision.fired, r.decision.act, r.decision.category, r.decision.severity)
        for r in found
    ]


@pytest.mark.parametrize("rules", [None, CYBER_LOGGED, Rules(Rule("annotate", 0.0))])
def test_kinds_and_acts_are_those_of_the_transformers_engine(
    replies: Any, rules: Rules | None
) -> None:
    made = switches()["seeing"]
    if rules is not None:
        made = replace(made, gate=made.gate.with_rules(rules))
    options = {"max_new_tokens": NEW, "do_sample": False}
    want = kinds(reference("llama").generate(requests(), made, **options, **SUPPRESS))
    assert kinds(replies(requests(), bundle="seeing", rules=rules)) == want
    fired = [row for row in want if row[1]]
    if rules is CYBER_LOGGED or rules is None:
        assert {row[3] for row in fired} == {"violence", "cyber"}
    assert {row[2] for row in fired} == {
        None: {""},
        CYBER_LOGGED: {"log", "refuse"},
    }.get(rules, {"annotate"})
