"""The guard on a CUDA device, where vLLM has what its CPU build lacks: asynchronous scheduling,
captured graphs, the V2 runner.

pytest -m gpu
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeswitch.engines.settings import GuardSettings
from tests.engines.test_vllm_engine import ROWS, assert_same, expected
from tests.engines.vllm_made import NEW, needs_vllm, switch, vllm_engine

pytestmark = [
    needs_vllm, pytest.mark.gpu, pytest.mark.slow, pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]  # fmt: skip


def engine(tmp_path: Path, **changes: Any) -> Any:
    switch("llama").save_pretrained(tmp_path / "switch")
    settings = GuardSettings({"default": str(tmp_path / "switch")}, try_v2_runner=True)
    return vllm_engine(
        "llama", switch=settings, enforce_eager=False, num_gpu_blocks_override=14, **changes
    )


@pytest.mark.parametrize("v2", ["0", "1"], ids=["v1", "v2"])
@pytest.mark.parametrize("ahead", [False, True], ids=["in-step", "async"])
def test_replies_are_those_of_the_transformers_engine(
    v2: str, ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", v2)
    with engine(tmp_path, async_scheduling=ahead) as made:
        assert made.llm.vllm_config.use_v2_model_runner == (v2 == "1")
        assert_same(made.generate(ROWS, max_new_tokens=NEW), expected("llama"))
        for i in range(0, 80, 20):
            assert_same(made.generate([ROWS[i]], max_new_tokens=NEW), [expected("llama")[i]])


def test_seeds_and_stop_strings_hold_when_the_scheduler_is_ahead(tmp_path: Path) -> None:
    want = expected("llama")
    stop = next(c for c in want[0].text[2:] if c.isprintable() and ord(c) < 128)
    with engine(tmp_path, async_scheduling=True) as made:
        assert_same(
            made.generate(ROWS, max_new_tokens=NEW, stop_strings=[stop]),
            expected("llama", stop_strings=[stop]),
        )
        options: dict[str, Any] = {
            "max_new_tokens": NEW,
            "do_sample": True,
            "temperature": 0.8,
            "seed": 7,
        }
        alone = [
            made.generate([row], **options | {"seed": 7 + i})[0].token_ids
            for i, row in enumerate(ROWS[:16])
        ]
        assert [reply.token_ids for reply in made.generate(ROWS[:16], **options)] == alone
