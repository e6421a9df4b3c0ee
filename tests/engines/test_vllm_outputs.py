"""What attention and MLP add, read in vLLM: the transformers engine is the independent
expectation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safeswitch.core.errors import ModelError
from safeswitch.core.types import Output, Reply, Site
from safeswitch.engines.settings import GuardSettings
from safeswitch.engines.vllm.outputs import PAIRED, let_out, plan_taps, refuse_unless_paired
from safeswitch.switch.switch import Switch
from tests.engines.vllm_made import (
    NEW,
    SUPPRESS,
    needs_vllm,
    reference,
    vllm_engine,
)
from tests.switch.made import requests, settings, two_of_three

ROWS = requests(40)
BLOCKS = 4


class Pairs(nn.Module):
    """A stream of blocks that return pairs, and whose norms write to both halves in place, as
    vLLM's do."""

    def __init__(self) -> None:
        super().__init__()
        made = type(
            "LlamaDecoderLayer", (nn.Module,), {"__module__": "vllm.model_executor.models.llama"}
        )
        self.layers = nn.ModuleList(made() for _ in range(BLOCKS))
        draw = torch.Generator().manual_seed(0)
        self.start, *self.added = (torch.randn(3, 5, generator=draw) for _ in range(1 + 2 * BLOCKS))

    def forward(self) -> list[Tensor]:
        let: list[Tensor] = []
        own: Any = self
        hidden, residual = self.start.clone(), None
        own._maybe_add_hidden_state(let, 0, hidden, None)
        for block in range(BLOCKS):
            stream = hidden if residual is None else hidden.add_(residual)
            residual = stream + self.added[2 * block]
            hidden = self.added[2 * block + 1].clone()
            own._maybe_add_hidden_state(let, block + 1, hidden, residual)
        hidden.zero_()
        return let


@pytest.mark.parametrize(
    "sites",
    [
        [Output(1, "attn")],
        [Output(4, "mlp"), Output(4, "attn")],
        [3, Output(2, "mlp"), 0],
        [*range(BLOCKS), *(Output(b, "attn") for b in (1, 2, 3, 4)), Output(3, "mlp")],
    ],
    ids=str,
)
def test_what_is_let_out_is_what_was_added(sites: Sequence[Site]) -> None:
    model, taps = Pairs(), plan_taps(sites)
    let_out(model, taps)
    order = [tap.site for number in sorted(taps) for tap in taps[number]]
    assert set(sites) <= set(order)
    found = dict(zip(order, model(), strict=True))
    for site in sites:
        if isinstance(site, Output):
            expected = model.added[2 * (site.block - 1) + (site.part == "mlp")]
        else:
            expected = model.start + sum(model.added[: 2 * site])
        torch.testing.assert_close(found[site], expected)


def test_nothing_is_let_out_that_is_not_needed() -> None:
    taps = plan_taps([Output(3, "attn"), Output(2, "mlp")])
    order = [tap.site for number in sorted(taps) for tap in taps[number]]
    assert order == [2, Output(2, "mlp"), Output(3, "attn")]


def test_layers_that_are_not_known_to_return_pairs_are_refused_by_name() -> None:
    with pytest.raises(
        ModelError,
        match=r"vLLM's Linear is not known .* LlamaDecoderLayer, MistralDecoderLayer, .*--engine",
    ):
        refuse_unless_paired([nn.Linear(1, 1)])


@needs_vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PAIRED)
def test_every_layer_on_the_list_is_one_of_vllm(kind: str) -> None:
    module, _, name = kind.rpartition(".")
    assert hasattr(pytest.importorskip(module), name)


@cache
def fitted(name: str, *layers: int) -> Switch:
    """Fitted on what blocks add, by default the first two, at a threshold where rounding decides
    nothing."""
    chosen = settings(stages="stage1", readers=("outputs",), layers=layers or (1, 2))
    made = Switch.fit(reference(name), requests(), chosen, complied=two_of_three)
    assert made.gate.stage1 is not None
    return replace(made, gate=replace(made.gate, stage1=replace(made.gate.stage1, threshold=0.5)))


def assert_same(got: Sequence[Reply], name: str, switch: Switch) -> None:
    options = {"max_new_tokens": NEW, "do_sample": False, **SUPPRESS}
    expected = reference(name).generate(ROWS, switch, **options)
    assert len({reply.decision.scores["stage1"] for reply in expected}) > 10
    assert [reply.token_ids for reply in got] == [reply.token_ids for reply in expected]
    for one, other in zip(got, expected, strict=True):
        assert one.decision.scores == pytest.approx(other.decision.scores, abs=1e-4)


@needs_vllm
@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore")
def test_compiled_models_read_what_the_bundle_at_a_path_reads_now(tmp_path: Path) -> None:
    # vLLM keeps compiled models on disk: that of the first bundle must not be taken for the
    # second's
    for made in (fitted("llama"), fitted("llama", 2)):
        made.save_pretrained(tmp_path / "switch")
        told = GuardSettings({"default": str(tmp_path / "switch")})
        with vllm_engine("llama", switch=told, enforce_eager=False) as engine:
            assert_same(engine.generate(ROWS, max_new_tokens=NEW), "llama", made)


@needs_vllm
@pytest.mark.filterwarnings("ignore")
def test_a_model_of_which_vllm_lets_nothing_out_is_refused() -> None:
    from safeswitch.engines.vllm.model import GuardedModel

    said = (
        r"vLLM's Linear does not let out .* and the bundle reads 1\.attn; .* --engine transformers"
    )
    with pytest.raises(ModelError, match=said):
        GuardedModel._let_out(nn.Linear(1, 1), {Output(1, "attn")}, set(), None)  # type: ignore[arg-type]
