"""A bundle in which anything was changed is refused, or loads to exactly what it says: nothing is
ignored or guessed."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from safeswitch.core.artifact import read_tensors, write_tensors
from safeswitch.core.errors import ArtifactError
from safeswitch.core.types import Position, ReadPoint
from safeswitch.nano import switch_path
from safeswitch.probers.appended import AppendingProber, LikelihoodProber, TransitionProber
from safeswitch.probers.condition import Condition, ConditionProber
from safeswitch.probers.ensemble import EnsembleProber
from safeswitch.switch.actuators.base import (
    Actuator,
    Canned,
    FullHead,
    LowRankHead,
    NoAction,
    Steering,
    SystemPrompt,
)
from safeswitch.switch.actuators.heads import EarlyHead, SoftHead, SparseHead
from safeswitch.switch.actuators.prompts import FramedPrompt
from safeswitch.switch.actuators.weights import Adapter, Weights
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import BaseModel, Switch
from tests.switch.made import fitted, model

Path_ = tuple[Any, ...]
FREE = {
    "model_id",
    "revision",
    "fingerprint",
    "library_version",
    "text",
    "system",
    "before",
    "after",
    "name",
    "rule",
}
"""Fields that hold any text."""
OPTIONAL = {
    "watch_until",
    "l2",
    "lr",
    "weight_decay",
    "dropout",
    "epochs",
    "smooth",
    "revision",
    "base_model",
}
"""Fields that may be null."""


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def ensemble(d: int) -> EnsembleProber:
    prober = EnsembleProber([ReadPoint(1), ReadPoint(2)], members=3, size=4)
    prober.places_, prober.bases_ = torch.tensor([0, 1, 0]), rand(3, 4, d)
    prober.weights_, prober.offsets_ = rand(3, 4), rand(3)
    return prober


def transition(d: int) -> AppendingProber:
    prober = TransitionProber([1, 2])
    prober.reference_ = rand(2, d)
    return AppendingProber(prober, [5, 6])


@cache
def switches() -> dict[str, Switch]:
    """Every kind of action, and the probers that only code makes."""
    base = BaseModel.of(model())
    vocab, d = base.vocab_size, base.hidden_size
    low = LowRankHead(rand(2, d), rand(vocab, 2), 0.5)
    difference = torch.zeros(vocab, d)
    difference[3, 4] = difference[7, 1] = 1.0
    actions: list[Actuator] = [
        NoAction(), Canned("No."), FullHead(rand(vocab, d), rand(vocab), 0.5), SystemPrompt("Careful."),
        Steering((1, 2), rand(2, d), 0.5, -0.5, 0.1, "reply"), SparseHead.of(difference, 0.5), SoftHead(low, 0.25, 0.75),
        EarlyHead(low, 3, 2.0, 4), FramedPrompt("s", (("u", "r"),), "b", "a"), Adapter({"a.b": (rand(2, d), rand(3, 2))}, 0.5),
        Weights.of({"w": rand(3), "x.y": rand(2)}, 0.5),
    ]  # fmt: skip
    made = {action.kind: Switch(Gate(always=True), action, base) for action in actions}
    condition = ConditionProber.of(
        [Condition("a", 1, rand(d), 0.5, True), Condition("b", 2, rand(d), 0.25, False)], "a or b"
    )
    nll = AppendingProber(LikelihoodProber(base.num_layers, 2, 0.5), [3])
    gates = {
        "ensemble": Gate(stage1=Stage(ensemble(d), 0.5), fail="open"),
        "condition": Gate(stage1=Stage(condition, 0.5)),
        "transition": Gate(stage1=Stage(transition(d), 0.5), fail="open"),
        "late": Gate(late=Stage(nll, 0.5), late_every=3),
    }
    made |= {name: Switch(gate, low, base) for name, gate in gates.items()}
    return made | {"fitted": fitted()}


def written(switch: Switch) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    config, tensors, head = switch._state()
    return json.loads(json.dumps(config)), tensors, head


def paths(value: Any, here: Path_ = ()) -> Iterator[Path_]:
    """Where values stand in plain JSON, but in how the switch was made."""
    items: Any = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        if here or key not in ("record", "library_version"):
            yield (*here, key)
            yield from paths(item, (*here, key))


def parent(config: Any, path: Path_) -> Any:
    for key in path[:-1]:
        config = config[key]
    return config


def wrong(value: Any, name: Any) -> list[Any]:
    """Values of another type, or out of any range."""
    common = [[], {}, [[]], {"kind": "none"}, "\x1b[2J", "\ud800", 10**30, -(10**9)]
    if isinstance(value, bool):
        return [*common, "no", "", 0, 1, 0.5, None]
    if isinstance(value, int):
        return [*common, value + 0.5, str(value), True, -1, float("nan")]
    if isinstance(value, float):
        return [*common, str(value), True, float("nan"), float("inf")]
    if isinstance(value, str):
        return [
            *common,
            3,
            True,
            *([] if name in FREE else ["nonsense", "../../x", "4@pilot:1000000000", "1@window:3"]),
        ]
    if value is None:
        return [*common, True, -1]
    return [item for item in [*common, None, 3, "x", True] if item != value]


def meant(old: Any, path: Path_, value: Any) -> bool:
    """Whether the new value is as good as the old one."""
    if value is None or value == {"kind": "none"}:
        return path[-1] in {*OPTIONAL, "actuator"}
    if value == [] and path[-1] == "turns":
        return True
    if (
        value == "\x1b[2J"
    ):  # a model's own words may hold anything; what is shown is cleaned where it is shown
        return (
            path[0] == "actuator"
            and (path[-1] in FREE or "turns" in path[:-1])
            and isinstance(old, str)
        )
    if isinstance(value, str) and "\x1b" not in value and "\ud800" not in value:
        if value == "1@window:3" and "window" in str(old):
            return True
        return "turns" in path[:-1] or (path[-2:-1] == ("names",) and value == "nonsense")
    return type(value) is int and value == -1 and path[-1] in {"strength", "relief"}


def refused_or_same(folder: Path, config: Any) -> bool:
    """Whether it was refused; where not, the loaded switch is the one that the configuration tells
    of."""
    (folder / "config.json").write_text(json.dumps(config))
    try:
        loaded = Switch.from_pretrained(folder)
    except ArtifactError as error:
        return str(folder) in str(error)
    now = written(loaded)[0]
    assert {**now, "record": None} == {**config, "record": None}, (
        "something was ignored, coerced or guessed"
    )
    assert same_types(now["gate"], config["gate"])
    return False


def same_types(one: Any, two: Any) -> bool:
    """Bools are not numbers; whole numbers may stand for others."""
    if isinstance(one, dict):
        return all(same_types(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return all(same_types(a, b) for a, b in zip(one, two, strict=True))
    return isinstance(one, bool) == isinstance(two, bool)


def bundle(name: str, folder: Path) -> Path:
    switches()[name].save_pretrained(folder)
    return folder


NAMES = [
    "none", "canned", "full_head", "system_prompt", "steering", "sparse_head", "soft_head", "early_head", "framed_prompt",
    "adapter", "weights", "ensemble", "condition", "transition", "late", "fitted",
]  # fmt: skip


def test_every_action_is_here() -> None:
    assert set(NAMES) == set(switches())


@pytest.mark.parametrize("name", NAMES)
def test_a_field_of_another_type_or_out_of_range_is_refused(name: str, tmp_path: Path) -> None:
    folder = bundle(name, tmp_path / "b")
    config = written(switches()[name])[0]
    assert not refused_or_same(folder, config)
    for path in paths(config):
        old = parent(config, path)[path[-1]]
        for value in wrong(old, path[-1]):
            changed = copy.deepcopy(config)
            parent(changed, path)[path[-1]] = value
            if meant(old, path, value):
                continue
            assert refused_or_same(folder, changed), (path, value)


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_is_missing_or_unknown_is_refused(name: str, tmp_path: Path) -> None:
    folder = bundle(name, tmp_path / "b")
    config = written(switches()[name])[0]
    for path in paths(config):
        if not isinstance(parent(config, path), dict) or "settings" in path[:-1]:
            continue
        changed = copy.deepcopy(config)
        del parent(changed, path)[path[-1]]
        assert refused_or_same(folder, changed), path
    for path in [(), *paths(config)]:
        changed = copy.deepcopy(config)
        here = parent(changed, (*path, ""))
        if isinstance(here, dict):
            here["more"] = 1
            assert refused_or_same(folder, changed), path


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if name not in ("none", "canned", "system_prompt", "framed_prompt")],
)
def test_a_tensor_that_is_damaged_missing_unknown_or_of_another_shape_is_refused(
    name: str, tmp_path: Path
) -> None:
    """With ``fail: open`` as well: a prober that cannot run would let everything pass."""
    folder = bundle(name, tmp_path / "b")
    for file in ("probers.safetensors", "refusal_head.safetensors"):
        before = read_tensors(folder / file)
        for changed in changes(before):
            write_tensors(folder / file, changed)
            with pytest.raises(ArtifactError, match="b/"):
                Switch.from_pretrained(folder)
        write_tensors(folder / file, before)
    assert Switch.from_pretrained(folder).fingerprint == switches()[name].fingerprint


def changes(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for name, tensor in tensors.items():
        rest = {other: t for other, t in tensors.items() if other != name}
        yield rest
        yield {**rest, f"x{name}": tensor}
        yield {**rest, name: tensor[None]}
        yield {**rest, name: tensor[:0]}
        if not name.endswith(".b.up"):  # how wide a module is only the model can say
            yield {**rest, name: torch.cat([tensor, tensor])}
        if tensor.is_floating_point():
            bad = tensor.clone()
            for value in (torch.nan, torch.inf):
                bad.view(-1)[-1] = value
                yield {**rest, name: bad.clone()}
            yield {**rest, name: tensor.long()}
        else:
            yield {**rest, name: tensor.float()}
            yield {**rest, name: tensor - 10}
            if not name.endswith(("smooth", "places")) or "stage" in name:
                yield {**rest, name: tensor + 10**9}
    yield {**tensors, "stage1.more": torch.ones(1)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6,
)  # fmt: skip


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(st.data())
def test_any_value_at_any_place_is_refused_or_meant(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    folder = tmp_path / name
    if not folder.exists():
        bundle(name, folder)
    config = written(switches()[name])[0]
    for path in data.draw(st.lists(st.sampled_from(list(paths(config))), min_size=1, max_size=2)):
        with suppress(
            KeyError, IndexError, TypeError
        ):  # the first change may take away the place of the second
            parent(config, path)[path[-1]] = data.draw(JSON)
    refused_or_same(folder, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 1, "format_version": 1}', "has the field 'format_version' twice"),
        ('{"format_version": NaN}', "NaN is no number"),
        ('{"format_version": 1' + "0" * 5000 + "}", "not readable JSON"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "not readable JSON"),
        ('{"a": "' + "x" * (17 << 20) + '"}', "at most"),
    ],
    ids=["twice", "nan", "digits", "deep", "long"],
)
def test_json_that_is_not_strict_is_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = bundle("none", tmp_path / "b")
    (folder / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        Switch.from_pretrained(folder)


def test_an_error_names_file_field_value_and_what_is_allowed(tmp_path: Path) -> None:
    folder = bundle("fitted", tmp_path / "b")
    config = written(fitted())[0]
    config["gate"]["always"] = "no"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError) as caught:
        Switch.from_pretrained(folder)
    for part in (str(folder / "config.json"), "gate.always", "'no'", "true or false"):
        assert part in str(caught.value)


def test_what_would_move_a_terminal_is_cleaned_where_it_is_made(tmp_path: Path) -> None:
    base = replace(BaseModel.of(model()), model_id="a\x1b[2J\u202eb\nc")
    assert base.model_id == "a\ufffd[2J\ufffdb\ufffdc"
    Switch(Gate(always=True), NoAction(), base, {"data": {"x\x1b": "\x07ok"}}).save_pretrained(
        tmp_path
    )
    again = Switch.from_pretrained(tmp_path)
    assert again.base == base
    assert again.record == {"data": {"x\ufffd": "\ufffdok"}}


def test_a_stage_2_that_never_comes_is_refused() -> None:
    prober = EnsembleProber([ReadPoint(1, Position("pilot", 10**6))])
    with pytest.raises(Exception, match="must decide within 65536 tokens"):
        Gate(stage2=Stage(prober, 0.5))


def test_the_bundle_that_is_shipped_loads(tmp_path: Path) -> None:
    shutil.copytree(switch_path(), tmp_path / "s")
    assert (
        Switch.from_pretrained(tmp_path / "s").fingerprint
        == Switch.from_pretrained(switch_path()).fingerprint
    )
