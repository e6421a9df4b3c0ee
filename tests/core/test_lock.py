"""One writer at a time, who is named to the next; a dead one is no obstacle; readers are not
asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from safeswitch.core.errors import ArtifactError
from safeswitch.core.lock import file_writer, folder_writer

Writer = Callable[[Path], AbstractContextManager[None]]
HOLDS = (
    "import sys, time; from pathlib import Path; from safeswitch.core.lock import file_writer, folder_writer\n"
    "with {writer}(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"
)
both = pytest.mark.parametrize("writer", [file_writer, folder_writer], ids=["file", "folder"])


def holding(writer: Writer, place: Path) -> subprocess.Popen[bytes]:
    """A process that writes to ``place``, once it does."""
    code = HOLDS.format(writer=writer.__name__)  # type: ignore[attr-defined]
    process = subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


@both
def test_the_second_writer_is_told_who_is_writing_and_what_to_do(
    writer: Writer, tmp_path: Path
) -> None:
    place = tmp_path / "there" / "out"
    process = holding(writer, place)
    try:
        with pytest.raises(ArtifactError) as caught, writer(place):
            pass
        for part in (
            str(place),
            f"process {process.pid} on ",
            "since 20",
            "safeswitch.core.lock",
            "name another place",
        ):
            assert part in str(caught.value)
    finally:
        process.kill()
        process.communicate()


@both
def test_a_killed_writer_is_no_obstacle_and_nothing_is_left_at_the_end(
    writer: Writer, tmp_path: Path
) -> None:
    place = tmp_path / "out"
    process = holding(writer, place)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(tmp_path.rglob("*.lock"))
    with writer(place):
        told = json.loads(next(iter(tmp_path.rglob("*.lock.json"))).read_text())
        assert told["pid"] == os.getpid()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@both
def test_one_process_is_not_let_in_twice_either(writer: Writer, tmp_path: Path) -> None:
    with writer(tmp_path / "out"):
        with pytest.raises(ArtifactError, match=f"process {os.getpid()}"), writer(tmp_path / "out"):
            pass
        with writer(tmp_path / "other"):
            pass
    with writer(tmp_path / "out"):
        pass


def test_who_waits_gets_in_when_the_first_has_done(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from safeswitch.core.lock import file_writer\n"
        "path = Path(sys.argv[1])\n"
        "for _ in range(30):\n"
        "    with file_writer(path, wait_s=60): path.write_text(str(int(path.read_text()) + 1))\n"
    )
    count = tmp_path / "count"
    count.write_text("0")
    running = [subprocess.Popen([sys.executable, "-c", code, str(count)]) for _ in range(4)]
    assert [process.wait(120) for process in running] == [0] * 4
    assert count.read_text() == "120"
    assert [p.name for p in tmp_path.iterdir()] == ["count"]


def test_a_holder_cannot_write_to_the_terminal_of_the_next(tmp_path: Path) -> None:
    with file_writer(tmp_path / "out"):
        told = tmp_path / "out.lock.json"
        told.write_text(json.dumps({**json.loads(told.read_text()), "command": "a\x1b[2J"}))
        with pytest.raises(ArtifactError) as caught, file_writer(tmp_path / "out"):
            pass
        assert "\x1b" not in str(caught.value)
        told.write_text("[")
        with (
            pytest.raises(ArtifactError, match="by another process"),
            file_writer(tmp_path / "out"),
        ):
            pass


def test_where_no_lock_can_be_the_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ArtifactError, match=r"cannot lock .*below"),
        file_writer(tmp_path / "file" / "below"),
    ):
        pass
