"""Files are whole or absent, and what is damaged is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from safeswitch.core import artifact
from safeswitch.core.artifact import (
    check_writable,
    read_json,
    read_tensors,
    write_atomic,
    write_json,
    write_tensors,
    write_text,
)
from safeswitch.core.errors import ArtifactError

not_root = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere"
)


def test_text_json_and_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "ä\r\n\u2028")
    assert (tmp_path / "a" / "b.txt").read_bytes().decode() == "ä\r\n\u2028"
    write_json(tmp_path / "c.json", {"z": [1, None], "a": "ü"})
    assert list(read_json(tmp_path / "c.json").items()) == [("z", [1, None]), ("a", "ü")]
    tensors = {
        "half": torch.arange(4).to(torch.bfloat16),
        "turned": torch.arange(6.0).view(2, 3).T,
        "none": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    again = read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(again[n], t) and again[n].dtype == t.dtype for n, t in tensors.items())


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left on device; nothing was changed there"):
        write_atomic(tmp_path / "x", half)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]


def test_an_interrupt_in_the_middle_leaves_the_old_file_too(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")

    def stop(path: Path) -> None:
        path.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", stop)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]


def test_a_reader_never_sees_a_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "x", "old")
    seen: list[str] = []
    real = os.fsync

    def look(handle: int) -> None:
        seen.append((tmp_path / "x").read_text())
        real(handle)

    monkeypatch.setattr(artifact.os, "fsync", look)
    write_text(tmp_path / "x", "new")
    assert (seen, (tmp_path / "x").read_text()) == (["old"], "new")


def test_a_folder_in_the_way_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "folder"):
        with pytest.raises(ArtifactError, match="cannot write"):
            write_text(path, "x")
    assert not any((tmp_path / "folder").iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable JSON"),
        (b"{", "not readable JSON"),
        (b"\xff\xfe", "not readable JSON"),
        (b"[1]", "holds list"),
    ],
)
def test_json_that_is_none_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_json(tmp_path / "x.json")
    assert "x.json" in str(caught.value)
    with pytest.raises(ArtifactError, match=r"y\.json does not exist"):
        read_json(tmp_path / "y.json")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_know_is_refused_and_the_old_file_stays(
    number: float, tmp_path: Path
) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(
        ArtifactError, match=r"x\.json: not valid JSON: .*; nothing was changed there"
    ):
        write_json(tmp_path / "x.json", {"a": [number]})
    assert [(p.name, read_json(p)) for p in tmp_path.iterdir()] == [("x.json", {"a": 1})]


@pytest.mark.parametrize("keep", [0, 7, 8, 40, -1])
def test_truncated_tensors_are_named(keep: int, tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(10)})
    content = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(content[:keep])
    with pytest.raises(ArtifactError, match=r"t\.safetensors is damaged or truncated"):
        read_tensors(tmp_path / "t.safetensors")


def test_a_place_is_checked_without_making_anything(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file is a file, not a folder"):
        check_writable(tmp_path / "file" / "a" / "b")


@not_root
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="may not be written"):
        check_writable(tmp_path / "a")


def test_tensors_of_one_storage_are_written_each_on_its_own(tmp_path: Path) -> None:
    whole: Any = torch.arange(4.0)
    write_tensors(tmp_path / "t.safetensors", {"a": whole, "b": whole[:2], "c": whole})
    again = read_tensors(tmp_path / "t.safetensors")
    assert (again["b"].tolist(), again["c"].tolist()) == ([0.0, 1.0], [0.0, 1.0, 2.0, 3.0])
