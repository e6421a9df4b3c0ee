"""Means over the last tokens of requests that lie one behind the other in a step; and vLLM on bundles
that read them. There the transformers engine is the independent expectation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from safeswitch.core.errors import SettingError
from safeswitch.core.types import Reply
from safeswitch.engines.context import Context
from safeswitch.engines.settings import GuardSettings
from safeswitch.engines.vllm.means import means_of_last
from safeswitch.engines.vllm.settings import engine_flags
from safeswitch.nano import switch_path, weights_path
from safeswitch.switch.switch import Switch
from tests.engines.vllm_asked import ROWS, assert_same, expected
from tests.engines.vllm_made import NEW, SUPPRESS, needs_vllm, reference, switch, vllm_engine
from tests.fitting.test_harms import named
from tests.switch.made import engine, requests, settings, two_of_three

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own, when it is imported
STEP = [(0, 9), (41, 1), (42, 1), (0, 3), (7, 4), (0, 1)]
"""First position and number of tokens of each request in a step: whole prompts, rows in their reply
(the second looks like a continuation of the first), and a prompt whose first tokens are not here."""


def step() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    positions = torch.cat([torch.arange(n) + first for first, n in STEP])
    return torch.randn(len(positions), 5, generator=draw), positions


def by_hand(states: Tensor, tokens: int) -> Tensor:
    """Request by request; NaN where its tokens in the step do not reach."""
    found, place = [], 0
    for first, n in STEP:
        for i in range(n):
            count = min(tokens or 10**6, first + i + 1)
            own = states[place + i - count + 1 : place + i + 1] if count <= i + 1 else None
            found.append(torch.full((5,), torch.nan) if own is None else own.mean(0))
        place += n
    return torch.stack(found)


@pytest.mark.parametrize("tokens", [0, 2, 4, 20])
def test_means_are_those_of_each_request_alone_or_not_a_number(tokens: int) -> None:
    states, positions = step()
    expected = by_hand(states, tokens)
    # two replies at positions 41 and 42 cannot be told from one: a reply's means are never read
    chance = 10
    got = means_of_last(states, positions, tokens)
    keep = torch.arange(len(states)) != chance
    torch.testing.assert_close(got[keep], expected[keep], equal_nan=True)
    assert bool(expected[keep].isnan().any())
    assert bool(expected[keep].isfinite().any())


def test_positions_of_several_axes_count_by_the_first() -> None:
    states, positions = step()
    wide = torch.stack([positions, positions * 0, positions * 0])
    torch.testing.assert_close(
        means_of_last(states, wide, 3), means_of_last(states, positions, 3), equal_nan=True
    )


def test_a_request_whose_states_are_not_finite_costs_no_other_its_mean() -> None:
    states, positions = step()
    clean = means_of_last(states, positions, 4)
    states[3, 1], states[4, 0] = torch.inf, torch.nan
    got = means_of_last(states, positions, 4)
    assert bool(got[3:8].isnan().all())
    others = [0, 1, 2, 8, *range(9, len(states))]
    torch.testing.assert_close(got[others], clean[others], equal_nan=True)


def test_large_states_of_one_request_do_not_round_away_anothers() -> None:
    states, positions = step()
    clean = means_of_last(states, positions, 4)
    states[:9] *= 1e7
    torch.testing.assert_close(means_of_last(states, positions, 4)[11:14], clean[11:14])


def test_prompts_are_not_cut_where_a_bundle_reads_means(tmp_path: Path) -> None:
    names = {"steps": ("steps",), "means": ("means",)}
    for name, readers in names.items():
        chosen = settings(readers=readers, stages="stage1", layers=(1, 2))
        made = Switch.fit(engine(), requests(), chosen, complied=two_of_three)
        made.save_pretrained(tmp_path / name)
    flags = {
        name: engine_flags(GuardSettings({"default": str(tmp_path / name)}), ["X"])
        for name in names
    }
    assert "enable_chunked_prefill" not in flags["steps"]
    assert flags["means"]["enable_chunked_prefill"] is False
    recorded = engine_flags(GuardSettings({}, "off", record=("1@mean:4",)), ["X"])
    assert recorded["enable_chunked_prefill"] is False


def config(**changes: Any) -> Any:
    """What a worker is told of an engine that takes every prompt in one step."""
    found: dict[str, Any] = {
        "enable_chunked_prefill": False, "long_prefill_token_threshold": 0, "use_ubatching": False,
        "prefill_context_parallel_size": 1, "mamba_cache_mode": "none", **changes,
    }  # fmt: skip
    one = SimpleNamespace(**found)
    return SimpleNamespace(scheduler_config=one, parallel_config=one, cache_config=one)


@needs_vllm
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"enable_chunked_prefill": True}, "--no-enable-chunked-prefill"),
        ({"long_prefill_token_threshold": 64}, "no --long-prefill-token-threshold"),
        ({"use_ubatching": True}, "--enable-dbo"),
        ({"prefill_context_parallel_size": 2}, "--prefill-context-parallel-size"),
        ({"mamba_cache_mode": "align"}, "--no-enable-prefix-caching"),
    ],
    ids=str,
)
def test_an_engine_that_may_cut_prompts_is_refused_by_the_flag(
    change: dict[str, Any], told: str
) -> None:
    from safeswitch.engines.vllm.load import refuse_cut_prompts

    refuse_cut_prompts(config())
    with pytest.raises(SettingError, match=f"one step; this engine needs .*{told}"):
        refuse_cut_prompts(config(**change))


@needs_vllm
def test_runs_that_read_a_prompt_use_no_prefix_cache_and_others_do() -> None:
    from vllm import SamplingParams

    from safeswitch.engines.vllm.choice import BundlePlan, GuardedChoice, Runs
    from safeswitch.engines.vllm.settings import Task

    sent: list[Any] = []

    def skips(mode: str, whole: bool) -> Any:
        plan = BundlePlan("id", 3, True, True, True, False, whole=whole)
        own, task = SamplingParams(), Task("r", "default", mode)
        choice = GuardedChoice(
            lambda prompt, params: sent.append(params), {}, Runs(own, own, ()), task, plan, 0,
            lambda ended: None, None,
        )  # type: ignore[arg-type,return-value]  # fmt: skip
        choice._run(own, task)
        assert not own.skip_reading_prefix_cache
        return bool(sent[-1].skip_reading_prefix_cache)

    modes = ("enforce", "pilot", "observe", "refuse", "judge")
    assert [skips(mode, True) for mode in modes] == [True, True, True, False, False]
    assert not any(skips(mode, False) for mode in modes)


@needs_vllm
def test_the_server_sets_the_flag_for_such_bundles_alone(tmp_path: Path) -> None:
    from safeswitch.serving.vllm.server import serve_arguments

    made = Switch.fit(
        engine(),
        requests(),
        settings(readers=("means",), stages="stage1", layers=(1, 2)),
        complied=two_of_three,
    )
    made.save_pretrained(tmp_path)
    flag = "--no-enable-chunked-prefill"
    model = str(weights_path())
    assert flag in serve_arguments(model, GuardSettings({"default": str(tmp_path)}), [])
    assert flag not in serve_arguments(model, GuardSettings({"default": str(switch_path())}), [])


def reading_means(stages: str) -> Switch:
    """A first stage on means, at a threshold where rounding decides nothing; ``two``: with the second
    stage and the watch of the switch that other tests use."""
    chosen = settings(stages="stage1", readers=("means",), layers=(1, 2))
    made = Switch.fit(reference("llama"), named(), chosen, complied=two_of_three)
    first = made.gate.stage1
    assert first is not None
    assert made.gate.harms is not None
    assert any(point.position.kind == "mean" for point in made.gate.harms.points)
    gate = made.gate
    if stages == "two":
        gate = replace(switch("llama").gate, harms=gate.harms)
    return replace(made, gate=replace(gate, stage1=replace(first, threshold=0.5)))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("bundles")
    bundles = {name: str(folder / name) for name in ("stage1", "two")}
    for name, path in bundles.items():
        reading_means(name).save_pretrained(path)
    # a step holds a whole prompt
    made = vllm_engine("llama", switch=GuardSettings(bundles), max_num_batched_tokens=512)
    yield made
    made.close()


def asked(guarded: Any, monkeypatch: pytest.MonkeyPatch, prompts: Any, bundle: str) -> list[Reply]:
    context = partial(Context, bundle=bundle)
    monkeypatch.setattr("safeswitch.engines.vllm.engine.Context", context)
    found: list[Reply] = guarded.generate(prompts, max_new_tokens=NEW)
    return found


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("stages", ["stage1", "two"])
def test_vllm_decides_on_means_as_the_transformers_engine(
    guarded: Any, monkeypatch: pytest.MonkeyPatch, stages: str
) -> None:
    want = expected("llama", reading_means(stages))
    assert {reply.decision.fired for reply in want} == {True, False}
    assert len({reply.decision.scores["stage1"] for reply in want}) > 10
    got = asked(guarded, monkeypatch, ROWS, stages)
    assert_same(got, want)
    kinds = [reply.decision.category for reply in want]
    assert len(set(kinds)) > 2
    assert [reply.decision.category for reply in got] == kinds


@needs_vllm
@pytest.mark.slow
def test_means_are_whole_for_prompts_that_the_prefix_cache_holds(
    guarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long prompts that begin alike, each sent three times: without care the cache would spare vLLM
    the tokens of the mean."""
    assert guarded.llm.vllm_config.cache_config.enable_prefix_caching
    assert not guarded.llm.vllm_config.scheduler_config.enable_chunked_prefill
    words = ["river", "stone", "cloud", "a", "b", "c", "d", "it", "ZAP"]
    long = [" ".join([*words[: 3 + i] * (24 // (3 + i)), *words[i:]]) for i in range(4)]
    assert min(map(len, reference("llama").lm.encode(long))) > 24
    options = {"max_new_tokens": NEW, "do_sample": False, **SUPPRESS}
    want = reference("llama").generate(long, reading_means("stage1"), **options)
    for _ in range(3):
        assert_same(asked(guarded, monkeypatch, long, "stage1"), want)
