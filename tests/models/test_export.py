"""A model written as a folder is the same model there, or there is no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.test_load import adapter, logits, saved
from tests.tiny import tiny_lm, tiny_tokenizer
from transformers import PretrainedConfig

from safeswitch.core.errors import ArtifactError, ModelError
from safeswitch.models.export import export_model
from safeswitch.models.fingerprint import fingerprint_of_files
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.load import check_for_vllm, find_source


def test_a_merged_adapter_is_a_folder_with_the_same_fingerprint_and_answers(tmp_path: Path) -> None:
    saved(tmp_path / "base")
    want = adapter(tmp_path / "base", tmp_path / "adapter")
    lm = LanguageModel.load(tmp_path / "adapter")
    export_model(lm, tmp_path / "out")
    assert find_source(tmp_path / "out").kind == "folder"
    assert fingerprint_of_files(tmp_path / "out") == lm.fingerprint
    again = LanguageModel.load(tmp_path / "out")
    torch.testing.assert_close(logits(again.model), want)
    assert again.encode(["hi"]) == lm.encode(["hi"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "out"]


def test_another_chat_template_goes_with_the_model(tmp_path: Path) -> None:
    lm = tiny_lm()
    lm.chat_template = "{{ messages[0].content }}!"
    export_model(lm, tmp_path / "out")
    again = LanguageModel.load(tmp_path / "out")
    assert again.encode(["hi"]) == [tiny_tokenizer()("hi!")["input_ids"]]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(
        ArtifactError, match="it is there already; name one that is absent or empty"
    ):
        export_model(tiny_lm(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(lm.tokenizer, "save_pretrained", full)
    with pytest.raises(
        ArtifactError, match=r"cannot write .*No space left on device; nothing was written there"
    ):
        export_model(lm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_comes_out_as_another_model_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, other = tiny_lm(), tiny_lm(seed=1)
    monkeypatch.setattr(lm.model, "save_pretrained", other.model.save_pretrained)
    with pytest.raises(ArtifactError, match="would hold another model"):
        export_model(lm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_quantised_weights_are_not_written_as_plain_ones(tmp_path: Path) -> None:
    lm: Any = tiny_lm()
    lm.model.config.quantization_config = PretrainedConfig(quant_method="torchao")
    with pytest.raises(ModelError, match=r"tiny-llama is quantised \(torchao\)"):
        export_model(lm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_vllm_is_refused_a_gguf_file_and_an_adapter_with_the_command_that_helps(
    tmp_path: Path,
) -> None:
    saved(tmp_path / "base")
    adapter(tmp_path / "base", tmp_path / "adapter")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    check_for_vllm(tmp_path / "base")
    for name, kind in (("adapter", "a PEFT adapter of"), ("m.gguf", "a GGUF file")):
        command = rf"safeswitch export --model .*{name} --out FOLDER"
        with pytest.raises(ModelError, match=rf"{kind}.*{command}.*--model FOLDER"):
            check_for_vllm(tmp_path / name)
