"""What ``safeswitch doctor`` finds, and that it changes nothing and never falls over."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from safeswitch.core.artifact import read_json, write_json
from safeswitch.nano import switch_path, weights_path
from safeswitch.serving.audit import Audit
from safeswitch.serving.doctor import files, machine, table
from safeswitch.serving.doctor.base import Check, Finding, Installation, finding
from safeswitch.serving.keys import add_key
from tests.serving.test_audit import record


def found(name: str, engine: str = "transformers", **given: Any) -> Finding:
    (check,) = [check for check in table.CHECKS if check.name == name]
    return finding(check, Installation(engine, **given))


def is_fault(one: Finding, *parts: str) -> None:
    assert one.state == "fault", one
    for part in parts:
        assert part in one.text, one
    assert "\n" not in one.text


# --- the frame


def test_whatever_a_check_raises_is_a_finding_on_one_line() -> None:
    def breaks(at: Installation) -> str:
        raise RuntimeError("one\ntwo")

    assert finding(Check("x", breaks), Installation("vllm")) == Finding(
        "x", "fault", "RuntimeError: one two"
    )


def test_a_missing_package_is_told_with_its_extra() -> None:
    def misses(at: Installation) -> str:
        raise ModuleNotFoundError("no", name="sqlalchemy")

    is_fault(finding(Check("x", misses), Installation("vllm")), "pip install 'safeswitch[server]'")


def test_only_what_is_given_is_looked_at() -> None:
    names = [one.check for one in table.examine(Installation("transformers"))]
    assert names == [check.name for check in table.CHECKS if not check.about]


# --- the machine


def test_the_range_of_python_is_that_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("python").state == "ok"
    monkeypatch.setattr(machine.platform, "python_version", lambda: "3.10.1")
    asked = metadata.metadata("safeswitch")["Requires-Python"]
    is_fault(found("python"), "3.10.1 is installed", f"{asked} is needed")


def test_packages_outside_their_ranges_are_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = ["torch>=2.6", "rich>=99", "sqlalchemy>=2; extra == 'server'"]
    told += ["no-such-package>=1; extra == 'vllm'", "not-asked-for>=1; extra == 'eval'"]
    monkeypatch.setattr(machine.metadata, "requires", lambda name: told)
    wrong = found("packages")
    is_fault(wrong, ">=99 is needed", "pip install 'rich>=99'")
    assert "no-such-package" not in wrong.text
    is_fault(found("packages", "vllm"), "no-such-package is not installed")


def test_the_packages_of_this_environment_are_in_their_ranges() -> None:
    assert found("packages").state == "ok"


def test_the_device_is_named_with_the_formats_that_run() -> None:
    one = found("device")
    assert one.state in ("ok", "hint")
    assert "float32" in one.text


def test_more_threads_than_processors_are_hinted_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(machine, "_processors", lambda: 2)
    one = found("threads")
    assert (one.state, "OMP_NUM_THREADS=2" in one.text) == ("hint", True)


@pytest.mark.parametrize(("quota", "most"), [("max 100000", 64), ("150000 100000", 1), ("9 10", 1)])
def test_a_containers_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, most: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert machine._processors() == most


def test_a_guard_that_is_switched_off_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("environment").state == "ok"
    monkeypatch.setenv("SAFESWITCH_OFF", "1")
    is_fault(found("environment"), "SAFESWITCH_OFF=1", "unset it")


def test_parts_that_vllm_cannot_find_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    server = types.SimpleNamespace(MIDDLEWARE="json.loads")
    monkeypatch.setitem(sys.modules, "safeswitch.serving.vllm.server", server)
    for name in ("PROCESSOR", "EXTENSION", "MODELS"):
        monkeypatch.setattr(machine, name, "json:dumps")
    assert "the guard's 4 parts are found" in found("vllm", "vllm").text
    monkeypatch.setattr(machine, "EXTENSION", "json.Gone")
    is_fault(found("vllm", "vllm"), "Gone")


# --- what the server is given


def test_a_bundle_and_the_model_that_it_was_fitted_on_are_sound() -> None:
    assert found("bundle", bundle=str(switch_path())).text.startswith("format 1, fingerprint ")
    one = found("model", bundle=str(switch_path()), model=str(weights_path()))
    assert (one.state, "the switch fits" in one.text) == ("ok", True)


def test_a_damaged_bundle_is_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(switch_path(), folder)
    (folder / "probers.safetensors").write_bytes(b"not tensors")
    is_fault(found("bundle", bundle=str(folder)), "damaged or truncated")


def test_a_model_of_other_sizes_is_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in weights_path().iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "hidden_size": 2 * config["hidden_size"]})
    one = found("model", bundle=str(switch_path()), model=str(folder))
    is_fault(one, "the switch was fitted on nano", "safeswitch fit")


def test_a_model_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    is_fault(found("model", model=str(tmp_path / "gone")), "no such file or folder")


POLICY = "version: 1\norganisation: {act: refuse}\nkeys: {alice: {act: log}}\n"


def test_a_policy_is_checked_with_the_switch_and_the_keys(tmp_path: Path) -> None:
    file, keys = tmp_path / "policy.yaml", tmp_path / "keys.json"
    file.write_text(POLICY)
    add_key(keys, "bob")
    assert found("policy", policy_file=file, bundle=str(switch_path())).state == "ok"
    is_fault(found("policy", policy_file=file, keys=keys), "no key named 'alice'", "bob")
    file.write_text("colour: red\n")
    is_fault(found("policy", policy_file=file), "colour")


@pytest.mark.parametrize(
    ("mode", "state"), [(0o600, "ok"), (0o640, "ok"), (0o644, "hint"), (0o660, "fault")]
)
def test_keys_are_read_and_their_mode_is_looked_at(tmp_path: Path, mode: int, state: str) -> None:
    keys = tmp_path / "keys.json"
    add_key(keys, "bob")
    keys.chmod(mode)
    one = found("keys", keys=keys)
    assert one.state == state
    assert ("chmod 600" in one.text) == (state != "ok")


def test_the_audit_is_looked_at_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    url = f"sqlite:///{path}"
    assert found("audit", audit_db=url).text.endswith("the server makes it at its start")
    assert not path.exists()
    sqlite3.connect(path).close()
    path.touch()
    assert "makes its table" in found("audit", audit_db=url).text
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("select count(*) from sqlite_master").fetchone()
    assert tables == (0,)
    store = Audit(url)
    store.write(record(0))
    store.close()
    assert found("audit", audit_db=url).text.endswith("that of this version")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("alter table safeswitch_decisions drop column act")
    one = found("audit", audit_db=url)
    assert (one.state, "lacks act" in one.text) == ("hint", True)


def test_a_database_that_does_not_answer_is_a_fault() -> None:
    pytest.importorskip("psycopg", reason="psycopg is absent: pip install 'safeswitch[postgres]'")
    is_fault(found("audit", audit_db="postgresql+psycopg://u@127.0.0.1:1/d"), "refused")
    is_fault(found("audit", audit_db="nothing"), "is no URL of a database")


def test_a_disk_without_room_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for free in (100 << 30, 1 << 29, 1 << 20):
        monkeypatch.setattr(files, "_free", lambda folder, free=free: free)
        states.append(found("disk", audit_db=f"sqlite:///{tmp_path}/a.db").state)
    assert states == ["ok", "hint", "fault"]


# --- a server that runs


class Answers(BaseHTTPRequestHandler):
    status, body, asked = 200, b"safeswitch_requests_total 1", ""

    def do_GET(self) -> None:
        Answers.asked = f"{self.path} {self.headers.get('Authorization')}"
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_a_ready_server_is_sound_and_is_given_its_own_key(
    url: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFESWITCH_KEY_127_0_0_1", "sk-1")
    assert [found(name, url=url + ending).state for name in ("health", "metrics")] == ["ok", "ok"]
    assert Answers.asked == "/metrics Bearer sk-1"


def test_another_server_and_one_that_is_not_ready_are_faults(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answers, "body", b"up 1")
    is_fault(found("metrics", url=url), "no SafeSwitch stands in front")
    monkeypatch.setattr(Answers, "status", 503)
    is_fault(found("health", url=url), "answers 503", "read its log")
    monkeypatch.setattr(Answers, "status", 401)
    hint = found("metrics", url=url)
    assert (hint.state, "keys add --scores" in hint.text) == ("hint", True)


def test_a_server_that_is_not_there_is_a_fault() -> None:
    is_fault(found("health", url="http://127.0.0.1:9"), "cannot be reached", "--port")


def test_json_of_the_command_holds_every_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safeswitch.cli import main

    for text, code in (("", 0), ("1", 1)):
        monkeypatch.setenv("SAFESWITCH_OFF", text)
        line = ["safeswitch", "doctor", "--engine", "transformers", "--json"]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit) as end:
            main.main()
        assert end.value.code == code
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (code == 0)
        assert {"check", "state", "text"} == set(told["findings"][0])


def test_an_engine_that_does_not_exist_is_bad_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safeswitch.cli import main

    monkeypatch.setattr("sys.argv", ["safeswitch", "doctor", "--engine", "steam"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert "'steam'" in capsys.readouterr().err


# --- the guide's block

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "production.md"
OF_THE_MACHINE = {"python", "packages", "device", "threads", "disk"}


def shown_lines() -> list[str]:
    block = GUIDE.read_text(encoding="utf-8").split("<!-- doctor -->\n```text\n")[1]
    return block.split("```")[0].splitlines()


def test_the_guide_shows_what_doctor_says_of_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add_key(Path("keys.json"), "alice")
    at = Installation(
        "transformers",
        bundle=str(switch_path()),
        model=str(weights_path()),
        policy_file=ROOT / "deploy" / "kubernetes" / "policy.yaml",
        keys=Path("keys.json"),
        audit_db="sqlite:///audit.db",
    )
    printed = {one.check: f"{one.state:<5} {one.check:<11} {one.text}" for one in table.examine(at)}
    shown = {line.split()[1]: line for line in shown_lines()}
    assert list(shown) == list(printed)
    for name in printed.keys() - OF_THE_MACHINE:
        assert shown[name] == printed[name]
