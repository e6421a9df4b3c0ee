"""Two processes and one place: the second ends with a clear error, nothing is mixed, and nothing is
lost when one is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from safeswitch.core.errors import ArtifactError
from safeswitch.engines.jsonl import generate_file
from safeswitch.engines.mock import MockEngine
from safeswitch.fitting.kept import Kept
from safeswitch.serving.keys import add_key, read_keys, remove_key
from tests.switch.made import engine, requests

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
fork = multiprocessing.get_context("fork")
ASKED = requests(40)
OPTIONS: dict[str, Any] = {"identity": {"model": "m"}, "chunk": 2}


def answers(name: str, seconds: float = 0.0) -> MockEngine:
    def answer(text: str) -> str:
        time.sleep(seconds)
        return f"{name}: {text}"

    return MockEngine(answer)


@contextmanager
def running(work: Callable[..., object], *given: Any, until: Callable[[], bool]) -> Iterator[Any]:
    """A process that does ``work``, once it has come so far."""
    process = fork.Process(target=work, args=given)
    process.start()
    try:
        end = time.monotonic() + 120
        while not until():
            assert process.is_alive()
            assert time.monotonic() < end
            time.sleep(0.005)
        yield process
    finally:
        process.kill()
        process.join()


def slowly(out: Path) -> None:
    generate_file(answers("first", 0.02), ASKED, out, **OPTIONS)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def test_a_second_writer_of_replies_is_refused_and_the_first_is_not_disturbed(
    call: Any, tmp_path: Path
) -> None:
    out, asked = tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    asked.write_text('{"id": "r0", "prompt": "hello"}\n')
    with running(slowly, out, until=lambda: len(rows(out)) > 3) as process:
        with pytest.raises(
            ArtifactError, match=rf"out\.jsonl is being written by process {process.pid} on "
        ):
            generate_file(answers("second"), ASKED, out, **OPTIONS)
        process.join()
        assert process.exitcode == 0
    assert sorted(row["id"] for row in rows(out)) == sorted(e.id for e in ASKED)
    assert all(row["reply"].startswith("first") for row in rows(out))
    assert {p.name for p in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "out.jsonl.run.json"}


def test_the_command_ends_with_an_error_where_another_one_is_writing(
    call: Any, tmp_path: Path
) -> None:
    out, asked = tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    asked.write_text('{"id": "r0", "prompt": "hello"}\n')
    with running(slowly, out, until=lambda: len(rows(out)) > 0) as process:
        os.kill(process.pid, signal.SIGSTOP)
        code, _, error = call("generate", "--model", "nano", "--in", asked, "--out", out)
        assert code != 0
        assert f"is being written by process {process.pid}" in " ".join(error.split())
        os.kill(process.pid, signal.SIGCONT)


def test_a_writer_that_is_killed_is_gone_on_from(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with running(slowly, out, until=lambda: len(rows(out)) > 5) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    kept = out.read_bytes()
    before = rows(out)
    assert 5 < len(before) < len(ASKED)
    with out.open("ab") as stream:
        stream.write(b'{"id": "torn')
    done = generate_file(answers("second"), ASKED, out, **OPTIONS)
    assert (done.new, done.rows) == (len(ASKED) - len(before), len(ASKED))
    assert out.read_bytes().startswith(kept)
    assert sorted(row["id"] for row in rows(out)) == sorted(e.id for e in ASKED)
    assert not out.with_name("out.jsonl.lock").exists()


def holds(folder: Path) -> None:
    with Kept(engine(), folder):
        time.sleep(60)


def test_a_second_fit_is_refused_where_answers_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with (
        running(holds, folder, until=lambda: (folder / ".lock.json").exists()) as process,
        pytest.raises(
            ArtifactError,
            match=rf"kept is being written by (process {process.pid} on |another process)",
        ),
    ):
        Kept(engine(), folder)
    Kept(engine(), folder).close()


@pytest.mark.slow
def test_a_second_comparison_into_one_run_folder_is_refused(call: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [
        "compare", "--model", "nano", "--switch", "nano", "--methods", "base", "--benchmark", "nano_lookalike", "--limit", "48",
        "--batch-size", "1", "--out", run,
    ]  # fmt: skip
    # a process of its own: torch's threads do not outlive a fork
    command = [sys.executable, "-m", "safeswitch.cli.main", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not (run / ".lock.json").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        try:
            code, _, error = call(*arguments)
        finally:
            process.send_signal(signal.SIGCONT)
        assert code != 0
        assert "run is being written by" in " ".join(error.split())
        assert process.wait(120) == 0
    found = rows(run / "replies" / "base" / "nano_lookalike.jsonl")
    assert len(found) == len({row["id"] for row in found}) == 48


def together(work: Callable[[Path, str], object], path: Path, names: list[str]) -> None:
    """As many processes as names, all at once."""
    barrier = fork.Barrier(len(names))

    def one(name: str) -> None:
        barrier.wait()
        work(path, name)

    processes = [fork.Process(target=one, args=(name,)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(names)


def test_six_keys_added_at_once_are_six(tmp_path: Path) -> None:
    names = [f"k{i}" for i in range(6)]
    together(add_key, tmp_path / "keys.json", names)
    assert sorted(key.name for key in read_keys(tmp_path / "keys.json").values()) == names


def test_a_key_that_was_removed_beside_others_being_added_does_not_come_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys.json"
    for i in range(4):
        add_key(path, f"old{i}")

    def change(path: Path, name: str) -> None:
        if name.startswith("old"):
            remove_key(path, name)
        else:
            add_key(path, name)

    together(change, path, [f"{kind}{i}" for i in range(4) for kind in ("old", "new")])
    assert sorted(key.name for key in read_keys(path).values()) == [f"new{i}" for i in range(4)]
