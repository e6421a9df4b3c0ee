"""Formats of a bundle: a later one is refused with what to do, an older one is migrated in memory."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from safeswitch._version import __version__
from safeswitch.core.artifact import read_json, write_json
from safeswitch.core.errors import ArtifactError
from safeswitch.nano import switch_path
from safeswitch.switch import format as bundle_format
from safeswitch.switch import switch as module
from safeswitch.switch.format import FORMAT_VERSION, STEPS, Stored
from safeswitch.switch.switch import Switch

EARLIER = Path(__file__).parents[1] / "bench" / "earlier" / "methods" / "safeswitch"


def sums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def of_version(folder: Path, number: Any) -> Path:
    shutil.copytree(switch_path(), folder)
    write_json(
        folder / "config.json", {**read_json(folder / "config.json"), "format_version": number}
    )
    return folder


def renamed(stored: Stored) -> Stored:
    """A step as a later version may have one: a field of the gate has got another name."""
    gate = {**stored.config["gate"]}
    gate["stops_at"] = gate.pop("watch_until")
    return stored._replace(config={**stored.config, "gate": gate})


def back(stored: Stored) -> Stored:
    gate = {**stored.config["gate"]}
    gate["watch_until"] = gate.pop("stops_at")
    return stored._replace(config={**stored.config, "gate": gate})


def test_every_older_format_from_the_first_step_on_has_a_step() -> None:
    assert sorted(STEPS) == list(range(min(STEPS, default=FORMAT_VERSION), FORMAT_VERSION))


def test_a_bundle_of_a_later_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = of_version(tmp_path / "later", FORMAT_VERSION + 1)
    # what a later version keeps in its other files is its own affair
    (folder / "probers.safetensors").unlink()
    before = sums(folder)
    with pytest.raises(ArtifactError) as refused:
        Switch.from_pretrained(folder)
    told = str(refused.value)
    assert f"format version {FORMAT_VERSION + 1} is of a later version" in told
    assert f"({__version__}) reads {FORMAT_VERSION}" in told
    assert "pip install --upgrade safeswitch" in told
    assert sums(folder) == before


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "1", None])
def test_what_is_no_format_is_refused(tmp_path: Path, number: Any) -> None:
    with pytest.raises(ArtifactError, match="is not supported; this library"):
        Switch.from_pretrained(of_version(tmp_path / "odd", number))


def test_older_formats_go_through_every_step_and_stay_on_disk_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = of_version(tmp_path / "older", 1)
    before, plain = sums(folder), Switch.from_pretrained(folder)
    for place in (bundle_format, module):
        monkeypatch.setattr(place, "FORMAT_VERSION", 3)
    with pytest.raises(ArtifactError, match=r"version 1 is not supported; .* reads 3$"):
        Switch.from_pretrained(folder)
    monkeypatch.setattr(bundle_format, "STEPS", {1: renamed, 2: back})
    migrated = Switch.from_pretrained(folder)
    assert sums(folder) == before
    assert migrated.gate.watch_until == plain.gate.watch_until
    assert migrated.gate.thresholds() == plain.gate.thresholds()
    migrated.save_pretrained(tmp_path / "saved")
    assert read_json(tmp_path / "saved" / "config.json")["format_version"] == 3
    again = Switch.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == migrated.fingerprint


def test_a_step_that_fails_is_told_as_a_bundle_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_format, "FORMAT_VERSION", 2)
    monkeypatch.setattr(bundle_format, "STEPS", {1: back})
    with pytest.raises(ArtifactError, match=r"does not describe a bundle .*KeyError: 'stops_at'"):
        Switch.from_pretrained(of_version(tmp_path / "older", 1))


def test_reading_an_earlier_bundle_leaves_its_files_as_they_are() -> None:
    """How it decides is held by ``tests/bench/test_earlier.py``."""
    before = sums(EARLIER)
    assert Switch.from_pretrained(EARLIER).describe()["format_version"] == FORMAT_VERSION
    assert sums(EARLIER) == before
