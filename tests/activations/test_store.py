"""The store resumes, refuses what is not its own, and names what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_lm

from safeswitch.activations import store
from safeswitch.activations.record import record
from safeswitch.activations.states import Activations
from safeswitch.activations.store import collect, load, sequence_hash
from safeswitch.core.errors import ActivationError, ArtifactError, FingerprintError, SettingError
from safeswitch.core.types import ReadPoint

POINTS = [ReadPoint.parse(text) for text in ("1@prompt_end", "3@pilot:1", "2@window", "2@window:4")]
SEQUENCES = [[(7 * i + j) % 200 + 10 for j in range(4 + (5 * i) % 11)] for i in range(11)]
LENGTHS = [len(row) - 1 - i % 2 for i, row in enumerate(SEQUENCES)]
TEXTS = [f"text {i}" for i in range(11)]


def fill(folder: Path, **changes: object) -> Activations:
    settings = {"lm": tiny_lm(), "sequences": SEQUENCES, "prompt_lengths": LENGTHS, "points": POINTS, "shard_size": 3,
                "texts": TEXTS}
    return collect(folder=folder, **{**settings, **changes})  # type: ignore[arg-type]


def same(a: Activations, b: Activations, *, exactly: bool = True) -> None:
    assert a.points == b.points
    for point in a.points:
        torch.testing.assert_close(a.at(point), b.at(point), **({"rtol": 0, "atol": 0} if exactly else {}))
    assert {p: m.tolist() for p, m in a.masks.items()} == {p: m.tolist() for p, m in b.masks.items()}
    assert a.texts == b.texts


def test_a_store_gives_what_recording_in_one_go_gives(tmp_path: Path) -> None:
    acts = fill(tmp_path)
    same(acts, record(tiny_lm(), SEQUENCES, LENGTHS, POINTS, texts=TEXTS), exactly=False)
    same(acts, load(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "manifest.json", *(f"shard-0000{i}.safetensors" for i in range(4)), "texts.json",
    ]


def test_a_run_killed_after_two_shards_is_taken_up_with_equal_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def dying(*args: object, **kwargs: object) -> Activations:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return record(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "record", dying)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"2 of 4 shards are missing, the first shard-00002"):
        load(tmp_path / "a")
    done: list[tuple[int, int]] = []
    resumed = fill(tmp_path / "a", progress=lambda a, b: done.append((a, b)))
    assert len(calls) == 5
    assert done == [(3, 11), (6, 11), (9, 11), (11, 11)]
    same(resumed, fill(tmp_path / "b"))


def test_a_truncated_shard_is_named_and_recorded_again(tmp_path: Path) -> None:
    whole = fill(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match=r"shard-00001\.safetensors is damaged"):
        load(tmp_path)
    same(fill(tmp_path), whole)
    shard.write_bytes(b"")
    same(fill(tmp_path), whole)


def test_other_models_data_points_and_settings_are_refused_naming_both(tmp_path: Path) -> None:
    fill(tmp_path)
    mine, other = tiny_lm(), tiny_lm(seed=5)
    with pytest.raises(FingerprintError, match=f"{mine.fingerprint}.*{other.fingerprint}"):
        fill(tmp_path, lm=other)
    changed = [[99, *row[1:]] for row in SEQUENCES]
    with pytest.raises(ArtifactError, match=f"{sequence_hash(SEQUENCES, LENGTHS)}.*{sequence_hash(changed, LENGTHS)}"):
        fill(tmp_path, sequences=changed)
    with pytest.raises(ArtifactError, match=r"points .*3@pilot:1.*now it is .*1@prompt_end"):
        fill(tmp_path, points=POINTS[:1])
    for change in ({"shard_size": 4}, {"dtype": torch.float16}):
        with pytest.raises(ArtifactError, match=next(iter(change))):
            fill(tmp_path, **change)


def test_manifests_of_unknown_format_or_with_gaps_are_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ArtifactError, match="format 99 is not known"):
        load(tmp_path)
    path.write_text(json.dumps({k: v for k, v in manifest.items() if k != "rows"}))
    with pytest.raises(ArtifactError, match="lacks rows"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json does not exist"):
        load(tmp_path)
    with pytest.raises(ArtifactError, match="shards but no manifest"):
        fill(tmp_path)


def test_the_dtype_asked_for_is_stored(tmp_path: Path) -> None:
    assert fill(tmp_path, dtype=torch.bfloat16).at(POINTS[0]).dtype == torch.bfloat16
    assert json.loads((tmp_path / "manifest.json").read_text())["dtype"] == "bfloat16"


def test_bad_states_name_the_shard_and_its_rows(tmp_path: Path) -> None:
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[SEQUENCES[7][0]] = float("inf")
    with pytest.raises(ActivationError, match=r"shard-0000\d\.safetensors, rows \d\.\.\d of the data: states at"):
        fill(tmp_path, lm=lm)


@pytest.mark.parametrize("change", [{"shard_size": 0}, {"texts": ["one"]}, {"prompt_lengths": [1]}, {"sequences": []}])
def test_wrong_calls_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        fill(tmp_path, **change)
    assert not list(tmp_path.iterdir())


def test_wrong_points_leave_no_manifest_behind(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="layer 9"):
        fill(tmp_path, points=[ReadPoint(9)])
    assert not list(tmp_path.iterdir())
