"""``safeswitch export``: a folder on which a switch of the model is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safeswitch.models.fingerprint import fingerprint_of_files
from safeswitch.nano import switch_path
from safeswitch.switch.switch import Switch


def test_a_switch_of_the_model_is_taken_on_the_folder(call: Any, tmp_path: Path) -> None:
    code, _, error = call("export", "--model", "nano", "--out", tmp_path / "out")
    assert code == 0, error
    base = Switch.from_pretrained(switch_path()).base
    assert base is not None
    assert fingerprint_of_files(tmp_path / "out") == base.fingerprint


def test_what_cannot_be_loaded_is_one_line_and_no_folder(call: Any, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    code, _, error = call("export", "--model", tmp_path / "m.onnx", "--out", tmp_path / "out")
    assert code == 2
    assert "it is ONNX; allowed: a hub id" in error
    assert not (tmp_path / "out").exists()
