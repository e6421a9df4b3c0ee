"""One battery for every method: what the contract promises, whatever the method does.

Every method is fitted on one tiny model; a sample of them, one for each kind of gate, action and
wrapper, on every architecture (``extended`` for those that the everyday run leaves out).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from safeswitch.bench.runner import Meter
from safeswitch.core.artifact import write_tensors
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Example
from safeswitch.data.splits import grouped_split
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.settings import FitSettings
from safeswitch.methods.base import METHODS, Method
from safeswitch.methods.resolve import resolve
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import BodyActuator
from safeswitch.switch.capability import vllm_refusal
from safeswitch.switch.switch import Switch
from tests.switch.made import requests, settings
from tests.tiny import NAMES, tiny_lm

EXAMPLES = [
    replace(
        e, reply="No, sorry." if e.unsafe else None, category="fraud" if e.unsafe and i % 4 else ""
    )
    for i, e in enumerate(requests())
]
PARTS = grouped_split(EXAMPLES)
ASKED = ["ZAP river stone", "ask me", "ZAP it now, please", "and this one is safe"]
SETTINGS = settings(budget=0.25, watch=True, watch_every=2, readers=("layers",))
SMALL: dict[str, dict[str, Any]] = {
    "reroute": {"steps": 3, "batch": 2, "requests": 8},
    "safeswitch+reroute": {"steps": 3, "batch": 2, "requests": 8},
    "beam": {"step": 2, "beams": 2, "children": 2},
    "best_of_n": {"n": 2},
}
DIFFERENCES = ("merge", "patch_weights", "steer")
JOINS = (
    "safeswitch+scans",
    "cast+head",
    "scans+patch",
    "header+head",
    "check_input+head",
    "safeswitch+reroute",
    "note+prompt",
)
EVERY = (*METHODS, *JOINS)
FAST = ("gemma2", "gpt2", "mamba")


def obeys(example: Example, reply: str) -> bool:
    """A judge under which both outcomes occur for both labels, by id."""
    return int(example.id.removeprefix("r")) % 3 != 0


def made(name: str, lm: LanguageModel, folder: Path, chosen: FitSettings = SETTINGS) -> Method:
    """The method, small enough for a tiny model; with a file of differences where it needs one."""
    full = name
    if name in DIFFERENCES:
        parameter, weight = next(
            (n, p) for n, p in lm.model.named_parameters() if p.dim() == 2 and "embed" not in n
        )
        draw = torch.Generator().manual_seed(0)
        given = {parameter: 0.3 * torch.randn(weight.shape, generator=draw)}
        if name == "steer":
            given = {"direction.1": 3 * torch.randn(lm.hidden_size, generator=draw)}
        write_tensors(folder / "d.safetensors", given)
        full = f"{name}:{folder / 'd.safetensors'}"
    return resolve(full, chosen, obeys, **SMALL.get(name, {}))


@cache
def engine() -> TransformersEngine:
    return TransformersEngine(tiny_lm("llama"), batch_size=64)


@cache
def second_engine() -> TransformersEngine:
    """Another one, which shares nothing that was fitted on the first."""
    return TransformersEngine(tiny_lm("llama"), batch_size=64)


Prepared = Callable[[str], tuple[Method, Switch]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    found: dict[str, tuple[Method, Switch]] = {}

    def get(name: str) -> tuple[Method, Switch]:
        if name not in found:
            method = made(name, engine().lm, tmp_path_factory.mktemp("differences"))
            found[name] = (method, method.prepare(engine(), PARTS))
        return found[name]

    return get


def state_of(lm: LanguageModel) -> tuple[dict[str, torch.Tensor], int, list[str], list[bool]]:
    """Weights, hooks, modules, flags: all that a method could leave behind."""
    model = lm.model
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return (
        weights,
        hooks,
        [name for name, _ in model.named_modules()],
        [p.requires_grad for p in model.parameters()],
    )


def same_state(one: Any, two: Any) -> bool:
    return one[1:] == two[1:] and all(torch.equal(one[0][name], two[0][name]) for name in one[0])


def told(replies: Any) -> list[tuple[str, tuple[int, ...], bool, str]]:
    return [(r.text, r.token_ids, r.decision.fired, r.decision.actuator) for r in replies]


def run(method: Method, on: TransformersEngine, switch: Switch, prompts: list[str]) -> list[Any]:
    return method.wrap(on).generate(prompts, switch=switch, max_new_tokens=6, do_sample=False)


every = pytest.mark.parametrize("name", EVERY)


@every
def test_fitting_twice_gives_the_same_and_leaves_the_model_as_it_was(
    name: str, prepared: Prepared, tmp_path: Path
) -> None:
    fresh = second_engine()
    before = state_of(fresh.lm)
    again = made(name, fresh.lm, tmp_path).prepare(fresh, PARTS)
    assert again.fingerprint == prepared(name)[1].fingerprint
    assert again.record.get("grey") == prepared(name)[1].record.get("grey")
    assert same_state(before, state_of(fresh.lm))


@every
def test_a_saved_switch_replies_as_the_one_in_memory(
    name: str, prepared: Prepared, tmp_path: Path
) -> None:
    method, switch = prepared(name)
    switch.save_pretrained(tmp_path)
    loaded = Switch.from_pretrained(tmp_path)
    assert loaded.fingerprint == switch.fingerprint
    assert told(run(method, engine(), loaded, ASKED)) == told(run(method, engine(), switch, ASKED))


@every
def test_a_mixed_batch_is_each_row_alone(name: str, prepared: Prepared) -> None:
    method, switch = prepared(name)
    together = run(method, engine(), switch, ASKED)
    assert told(together) == [
        row for prompt in ASKED for row in told(run(method, engine(), switch, [prompt]))
    ]


@every
def test_the_decision_says_what_was_done(name: str, prepared: Prepared) -> None:
    method, switch = prepared(name)
    for reply in run(method, engine(), switch, ASKED):
        decision = reply.decision
        assert decision.stage in ("none", "always", "stage1", "stage2", "watch", "late")
        assert decision.fired == (decision.stage == "always") or method.tags.conditional
        if decision.fired:
            assert decision.actuator == switch.actuator.kind
        assert set(decision.scores) <= set(decision.thresholds) | {"stage1", "stage2"}


@every
def test_the_model_is_as_before_after_replies_and_after_an_error(
    name: str, prepared: Prepared
) -> None:
    method, switch = prepared(name)
    before = state_of(engine().lm)

    def fails(ids: Any, scores: Any) -> Any:
        raise RuntimeError("a processor fails")

    run(method, engine(), switch, ASKED)
    assert same_state(before, state_of(engine().lm))
    with pytest.raises(RuntimeError, match="a processor fails"):
        engine().generate(
            ["ZAP river", "ask me"],
            replace_text(switch),
            logits_processor=[fails],
            max_new_tokens=3,
        )
    assert same_state(before, state_of(engine().lm))


def replace_text(switch: Switch) -> Switch:
    """A switch whose action runs the model, so that the failing processor is reached."""
    return (
        switch
        if switch.actuator.place != "text"
        else replace(switch, gate=replace(switch.gate, always=False))
    )


@every
def test_tags_are_true(name: str, prepared: Prepared) -> None:
    method, switch = prepared(name)
    tags = method.tags
    runs_in_vllm = not tags.wraps and vllm_refusal(switch) is None
    assert tags.engines == (("transformers", "vllm") if runs_in_vllm else ("transformers",))
    assert tags.conditional == (not switch.gate.always)
    assert tags.per_row == (isinstance(switch.actuator, BodyActuator) and switch.actuator.per_row)
    assert tags.trains == (switch.base is not None)
    assert tags.wraps == (method.wrap(engine()) is not engine())
    if tags.difference:
        wanted = "a file of vectors" if name == "steer" else "differences of weights"
        with pytest.raises(SettingError, match=f"needs {wanted}"):
            resolve(name, SETTINGS, obeys).prepare(engine(), PARTS)


@every
def test_every_generated_token_is_counted(name: str, prepared: Prepared) -> None:
    """Against the model's own passes with a cache: each gives a token to a row that has not ended,
    but the one that shows that the request must be run anew."""
    method, switch = prepared(name)
    lm, passes = engine().lm, 0
    over = {lm.tokenizer.eos_token_id, lm.pad_token_id}

    def count(_model: Any, _args: Any, given: dict[str, Any]) -> None:
        nonlocal passes
        if given.get("use_cache"):
            passes += sum(int(token) not in over for token in given["input_ids"][:, -1])

    if "grey" in switch.record:
        switch = replace(switch, record={"grey": [-1.0, 1.0]})
    meter = Meter(engine(), method.wrap)
    hook = lm.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        replies = [
            meter.generate([prompt], switch, max_new_tokens=6, do_sample=False)[0]
            for prompt in ASKED
        ]
    finally:
        hook.remove()
    read_only = (
        ("stage1", "stage2", "watch") if switch.actuator.place in ("prompt", "body", "text") else ()
    )
    anew = sum(r.decision.stage in read_only and r.decision.actuator != "none" for r in replies)
    made = meter.read(1)["made_tokens"]
    assert made == passes - anew
    assert made > sum(len(r.token_ids) for r in replies) or not method.tags.wraps


def test_a_strength_a_request_is_that_request_alone_with_it(prepared: Prepared) -> None:
    _, switch = prepared("antidote")
    dials = [0.0, 1.0, -3.0, 8.0]
    together = engine().generate(ASKED, switch, max_new_tokens=6, strength=dials, do_sample=False)
    for prompt, dial, reply in zip(ASKED, dials, together, strict=True):
        alone = engine().generate(
            [prompt], switch, max_new_tokens=6, strength=dial, do_sample=False
        )[0]
        assert reply.token_ids == alone.token_ids
    untouched = engine().generate(ASKED[:1], max_new_tokens=6, do_sample=False)[0]
    assert together[0].token_ids == untouched.token_ids
    assert len({r.token_ids for r in together}) > 1
    with pytest.raises(SettingError, match="strength is for switches that steer"):
        engine().generate(ASKED, prepared("head")[1], strength=1.0)
    with pytest.raises(SettingError, match="4 prompts but 2 strengths"):
        engine().generate(ASKED, switch, strength=[1.0, 2.0])


GRID = [
    pytest.param(arch, name, marks=() if arch in FAST else pytest.mark.extended)
    for arch in NAMES if arch != "llama" for name in EVERY
]  # fmt: skip


@cache
def on_architecture(arch: str) -> TransformersEngine:
    return TransformersEngine(tiny_lm(arch), batch_size=64)


@pytest.mark.parametrize(("arch", "name"), GRID)
def test_methods_run_on_every_architecture(arch: str, name: str, tmp_path: Path) -> None:
    on = on_architecture(arch)
    before = state_of(on.lm)
    method = made(name, on.lm, tmp_path)
    switch = method.prepare(
        on, {part: rows[:24] if part == "train" else rows for part, rows in PARTS.items()}
    )
    together = run(method, on, switch, ASKED[:3])
    assert told(together) == [
        row for prompt in ASKED[:3] for row in told(run(method, on, switch, [prompt]))
    ]
    assert same_state(before, state_of(on.lm))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("laser", "unknown method 'laser'; known: antidote, base"),
        ("a+b+c", "at most a gate and an action"),
        ("prompt+head", "prompt has no gate"),
        ("safeswitch+beam", "beam is no action"),
        ("scans:file", "scans takes no file"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        resolve(name)
