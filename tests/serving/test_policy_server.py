"""The server under a policy, over HTTP: what is done by client and kind of harm, and what clients,
audit and metrics are told of it."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.running import serving

from safeswitch.core.harms import HARMS, OTHER
from safeswitch.core.types import ReadPoint
from safeswitch.data.reasons import reason
from safeswitch.engines.settings import GuardSettings
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.probers.harms import HarmReader
from safeswitch.serving.keys import add_key
from safeswitch.serving.policy import facts_of, fingerprint
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.transformers.server import GuardedServer, TransformersSettings
from safeswitch.switch.rules import CAREFUL
from safeswitch.switch.switch import Switch
from tests.engines.vllm_made import needs_vllm
from tests.serving.test_policy import written

UNSAFE = load_suite("jailbroken", 6, 0)[5].prompt
"""Nano complies with it, and does not under the safety prompt."""
POLICY = """
version: 1
organisation: {{act: refuse}}
teams:
  lab: {{kinds: {{cyber: {{act: log}}}}}}
keys:
  logs: {{team: lab}}
  told: {{kinds: {{cyber: {{act: annotate}}}}}}
  {cares}
  allows: {{kinds: {{cyber: {{act: allow}}}}}}
  lax: {{kinds: {{cyber: {{threshold: 1.0}}}}}}
allow:
  - {{fingerprint: {print}, until: 2999-01-01, keys: [listed]}}
"""
CARES = "cares: {kinds: {cyber: {act: careful}}}"
CLIENTS = ("plain", "logs", "told", "cares", "allows", "lax", "listed", "boss")


@dataclass
class Running:
    url: str
    folder: Path
    keys: dict[str, str]
    engine: str

    def skip_care(self, client: str = "cares") -> None:
        """Skips where ``client`` is to be answered with care and the engine cannot."""
        if client == "cares" and self.engine == "vllm":
            pytest.skip(
                "no safety prompt for one request in vLLM: the policy may not say 'careful'"
            )

    def post(self, client: str, path: str, body: Any) -> tuple[int, Any]:
        headers = {
            "content-type": "application/json",
            "authorization": f"Bearer {self.keys[client]}",
        }
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {**headers, "x-request-id": client}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ask(self, client: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": UNSAFE}]
        body = {"model": "nano", "messages": messages, "max_tokens": 24, "temperature": 0, **more}
        status, text = self.post(client, "/v1/chat/completions", body)
        assert status == 200, text
        return text if more.get("stream") else json.loads(text)

    def record(self, client: str) -> dict[str, Any]:
        asked = "select * from safeswitch_decisions where request_id = ? order by id desc limit 1"
        with closing(sqlite3.connect(self.folder / "audit.db")) as connection:
            connection.row_factory = sqlite3.Row
            return dict(connection.execute(asked, (client,)).fetchone())


def sees_cyber(switch: Switch) -> Switch:
    """The switch with a reader that sees every request as cyber, mild, and surely nothing else; without the
    watch, which thresholds of stage 1 do not hold back."""
    names = ("cyber", OTHER)
    bias = torch.tensor([3.0, -3.0, 3.0])
    reader = HarmReader(names, (ReadPoint(4),), torch.zeros(3, 1, 160), bias)
    return replace(switch, gate=replace(switch.gate, harms=reader, watch=None))


@pytest.fixture(
    scope="module",
    params=[
        "transformers",
        pytest.param(
            "vllm",
            marks=[needs_vllm, pytest.mark.extended, pytest.mark.filterwarnings("ignore")],
        ),
    ],
)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("policy")
    sees_cyber(Switch.from_pretrained(switch_path())).save_pretrained(folder / "switch")
    keys = {}
    for name in CLIENTS:
        rights = {"admin": True} if name == "boss" else {}
        keys[name] = add_key(folder / "keys.json", name, **rights)
    lm = LanguageModel.load(weights_path())
    text = lm.prompt_text(lm.encode([UNSAFE])[0])
    cares = CARES if request.param == "transformers" else ""
    written(folder / "policy.yaml", POLICY.format(print=fingerprint(text), cares=cares))
    settings = {
        "keys": str(folder / "keys.json"),
        "audit": f"sqlite:///{folder / 'audit.db'}",
        "policy_file": str(folder / "policy.yaml"),
    }
    served = in_process(lm, folder, settings) if cares else in_vllm(folder, settings)
    with served as url:
        yield Running(url, folder, keys, request.param)


@contextmanager
def in_vllm(folder: Path, settings: dict[str, str]) -> Iterator[str]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    bundle = str(folder / "switch")
    with serving(folder, "vllm", *flags, "--explain", "sentence", switch=bundle) as running:
        yield running.url


@contextmanager
def in_process(lm: LanguageModel, folder: Path, settings: dict[str, str]) -> Iterator[str]:
    bundles = {"default": str(folder / "switch")}
    server = GuardedServer(
        lm,
        GuardSettings(bundles, explain="sentence"),
        ServerSettings(**settings, bundles=facts_of(bundles)),
        TransformersSettings(port=0, name="nano"),
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def text_of(reply: Any) -> str:
    return str(reply["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def refusal(running: Running) -> str:
    return text_of(running.ask("plain"))


def test_a_refusal_is_followed_by_its_reason_whole_and_streamed(
    running: Running, refusal: str
) -> None:
    assert refusal.endswith("\n\n" + reason("cyber"))
    assert len(refusal) > len(reason("cyber")) + 2
    events = running.ask("plain", stream=True).split("\n\n")
    pieces = [json.loads(e[6:]) for e in events if e.startswith("data: {")]
    streamed = "".join(p["choices"][0]["delta"].get("content") or "" for p in pieces)
    assert streamed == refusal


@pytest.mark.parametrize(
    ("client", "act", "fired", "switched"),
    [
        ("plain", "refuse", True, True),
        ("logs", "log", True, False),
        ("told", "annotate", True, False),
        ("cares", "careful", True, True),
        ("allows", "allow", False, False),
        ("lax", None, False, False),
        ("listed", "refuse", True, False),
    ],
)
def test_each_client_is_served_by_its_own_rules_and_it_is_on_record(
    running: Running, refusal: str, client: str, act: str | None, fired: bool, switched: bool
) -> None:
    running.skip_care(client)
    reply = running.ask(client)
    told, kept = reply["safeswitch"], running.record(client)
    assert (told["fired"], told["switched"]) == (fired, switched)
    assert (text_of(reply) == refusal) == (client == "plain")
    assert (kept["act"], bool(kept["fired"])) == (act, fired)
    assert kept["policy"] == ("observe" if client == "listed" else "enforce")
    assert kept["category"] == ("cyber" if fired else None)
    assert kept["severity"] == ("careful" if fired else "allow")
    assert len(kept["policy_id"]) == 16


@pytest.mark.parametrize(
    ("client", "flagged", "action", "act"),
    [
        ("plain", True, "refuse", "refuse"),
        ("logs", True, "allow", "log"),
        ("told", True, "allow", "annotate"),
        ("cares", True, "refuse", "careful"),
        ("allows", False, "allow", "allow"),
        ("lax", False, "allow", None),
        ("listed", True, "allow", "refuse"),
    ],
)
def test_what_is_only_read_falls_under_the_same_rules(
    running: Running, client: str, flagged: bool, action: str, act: str | None
) -> None:
    running.skip_care(client)
    status, text = running.post(
        client, "/v1/checks", {"messages": [{"role": "user", "content": UNSAFE}]}
    )
    assert status == 200, text
    found = json.loads(text)
    assert (found["flagged"], found["action"]) == (flagged, action)
    kept = running.record(client)
    assert (kept["policy"], kept["act"], bool(kept["fired"])) == ("score", act, flagged)
    assert kept["policy_id"]
    status, text = running.post(client, "/v1/moderations", {"input": UNSAFE})
    assert json.loads(text)["results"][0]["flagged"] == flagged
    body = {"input_type": "request", "texts": [UNSAFE]}
    status, text = running.post(client, "/beta/litellm_basic_guardrail_api", body)
    assert json.loads(text)["action"] == ("BLOCKED" if action == "refuse" else "NONE")


def test_what_is_not_acted_on_is_the_untouched_models_reply(running: Running) -> None:
    untouched = text_of(running.ask("allows"))
    assert [text_of(running.ask(client)) for client in ("logs", "told", "listed", "lax")] == [
        untouched
    ] * 4
    running.skip_care()
    asked = [{"role": "system", "content": CAREFUL}, {"role": "user", "content": UNSAFE}]
    careful = text_of(running.ask("allows", messages=asked))
    assert text_of(running.ask("cares")) == careful != untouched


def test_clients_are_told_the_kind_where_the_policy_says_so_or_they_may_see_scores(
    running: Running,
) -> None:
    told = running.ask("told")["safeswitch"]
    assert (told["category"], told["severity"]) == ("cyber", "careful")
    assert "scores" not in told
    assert "category" not in running.ask("plain")["safeswitch"]
    everything = running.ask("boss")["safeswitch"]
    assert everything["categories"]["cyber"] > 0.9
    assert everything["act"] == "refuse"


def test_a_prompt_that_is_no_conversation_cannot_be_answered_with_care_and_is_refused(
    running: Running,
) -> None:
    running.skip_care()
    body = {"model": "nano", "prompt": f"<user>{UNSAFE}", "max_tokens": 4, "temperature": 0}
    status, text = running.post("cares", "/v1/completions", body)
    assert status == 200
    if json.loads(text)["safeswitch"]["fired"]:
        assert running.record("cares")["act"] == "refuse"


def test_the_policy_is_changed_while_the_server_runs_and_a_bad_one_is_told(
    running: Running,
) -> None:
    path = running.folder / "policy.yaml"
    before = path.read_text()
    status, _ = running.post("plain", "/safeswitch/policy", {})
    assert status == 403
    written(path, "version: 1\norganisation: {act: log}")
    assert not running.ask("plain")["safeswitch"]["switched"]
    logged = running.record("plain")["policy_id"]
    written(path, "version: 1\ncolour: red")
    status, text = running.post("boss", "/safeswitch/policy", {})
    assert status == 400
    assert "colour" in text
    assert logged in text
    assert not running.ask("plain")["safeswitch"]["switched"]
    written(path, before)
    status, text = running.post("boss", "/safeswitch/policy", {})
    assert (status, json.loads(text)["policy"] != logged) == (200, True)
    assert running.ask("plain")["safeswitch"]["switched"]


def test_flagged_choices_are_counted_by_kind(running: Running) -> None:
    running.ask("told")
    request = urllib.request.Request(
        running.url + "/metrics", headers={"authorization": f"Bearer {running.keys['boss']}"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    counted = [line for line in lines if line.startswith("safeswitch_flagged_total")]
    assert any('category="cyber"' in line and 'act="annotate"' in line for line in counted)


def test_every_kind_has_a_reason() -> None:
    assert len({reason(kind) for kind in HARMS}) == len(HARMS)
