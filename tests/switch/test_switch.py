"""The bundle: what is written is what is read, and nothing damaged, foreign or half-written is
taken for one."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file

from safeswitch.core import artifact
from safeswitch.core.errors import ArtifactError, FingerprintError, SettingError
from safeswitch.switch import switch as module
from safeswitch.switch.actuators.base import LowRankHead, NoAction, Steering, SystemPrompt
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import BaseModel, Switch
from tests.switch.made import engine, fitted, model, requests
from tests.tiny import tiny_lm

FILES = {"config.json", "probers.safetensors", "refusal_head.safetensors", "README.md"}
ASKED = requests(16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "deep" / "switch"
    fitted().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "switch")


def test_a_loaded_switch_decides_and_replies_like_the_one_that_was_saved(saved: Path) -> None:
    again = Switch.from_pretrained(saved)
    one, two = (
        engine().generate(ASKED, s, max_new_tokens=9, do_sample=False) for s in (fitted(), again)
    )
    assert 0 < sum(r.decision.fired for r in one) < len(ASKED)
    for a, b in zip(one, two, strict=True):
        assert (a.text, a.token_ids, a.finish_reason) == (b.text, b.token_ids, b.finish_reason)
        assert replace(a.decision, latency_s=0.0) == replace(b.decision, latency_s=0.0)


def test_the_folder_holds_four_files_without_pickle_and_the_tensors_bit_for_bit(
    saved: Path,
) -> None:
    assert {p.name for p in saved.iterdir()} == FILES
    _, tensors, head = fitted()._state()
    for name, expected in (("probers", tensors), ("refusal_head", head)):
        found = load_file(saved / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[n], t) for n, t in expected.items())
    for path in saved.iterdir():
        content = path.read_bytes()
        assert not content.startswith(
            (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
        )
        assert b"pickle" not in content


def test_the_configuration_is_strict_json_and_says_how_the_switch_was_fitted(saved: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    config = json.loads((saved / "config.json").read_text(), parse_constant=refuse)
    assert config["format_version"] == 1
    assert config["base_model"]["fingerprint"] == model().fingerprint
    assert set(config["gate"]["stages"]) == {"stage1", "stage2", "watch"}
    assert config["record"]["settings"]["budget"] == 0.25
    assert config["record"]["data"]["train"]["n"] == 48
    assert config == json.loads(json.dumps(fitted().describe()))


@pytest.mark.parametrize(
    "actuator",
    [NoAction(), SystemPrompt("Careful."), Steering((1, 2), torch.ones(2, 32), 0.5)],
    ids=lambda a: a.kind,
)
def test_a_switch_without_learned_probers_makes_the_round_trip_too(
    actuator: Any, tmp_path: Path
) -> None:
    switch = Switch(Gate(always=True), actuator)
    switch.save_pretrained(tmp_path / "s")
    again = Switch.from_pretrained(tmp_path / "s")
    assert again.fingerprint == switch.fingerprint
    assert (again.base, again.gate.always, type(again.actuator)) == (None, True, type(actuator))


def test_tensors_that_are_views_of_one_storage_can_be_saved(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    Switch(Gate(always=True), LowRankHead(whole.view(3, 4)[:2], whole.view(6, 2))).save_pretrained(
        tmp_path
    )
    head = Switch.from_pretrained(tmp_path).actuator
    assert isinstance(head, LowRankHead)
    assert head.up[5].tolist() == [10.0, 11.0]


def test_the_fingerprint_survives_the_disk_and_changes_with_a_threshold_or_a_tensor(
    saved: Path,
) -> None:
    switch = fitted()
    assert Switch.from_pretrained(saved).fingerprint == switch.fingerprint
    assert replace(switch, record={"other": 1}).fingerprint == switch.fingerprint
    assert switch.gate.stage1 is not None
    stage = Stage(switch.gate.stage1.prober, switch.gate.stage1.threshold + 0.01)
    moved = replace(switch, gate=replace(switch.gate, stage1=stage))
    head = switch.actuator
    assert isinstance(head, LowRankHead)
    up = head.up.clone()
    up[0, 0] += 1e-3
    bent = replace(switch, actuator=replace(head, up=up))
    assert len({switch.fingerprint, moved.fingerprint, bent.fingerprint}) == 3


@pytest.mark.parametrize("name", ["probers.safetensors", "refusal_head.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_tensors_are_refused_naming_the_file(
    folder: Path, name: str, keep: float
) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ArtifactError, match=rf"{name} is damaged or truncated"):
        Switch.from_pretrained(folder)


@pytest.mark.parametrize("name", sorted(FILES - {"README.md"}))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name} does not exist"):
        Switch.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "\x00\x01", "[1, 2]", '"text"', "null"])
def test_garbage_in_the_configuration_is_refused_naming_the_file(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(
        ArtifactError, match=r"config\.json (is not readable JSON|must hold a JSON object)"
    ):
        Switch.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": 2},
            "format version 2 is of a later version of SafeSwitch; this library .* reads 1",
        ),
        ({"format_version": None}, "format version None"),
        ({"gate": None}, "config.json does not describe a bundle"),
        ({"gate": {"stages": []}}, "config.json does not describe a bundle"),
        (
            {"gate": {"stages": {"stage1": {"threshold": 0.5, "prober": {"kind": "oracle"}}}}},
            "unknown prober 'oracle'; known",
        ),
        (
            {"gate": {"stages": {"stage1": {"threshold": 0.5, "prober": "oracle"}}}},
            "config.json does not describe",
        ),
        (
            {"gate": {"stages": {"stage1": {"threshold": 7, "prober": {"kind": "ngram"}}}}},
            "config.json does not describe",
        ),
        ({"gate": {"stages": {}, "rule": "or"}}, "rule must be one of 'and', 'product'"),
        ({"gate": {"stages": {}, "mood": 1}}, "mood"),
        ({"actuator": {"kind": "laser"}}, "unknown actuator 'laser'"),
        ({"base_model": {"model_id": "x"}}, "config.json does not describe a bundle"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_is_refused_naming_the_file(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ArtifactError, match=message) as caught:
        Switch.from_pretrained(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_a_tensor_that_is_missing_from_the_file_is_named(folder: Path) -> None:
    tensors = load_file(folder / "probers.safetensors")
    gone = next(name for name in tensors if name.endswith("w1"))
    artifact.write_tensors(
        folder / "probers.safetensors", {n: t for n, t in tensors.items() if n != gone}
    )
    with pytest.raises(ArtifactError, match="tensor 'w1' is missing"):
        Switch.from_pretrained(folder)


def test_another_model_is_refused_with_both_fingerprints_unless_allowed() -> None:
    other = tiny_lm("llama", seed=1)
    with pytest.raises(FingerprintError) as caught:
        fitted().check(other)
    assert model().fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)
    fitted().check(other, allow_other_model=True)
    fitted().check(tiny_lm("llama"))


def test_a_head_or_layer_that_does_not_exist_in_the_other_model_is_refused_even_when_allowed() -> (
    None
):
    with pytest.raises(SettingError, match="made for"):
        fitted().check(tiny_lm("llama", hidden_size=48), allow_other_model=True)
    with pytest.raises(SettingError, match="layer 3 does not exist"):
        replace(fitted(), actuator=NoAction()).check(
            tiny_lm("llama", num_hidden_layers=2), allow_other_model=True
        )


def full_disk_at(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ``which``-th file written ends in a full disk after some bytes."""
    count = 0
    real = artifact.write_atomic

    def write(path: Path, put: Any) -> None:
        nonlocal count
        count += 1

        def fail(temporary: Path) -> None:
            temporary.write_bytes(b"some")
            raise OSError(errno.ENOSPC, "No space left on device")

        real(path, fail if count == which else put)

    monkeypatch.setattr(artifact, "write_atomic", write)


@pytest.mark.parametrize("which", [1, 2, 3, 4])
def test_a_full_disk_leaves_no_folder_behind(
    which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk_at(which, monkeypatch)
    with pytest.raises(ArtifactError, match="No space left on device"):
        fitted().save_pretrained(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", [1, 2, 3, 4])
def test_a_full_disk_leaves_the_bundle_that_was_there(
    which: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    full_disk_at(which, monkeypatch)
    with pytest.raises(ArtifactError, match="No space left on device"):
        Switch(Gate(always=True), NoAction()).save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_run_killed_while_files_are_moved_leaves_no_loadable_bundle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def stop(self: Path, target: Path) -> Path:
        if target == folder / "refusal_head.safetensors":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        Switch(Gate(always=True), NoAction()).save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} == FILES - {"config.json"}
    with pytest.raises(ArtifactError, match=r"config\.json does not exist"):
        Switch.from_pretrained(folder)


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArtifactError, match="file is a file, not a folder"):
            fitted().save_pretrained(target)
    assert (tmp_path / "file").read_text() == "mine"


class Hub:
    """Stands in for ``HfApi``."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012

    def __init__(self, token: str | None = None) -> None:
        self.calls.append(("token", {"token": token}))

    def create_repo(self, repo: str, **options: Any) -> None:
        self.calls.append(("create", {"repo": repo, **options}))

    def upload_folder(self, *, folder_path: str, allow_patterns: list[str], **options: Any) -> str:
        files = {p.name for p in Path(folder_path).rglob("*") if p.name in allow_patterns}
        self.calls.append(
            (
                "upload",
                {"files": files, "all": {p.name for p in Path(folder_path).iterdir()}, **options},
            )
        )
        return "https://hub/u/s"


def test_pushing_uploads_exactly_the_four_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    assert fitted().push_to_hub("u/s", private=True, token="secret") == "https://hub/u/s"
    (_, told), (_, made), (_, sent) = Hub.calls
    assert (told, made) == ({"token": "secret"}, {"repo": "u/s", "private": True, "exist_ok": True})
    assert (sent["files"], sent["all"], sent["repo_id"]) == (FILES, FILES, "u/s")
    (tmp_path / "private-notes.txt").write_text("not for the hub")
    fitted().push_to_hub("u/s", folder=tmp_path)
    assert Hub.calls[-1][1]["files"] == FILES


def test_a_hub_id_is_downloaded_at_the_revision_asked_for(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(saved)

    monkeypatch.setattr(module, "snapshot_download", download)
    switch = Switch.from_pretrained("user/name", revision="v2", token="t", cache_dir="c")
    assert switch.fingerprint == fitted().fingerprint
    assert (asked["name"], asked["revision"], asked["token"], asked["cache_dir"]) == (
        "user/name",
        "v2",
        "t",
        "c",
    )
    assert set(asked["allow_patterns"]) == FILES


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no cache"), HFValidationError("bad id"), OSError("no net")]
)
def test_a_download_that_fails_says_that_there_is_no_such_folder_either(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(module, "snapshot_download", download)
    with pytest.raises(
        ArtifactError, match="out/switch is no folder here, and cannot be downloaded from the hub"
    ):
        Switch.from_pretrained("out/switch")


def test_a_name_that_can_be_neither_is_refused_without_asking_the_hub() -> None:
    for name in ("/nowhere/at/all", "nowhere", "a/b/c"):
        with pytest.raises(ArtifactError, match=f"{name} is neither a folder nor a hub id"):
            Switch.from_pretrained(name)


def test_the_model_card_holds_thresholds_base_model_and_measured_figures(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    gate = fitted().gate
    assert gate.stage1 is not None
    assert gate.stage2 is not None
    assert gate.watch is not None
    assert f"`tiny-llama` (fingerprint `{model().fingerprint}`)" in card
    for stage in (gate.stage1, gate.stage2, gate.watch):
        assert f"threshold {stage.threshold:.4f}" in card
    for name, figure in fitted().record["metrics"].items():
        assert (
            f"| {name} | {figure['value']:.3f} | {figure['low']:.3f} – {figure['high']:.3f} |"
            in card
        )
    assert "tripwire" in card


def test_the_model_card_names_a_hub_model_in_its_front_matter() -> None:
    base = BaseModel("org/model", None, "0" * 16, 1, 2, 3)
    from safeswitch.switch.card import model_card

    assert "base_model: org/model" in model_card(Switch(Gate(), NoAction(), base)).split("---")[1]
    assert "base_model" not in model_card(
        Switch(Gate(), NoAction(), replace(base, model_id="/home/x/model"))
    )
