"""The page's routes: who may ask, what is told of a reply and what is withheld, the audit in
figures."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeswitch.analyses.strip import score_strip
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Example, Message
from safeswitch.data.reviews import read_reviews
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano import switch_path, weights_path
from safeswitch.probers.drift import Histogram
from safeswitch.serving.keys import add_key
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.ui.rights import FILES, STATIC
from safeswitch.serving.ui.traffic import settled, traffic
from safeswitch.switch.actuators.base import SystemPrompt
from safeswitch.switch.switch import Switch
from tests.serving.page_made import OPEN, SAFE, UNSAFE, Paged, paged

CHAT = {"messages": [{"role": "user", "content": SAFE}]}
BOTH = pytest.mark.parametrize("traces", [True, False])
LIT_SHA256 = "b878e7f95dec8a9b6e9b217faca6b6a11bad82ebc44c0caa77419ed83edd81f2"
"""Of lit-html.js in lit-html 3.3.3."""


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel.load(weights_path())


@pytest.fixture(scope="module")
def engine(lm: LanguageModel) -> TransformersEngine:
    return TransformersEngine(lm)


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "audit.db"


@pytest.fixture(scope="module")
def page(lm: LanguageModel, audit: Path) -> Iterator[Paged]:
    with paged({**OPEN, "audit": f"sqlite:///{audit}", "audit_text": True}, lm=lm) as found:
        yield found


@pytest.fixture(scope="module")
def untraced(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paged]:
    url = f"sqlite:///{tmp_path_factory.mktemp('untraced') / 'audit.db'}"
    settings = {**OPEN, "audit": url, "audit_text": True}
    with paged(settings, lm=lm, traces=False) as found:
        yield found


@pytest.fixture(params=["page", "untraced"])
def either(request: pytest.FixtureRequest) -> Paged:
    """The page of each kind of server."""
    found: Paged = request.getfixturevalue(request.param)
    return found


def of(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in told if event["type"] == kind]


def text(told: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in told if event["type"] in ("shown", "rest"))


def records(audit: Path) -> int:
    with sqlite3.connect(audit) as connection:
        return int(connection.execute("select count(*) from safeswitch_decisions").fetchone()[0])


# --- who may ask


@BOTH
def test_without_the_flag_there_is_no_page(lm: LanguageModel, traces: bool) -> None:
    with paged({**OPEN, "ui": False}, lm=lm, traces=traces) as server:
        for path in ("/ui", "/ui/", "/ui/app.js", "/ui/api/about", "/ui/api/traffic"):
            assert server.get(path).status_code == 404, path
        assert server.post("/ui/api/chat", CHAT).status_code == 404


@BOTH
def test_the_page_is_open_and_what_it_shows_wants_a_key(
    lm: LanguageModel, tmp_path: Path, traces: bool
) -> None:
    keys = tmp_path / "keys.json"
    plain = add_key(keys, "plain")
    sees = add_key(keys, "sees", scores=True)
    admin = add_key(keys, "admin", admin=True, may=("off",))
    settings = {"ui": True, "keys": str(keys), "audit": f"sqlite:///{tmp_path / 'audit.db'}"}
    with paged(settings, lm=lm, traces=traces) as server:
        assert server.get("/ui/").status_code == 200
        assert server.get("/ui/app.js").status_code == 200
        assert server.post("/ui/", CHAT).status_code == 401
        for path in ("/ui/api/about", "/ui/api/traffic", "/ui/other.js"):
            assert server.get(path).status_code == 401, path
        found = {}
        for name, key in (("plain", plain), ("sees", sees), ("admin", admin)):
            told = [server.get(f"/ui/api/{path}", key).status_code for path in ("about", "traffic")]
            told.append(server.post("/ui/api/chat", CHAT, key).status_code)
            off = {**CHAT, "safeswitch": {"policy": "off"}}
            found[name] = [*told, server.post("/ui/api/chat", off, key).status_code]
        assert found["plain"] == [403, 403, 403, 403]
        assert found["sees"] == [200, 403, 200, 403]
        assert found["admin"] == [200, 200, 200, 200]


@BOTH
def test_without_keys_the_page_wants_clients_that_may_see_scores(
    lm: LanguageModel, traces: bool
) -> None:
    with paged({"ui": True}, lm=lm, traces=traces) as server:
        assert server.get("/ui/").status_code == 200
        assert server.get("/ui/api/about").status_code == 403
        assert server.post("/ui/api/chat", CHAT).status_code == 403


def test_files_come_with_a_policy_that_lets_nothing_in_from_elsewhere(either: Paged) -> None:
    assert either.get("/ui").headers["location"] == "ui/"
    for name in FILES:
        answer = either.get(f"/ui/{name}")
        rules = answer.headers["content-security-policy"]
        assert rules.startswith("default-src 'self'")
        assert "unsafe" not in rules
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.content == (STATIC / name).read_bytes()
    for name in ("../rights.py", "..%2frights.py", "%2e%2e/rights.py", "nothing.js"):
        assert either.get(f"/ui/{name}").status_code in (401, 404), name


def test_bodies_are_read_as_strictly_as_those_of_other_routes(either: Paged) -> None:
    for more in ({"temperature": 1}, {"max_tokens": 0}, {"messages": []}, {"n": 2}):
        answer = either.post("/ui/api/chat", {**CHAT, **more})
        assert answer.status_code == 400, more
    begun = {"messages": [*CHAT["messages"], {"role": "assistant", "content": "Sure"}]}
    assert either.post("/ui/api/chat", begun).status_code == 400


def test_pilot_text_is_for_the_page_alone() -> None:
    with pytest.raises(SettingError, match="needs ui"):
        ServerSettings(ui_pilot_text=True)


def test_the_vendored_module_is_the_one_that_is_named() -> None:
    whole = (STATIC / "vendor/lit-html.js").read_bytes()
    assert hashlib.sha256(whole).hexdigest() == LIT_SHA256
    assert "BSD 3-Clause" in (STATIC / "vendor/LICENSE.txt").read_text()


# --- what is told of a reply


def test_a_refusal_is_told_step_by_step_without_the_text_that_was_rolled_back(
    page: Paged, engine: TransformersEngine, audit: Path
) -> None:
    switch = Switch.from_pretrained(switch_path())
    (reply,) = engine.generate([UNSAFE], switch, do_sample=False)
    before = records(audit) if audit.exists() else 0
    told = page.chat(UNSAFE)
    assert reply.decision.stage == "stage2"
    assert text(told) == reply.text
    kinds = [event["type"] for event in told]
    back = kinds.index("rollback")
    assert kinds[:back].count("written") == switch.gate.pilot
    assert "shown" not in kinds[:back]
    assert all(event["text"] is None for event in of(told, "written"))
    reads = of(told, "read")
    assert [(read["stage"], read["at"]) for read in reads] == [("stage1", 0), ("stage2", 3)]
    for read in reads:
        assert read["score"] == pytest.approx(reply.decision.scores[read["stage"]])
        assert read["threshold"] == switch.gate.thresholds()[read["stage"]]
    assert told[-1]["decision"]["scores"] == {read["stage"]: read["score"] for read in reads}
    assert told[-1]["decision"]["switched"]
    assert records(audit) == before + 1


def test_pilot_text_is_told_where_the_operator_says_so(
    lm: LanguageModel, engine: TransformersEngine
) -> None:
    (own,) = engine.generate([UNSAFE], do_sample=False)
    with paged({**OPEN, "ui_pilot_text": True}, lm=lm) as server:
        told = server.chat(UNSAFE)
        pilot = [event["text"] for event in of(told, "written")][:3]
        assert own.text.startswith("".join(pilot))
        assert server.get("/ui/api/about").json()["pilot_text"]


def test_every_token_has_the_score_that_a_pass_over_the_whole_text_gives_it(
    page: Paged, engine: TransformersEngine, audit: Path
) -> None:
    gate = Switch.from_pretrained(switch_path()).gate
    page.chat(SAFE)
    before = records(audit)
    for asked in (UNSAFE, SAFE):
        example = Example("x", (Message("user", asked),))
        strip = score_strip(engine, gate, example)
        told = page.chat(asked, safeswitch={"policy": "off"})
        (reply,) = engine.generate([asked], do_sample=False)
        assert text(told) == reply.text
        (prompt,) = of(told, "prompt")
        whole = strip.scores["stage1"][: strip.prompt_length]
        assert [token["score"] for token in prompt["tokens"]] == pytest.approx(whole, abs=1e-4)
        assert tuple(token["text"] for token in prompt["tokens"]) == strip.tokens[: len(whole)]
        scores = [event["score"] for event in of(told, "score")]
        rest = strip.scores["watch"][strip.prompt_length :]
        assert scores == pytest.approx(rest[: len(scores)], abs=1e-4)
        assert len(scores) >= len(rest) - 1
        read = {(event["stage"], event["at"]): event["score"] for event in of(told, "read")}
        end = strip.prompt_length - 1
        assert read["stage1", 0] == pytest.approx(strip.scores["stage1"][end], abs=1e-4)
        assert read["stage2", 3] == pytest.approx(strip.scores["stage2"][end + 3], abs=1e-4)
        assert read["watch", 16] == pytest.approx(strip.scores["watch"][end + 16], abs=1e-4)
        assert not any(event["fired"] for event in of(told, "read"))
        assert told[-1]["decision"] is None
    assert records(audit) == before, "what is not guarded is not recorded"


def test_an_action_on_the_prompt_is_told_as_a_second_reply(
    lm: LanguageModel, engine: TransformersEngine, tmp_path: Path
) -> None:
    switch = Switch.from_pretrained(switch_path())
    edits = replace(switch, actuator=SystemPrompt("Be careful."))
    edits.save_pretrained(tmp_path / "edits")
    (reply,) = engine.generate([UNSAFE], edits, do_sample=False)
    assert reply.decision.fired
    with paged(OPEN, tmp_path / "edits", lm) as server:
        told = server.chat(UNSAFE)
    assert text(told) == reply.text
    assert len(of(told, "prompt")) == len(of(told, "rollback")) == 1
    written = of(told[[event["type"] for event in told].index("rollback") :], "written")
    assert len(written) == len(of(told, "shown")) == len(reply.token_ids)


def test_the_card_says_what_is_in_force(either: Paged) -> None:
    told = either.get("/ui/api/about").json()
    switch = Switch.from_pretrained(switch_path())
    card = told["bundles"][told["bundle"]]
    assert card["thresholds"] == switch.gate.thresholds()
    assert card["bundle_id"] == switch.fingerprint
    assert [stage["name"] for stage in card["stages"]] == ["stage1", "stage2", "watch"]
    assert (told["policies"], told["records"], told["pilot_text"]) == (["off"], True, False)


# --- the audit in figures


def row(at: float, fired: bool, stage: str, **more: Any) -> dict[str, Any]:
    scores = more.pop("scores", {"stage1": 0.2})
    bars = more.pop("thresholds", {"stage1": 0.5, "stage2": 0.4, "watch": 0.9})
    return {
        "at": at, "request_id": "r", "client": None, "bundle": "default", "policy": "observe",
        "fired": fired, "stage": stage, "scores": json.dumps(scores),
        "thresholds": json.dumps(bars), "error": None, "text_sha256": "f" * 64, "text": "said",
        **more,
    }  # fmt: skip


def test_what_settled_a_record_is_worked_out_as_by_hand() -> None:
    hand = [
        (row(0, True, "stage2", scores={"stage1": 0.7, "stage2": 0.6}), ("stage2", 0.6, 0.4)),
        (row(0, False, "stage1", scores={"stage1": 0.3}), ("stage1", 0.3, 0.5)),
        (row(0, False, "watch", scores={"stage1": 0.1, "watch": 0.8}), ("watch", 0.8, 0.9)),
        (row(0, False, "stage2", scores={"stage1": 0.7, "stage2": 0.3}), ("stage2", 0.3, 0.4)),
    ]
    for record, expected in hand:
        found = settled(record)
        assert found is not None
        assert (found.stage, found.score, found.threshold) == expected
    product = {"thresholds": {"product": 0.5}, "scores": {"stage1": 0.8, "stage2": 0.5}}
    found = settled(row(0, False, "stage2", **product))
    assert found is not None
    assert (found.stage, found.score, found.threshold) == ("stage2", pytest.approx(0.4), 0.5)
    assert settled(row(0, True, "error", scores={})) is None


def test_traffic_is_counted_and_the_nearest_come_first() -> None:
    day = 86_400.0
    rows = [
        row(9.5 * day, True, "stage1", scores={"stage1": 0.95}),
        row(9.4 * day, True, "stage1", scores={"stage1": 0.51}),
        row(9.3 * day, False, "stage1", scores={"stage1": 0.1}),
        row(8.2 * day, False, "stage1", scores={"stage1": 0.49}, category="theft"),
        row(8.1 * day, True, "error", scores={}, error="broken"),
    ]
    reference = Histogram.of([i / 100 for i in range(100)])
    calibration = {"default": reference.to_dict()}
    told = traffic(rows, calibration, 0.25, 3 * day, 9.9 * day, texts=False)
    assert (told["requests"], told["flagged"], told["errors"]) == (5, 3, 1)
    assert told["stages"] == {"stage1": 2, "error": 1}
    assert told["policies"] == {"observe": 5}
    counted = {one["at"] / day: (one["requests"], one["flagged"]) for one in told["times"]}
    assert list(counted) == [3, 4, 5, 6, 7, 8, 9]
    assert (counted[8], counted[9], counted[3]) == ((2, 1), (3, 2), (0, 0))
    assert sum(one["requests"] for one in told["scores"]) == 4
    assert told["scores"][-1] == {"from": 0.95, "requests": 1, "flagged": 1}
    assert [one["score"] for one in told["queue"]] == [0.51, 0.95]
    assert [one["score"] for one in told["misses"]] == [0.49, 0.1]
    assert told["drift"]["default"] == {
        "psi": reference.psi([0.1, 0.49]),
        "requests": 2,
        "enough": False,
        "bound": 0.25,
        "exceeded": False,
    }
    assert told["misses"][0]["text"] is None
    assert traffic(rows, {}, 0.25, 0, 1, texts=True)["misses"][0]["text"] == "said"


def test_the_page_raises_the_alarm_that_the_metrics_raise_at_the_operators_bound() -> None:
    reference = Histogram.of([i / 100 for i in range(100)])
    index = reference.psi([0.9] * 500)
    for requests, bound, raised in ((499, 0.25, False), (500, 0.25, True), (500, index, False)):
        rows = [row(1.0, False, "stage1", scores={"stage1": 0.9}) for _ in range(requests)]
        told = traffic(rows, {"default": reference.to_dict()}, bound, 0, 1, texts=False)
        assert told["drift"]["default"]["exceeded"] is raised


def test_the_card_tells_what_was_changed_since() -> None:
    from safeswitch.serving.ui.card import card_of

    own = Switch.from_pretrained(switch_path())
    assert card_of(own)["recalibrations"] == []
    figure = {"value": 2.0, "low": 1.0, "high": 3.0, "n": 9}
    entry = {
        "stage": "stage1", "before": 0.5, "after": 0.75, "wanted": 0.75, "held": False,
        "settings": {"per_day": 100, "passed_is_benign": False}, "parent": "abc", "requests": 10, "days": 1.0,
        "flagged": 3, "verdicts": {"right": 1, "false_alarm": 2, "unsure": 0, "open": 0},
        "alarms_before": figure, "alarms_after": figure, "right": None, "caught": None,
        "elsewhere": 0, "left": {}, "reviewers": {}, "reviews_hash": "", "date": "2026-01-02",
    }  # fmt: skip
    changed = replace(own, record={**own.record, "recalibrations": [entry]})
    (told,) = card_of(changed)["recalibrations"]
    assert told["date"] == "2026-01-02"
    assert "0.5000 -> 0.7500" in " ".join(told["said"])


def test_the_pages_files_are_there_for_a_look_at_their_head(either: Paged) -> None:
    for path in ("/ui/", "/ui/app.js"):
        whole, head = either.get(path), either.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.content))


def test_traffic_is_read_from_the_records(either: Paged) -> None:
    either.chat(UNSAFE)
    told = either.get("/ui/api/traffic?days=1").json()
    assert told["flagged"] >= 1
    assert told["queue"][0]["stage"] == "stage2"
    assert told["queue"][0]["text"] is None, "without keys texts are withheld"
    for days in ("0", "366", "x"):
        assert either.get(f"/ui/api/traffic?days={days}").status_code == 400


# --- verdicts on what was flagged


@BOTH
def test_a_verdict_on_what_was_flagged_goes_into_the_file_of_review(
    lm: LanguageModel, tmp_path: Path, traces: bool
) -> None:
    keys, reviews = tmp_path / "keys.json", tmp_path / "reviews.jsonl"
    sees = add_key(keys, "sees", scores=True)
    ann = add_key(keys, "ann", admin=True)
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    settings = {"ui": True, "keys": str(keys), "audit": url, "ui_reviews": str(reviews)}
    with paged(settings, lm=lm, traces=traces) as server:
        server.post("/ui/api/chat", {"messages": [{"role": "user", "content": UNSAFE}]}, ann)
        (row,) = server.get("/ui/api/traffic", ann).json()["queue"]
        assert row["verdict"] is None
        switch = Switch.from_pretrained(switch_path()).fingerprint
        verdicts = f"/ui/api/verdicts/{switch}"
        path = f"{verdicts}/{row['text_sha256']}"
        for place, key, status in (
            (f"{path}/right", None, 401),
            (f"{path}/right", sees, 403),
            (f"{path}/wrong", ann, 400),
            (f"{verdicts}/{'0' * 64}/right", ann, 404),
            (f"/ui/api/verdicts/{'0' * 16}/{row['text_sha256']}/right", ann, 404),
            (f"{verdicts}/x/right", ann, 400),
        ):
            assert server.put(place, key).status_code == status, place
        assert not reviews.exists()
        assert server.put(f"{path}/false_alarm", ann).status_code == 200
        assert server.get("/ui/api/traffic", ann).json()["queue"][0]["verdict"] == "false_alarm"
        (given,) = read_reviews(reviews)
        assert (given.text_sha256, given.by, given.switch) == (row["text_sha256"], "ann", switch)
        assert server.get("/ui/api/about", ann).json()["reviews"]
        assert not server.get("/ui/api/about", sees).json()["reviews"]


def test_verdicts_are_taken_only_where_the_operator_names_a_file(either: Paged) -> None:
    either.chat(UNSAFE)
    row = either.get("/ui/api/traffic?days=1").json()["queue"][0]
    path = f"/ui/api/verdicts/{row['bundle_id']}/{row['text_sha256']}/right"
    assert either.put(path).status_code == 404
    with pytest.raises(SettingError, match="needs ui"):
        ServerSettings(ui_reviews="reviews.jsonl", audit="sqlite://")
    with pytest.raises(SettingError, match="and audit"):
        ServerSettings(ui_reviews="reviews.jsonl", ui=True)
