"""A bundle and a run folder of the version of 2026-11-26 (commit f8f656a), in ``earlier/``: a tiny
model's two-stage switch with a watch, and two methods on three requests of two suites of nano."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from safeswitch._version import __version__
from safeswitch.bench.bench import BenchSettings, run_bench
from safeswitch.bench.candidates import Fitting, prepare
from safeswitch.bench.log import RENAMED_SETTINGS, LoggedRows, RunLog
from safeswitch.bench.tables import rates
from safeswitch.core.artifact import read_json, write_json
from safeswitch.core.errors import ArtifactError
from safeswitch.fitting.refusal_head import HeadSettings
from safeswitch.fitting.settings import FitSettings
from safeswitch.nano.bench import PREFIX
from safeswitch.switch.switch import Switch
from tests.switch.made import engine, requests

EARLIER = Path(__file__).parent / "earlier"
METHODS = ("base", "safeswitch")
SUITES = (f"{PREFIX}plain_unsafe", f"{PREFIX}lookalike")


def earlier_switch() -> Switch:
    return Switch.from_pretrained(EARLIER / "methods" / "safeswitch")


def earlier_settings() -> FitSettings:
    """The settings on record, in the names of today."""
    stored = dict(read_json(EARLIER / "manifest.json")["identity"]["fit"]["settings"])
    known = {field.name for field in fields(FitSettings)}
    for old, new in RENAMED_SETTINGS.items():
        if new in known:
            stored[new] = stored.pop(old)
    head = {**stored.pop("head")}
    head["ranks"] = tuple(head["ranks"])
    lists = {name: tuple(stored[name]) for name in ("readers", "layers")}
    # no token of a refusal weighed more than another
    before = HeadSettings(**head, opening=0, opening_weight=1.0)
    return FitSettings(**{**stored, **lists, "head": before})


def test_a_bundle_of_an_earlier_version_decides_and_replies_as_it_did() -> None:
    expected = json.loads((EARLIER / "expected.json").read_text(encoding="utf-8"))
    switch = earlier_switch()
    assert switch.fingerprint == expected["fingerprint"]
    rows = requests()[: len(expected["replies"])]
    replies = engine().generate(rows, switch, max_new_tokens=12, do_sample=False)
    for reply, before in zip(replies, expected["replies"], strict=True):
        decision = reply.decision
        assert list(reply.token_ids) == before["token_ids"]
        assert (decision.fired, decision.stage) == (before["fired"], before["stage"])
        assert decision.token_index == before["token_index"]
        assert decision.scores == pytest.approx(before["scores"], abs=1e-5)
    assert {reply.decision.fired for reply in replies} == {True, False}


def test_the_rates_of_an_earlier_run_folder_are_those_that_it_had() -> None:
    found = rates(LoggedRows(RunLog.open(EARLIER)))
    with (EARLIER / "rates.csv").open(encoding="utf-8", newline="") as file:
        before = list(csv.DictReader(file))
    assert [(row["method"], row["metric"]) for row in found] == [
        (row["method"], row["metric"]) for row in before
    ]
    for row, old in zip(found, before, strict=True):
        figures = [row[name] for name in ("value", "low", "high")]
        assert figures == pytest.approx([float(old[name]) for name in ("value", "low", "high")])


def cut(folder: Path) -> tuple[Path, str]:
    """A copy whose run was interrupted in the middle of its last row, and that row; by the
    libraries of today, whose versions are part of a run's identity."""
    shutil.copytree(EARLIER, folder)
    manifest = read_json(folder / "manifest.json")
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    manifest["identity"]["versions"] = {"safeswitch": __version__, **versions}
    write_json(folder / "manifest.json", manifest)
    path = folder / "replies" / "safeswitch" / "nano_lookalike.jsonl"
    text = path.read_text(encoding="utf-8")
    *others, last = text.splitlines(keepends=True)
    path.write_text("".join(others) + last[:40], encoding="utf-8")
    return path, last


def resume(folder: Path, settings: FitSettings) -> RunLog:
    switch = earlier_switch()
    fit = {"sources": "made", "settings": settings.to_dict(), "switch": switch.fingerprint}
    how = Fitting(dict, settings, own=switch)
    return run_bench(
        engine(),
        BenchSettings("own", SUITES, limit=3, max_new_tokens=8, fit=fit),
        lambda log: prepare(engine(), METHODS, how, log),
        folder,
    )


def test_an_earlier_run_that_was_cut_off_is_resumed(tmp_path: Path) -> None:
    path, last = cut(tmp_path / "run")
    kept = path.read_text(encoding="utf-8").splitlines()[:-1]
    log = resume(tmp_path / "run", earlier_settings())
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[: len(kept)] == kept
    (made,) = (json.loads(line) for line in lines[len(kept) :])
    before = json.loads(last)
    for name in ("id", "request", "reply", "finish_reason", "prompt_tokens", "reply_tokens"):
        assert made[name] == before[name]
    assert made["decision"]["scores"] == pytest.approx(before["decision"]["scores"], abs=1e-5)
    assert log.manifest["finished"] is not None


def test_an_earlier_run_is_not_resumed_under_other_settings(tmp_path: Path) -> None:
    cut(tmp_path / "run")
    with pytest.raises(ArtifactError, match="holds a run with another fit"):
        resume(tmp_path / "run", replace(earlier_settings(), miss_budget=0.02))


def test_settings_that_came_later_are_read_as_what_was_done_before(
    tmp_path: Path,
) -> None:
    def identity(**settings: Any) -> dict[str, Any]:
        return {"identity": {"model": "m", "fit": {"sources": "made", "settings": settings}}}

    RunLog.start(tmp_path, identity(budget=0.1, reply_tokens=12))
    RunLog.start(tmp_path, identity(budget=0.1, reply_tokens=12, calibrate="pooled"))
    head = {"opening": 0, "opening_weight": 1.0}
    RunLog.start(tmp_path / "head", identity(head={"epochs": 2}))
    RunLog.start(tmp_path / "head", identity(head={"epochs": 2, **head}))
    with pytest.raises(ArtifactError, match="another fit"):
        RunLog.start(tmp_path / "head", identity(head={"epochs": 2, **head, "opening": 6}))
    for other in ({"reply_tokens": 12, "calibrate": "sources"}, {"reply_tokens": 13}):
        with pytest.raises(ArtifactError, match="another fit"):
            RunLog.start(tmp_path, identity(budget=0.1, **other))
