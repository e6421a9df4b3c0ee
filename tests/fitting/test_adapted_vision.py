"""A switch that was fitted on a text model, judged on vision-language models made out of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from safeswitch.cli.main import app
from safeswitch.core.errors import FingerprintError
from safeswitch.data.writers import write_examples
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.adapted import Standing, compare, standing
from safeswitch.models.language_model import LanguageModel
from tests.fitting.test_adapted import says_sorry
from tests.switch.made import fitted, model, requests
from tests.tiny import VOCAB
from tests.tiny_vision import vision_model, vision_processor

BUDGET = 0.25


def adapted_to_vision(noise: float = 0.0) -> LanguageModel:
    """The text model's weights inside a LLaVA whose vocabulary has one token more, moved by the
    adaptation."""
    text, seeing = model().model, vision_model("llava")
    with torch.no_grad():
        for name, parameter in copy.deepcopy(text).named_parameters():
            place = name.replace("model.", "model.language_model.", 1)
            target = seeing.get_parameter(place)
            moved = parameter + noise * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(0)
            )
            target[: len(parameter)] = moved if target.shape == parameter.shape else moved[:VOCAB]
    processor = vision_processor("llava")
    return LanguageModel(seeing, processor.tokenizer, model_id="tiny-adapted", processor=processor)


def measured(lm: LanguageModel) -> Standing:
    engine = TransformersEngine(lm, batch_size=64, allow_other_model=True)
    return standing(
        engine, fitted(), requests(), complied=says_sorry, budget=BUDGET, max_new_tokens=4
    )


def test_a_text_switch_is_kept_recalibrated_or_refitted_on_a_vision_model() -> None:
    before = measured(model())
    same = measured(adapted_to_vision())
    assert (
        same == before
    )  # on text the language model inside gives what it gave alone, the wider head too
    assert compare(before, same, BUDGET).answer == "keep"
    answers = [
        compare(before, measured(adapted_to_vision(noise)), BUDGET).answer
        for noise in (1e-3, 0.02, 1.0)
    ]
    assert answers == ["keep", "recalibrate", "refit"]


def test_without_leave_the_switch_is_refused_on_the_adapted_model() -> None:
    with pytest.raises(FingerprintError, match="tiny-adapted"):
        TransformersEngine(adapted_to_vision()).generate(["hi"], fitted(), max_new_tokens=2)


def test_the_command_says_what_to_do_and_why(tmp_path: Path) -> None:
    text, seeing = model(), adapted_to_vision(0.5)
    for lm, folder in ((text, "before"), (seeing, "after")):
        lm.model.save_pretrained(tmp_path / folder)
        (lm.processor or lm.tokenizer).save_pretrained(tmp_path / folder)
    fitted().save_pretrained(tmp_path / "switch")
    write_examples(requests(), tmp_path / "rows.jsonl")
    command = [
        "adapted",
        "--before",
        str(tmp_path / "before"),
        "--after",
        str(tmp_path / "after"),
        "--switch",
        str(tmp_path / "switch"),
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--budget",
        str(BUDGET),
    ]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert told["answer"] in ("recalibrate", "refit")
    assert told["reasons"]
    assert told["before"]["auroc"]["value"] >= told["after"]["auroc"]["value"]
