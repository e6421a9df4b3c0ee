"""Public sets from a hub that the test plays: files, licences, revisions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safeswitch.bench.benchmark import BENCHMARKS, load
from safeswitch.bench.fetch import fetch, on_hub
from safeswitch.core.errors import ArtifactError, DataError, SettingError

COMMIT = "c" * 40


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What the hub was asked for: names and revisions."""
    seen: list[tuple[str, str | None]] = []

    def dataset_info(self: Any, name: str, revision: str | None = None) -> Any:
        seen.append((name, revision))
        return SimpleNamespace(sha=COMMIT if revision is None else revision * 8)

    def load_dataset(
        name: str, config: str | None, *, split: str, revision: str | None
    ) -> list[dict[str, str]]:
        seen.append((name, revision))
        return [{"prompt": f"{config} question {i}?", "category": "kind"} for i in range(3)]

    monkeypatch.setattr("safeswitch.data.hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return seen


def test_a_set_is_written_with_licence_and_commit_where_a_run_finds_it(
    asked: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    (about,) = fetch(["or_bench"], tmp_path)
    hub = BENCHMARKS["or_bench"].hub[0].name
    assert asked == [(hub, None), (hub, COMMIT)]
    assert about["hub"] == {hub: COMMIT}
    assert about == json.loads((tmp_path / "or_bench.source.json").read_text(encoding="utf-8"))
    assert (about["licence"], about["rows"]) == ("CC-BY-4.0", 3)
    found = load(BENCHMARKS["or_bench"], data=tmp_path, hub=False)
    assert (found.of, found.file_hash) == (3, about["file_hash"])
    assert {example.label for example in found.examples} == {BENCHMARKS["or_bench"].label}


def test_a_revision_is_taken_for_one_set(
    asked: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    (about,) = fetch(["or_bench"], tmp_path, "aaaaa")
    assert set(about["hub"].values()) == {"aaaaa" * 8}
    assert asked[-1][1] == "aaaaa" * 8
    with pytest.raises(SettingError, match="a revision is of one set; 2 were named"):
        fetch(["or_bench", "multijail"], tmp_path, "aaaaa")


def test_what_is_there_is_kept_and_what_is_unknown_is_named(
    asked: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    (tmp_path / "or_bench.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match="exists; remove it"):
        fetch(["or_bench"], tmp_path)
    assert (tmp_path / "or_bench.jsonl").read_text(encoding="utf-8") == "mine"
    with pytest.raises(SettingError, match="'nothing' is no set on the hub; known: "):
        fetch(["nothing"], tmp_path)
    assert not asked
    assert all(benchmark.hub for benchmark in on_hub())


def test_a_hub_that_does_not_answer_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def down(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("safeswitch.data.hub.HfApi.dataset_info", down)
    with pytest.raises(DataError, match=r"cannot find hub data set .*no network"):
        fetch(["or_bench"], tmp_path)
    assert not list(tmp_path.iterdir())
