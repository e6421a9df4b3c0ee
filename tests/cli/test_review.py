"""Observe, review, recalibrate, enforce: from a database of decisions to a bundle that decides
differently."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeswitch.core.types import Example
from safeswitch.data.reviews import Review, add_reviews, read_reviews
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.serving.audit import Audit
from safeswitch.switch.switch import Switch


@pytest.fixture(scope="module")
def nano() -> TransformersEngine:
    return TransformersEngine.load(weights_path(), batch_size=64)


@pytest.fixture(scope="module")
def jumpy() -> Switch:
    """Nano's own switch with stage 1 alone, at a threshold that harmless requests pass too."""
    own = Switch.from_pretrained(switch_path())
    gate = replace(own.gate, stage2=None, watch=None, watch_until=None)
    return replace(own, gate=gate.with_thresholds({"stage1": 0.01}))


@pytest.fixture(scope="module")
def asked() -> list[Example]:
    return load_suite("lookalike", 120) + load_suite("plain_unsafe", 40)


@pytest.fixture(scope="module")
def observed(
    nano: TransformersEngine,
    jumpy: Switch,
    asked: Sequence[Example],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """A folder with the switch, and the audit of a server that observed with it."""
    folder = tmp_path_factory.mktemp("observed")
    jumpy.save_pretrained(folder / "switch")
    url = f"sqlite:///{folder / 'audit.db'}"
    store = Audit(url)
    replies = nano.generate(list(asked), switch=jumpy, max_new_tokens=1)
    for number, (example, reply) in enumerate(zip(asked, replies, strict=True)):
        decision = reply.decision
        store.write(
            {
                "request_id": f"r{number}",
                "choice": 0,
                "bundle": "default",
                "bundle_id": jumpy.fingerprint,
                "policy": "observe",
                "fired": decision.fired,
                "stage": decision.stage,
                "token_index": 0,
                "scores": json.dumps(dict(decision.scores)),
                "thresholds": json.dumps(dict(decision.thresholds)),
                "error": None,
                "text_sha256": hashlib.sha256(example.prompt.encode()).hexdigest(),
                "text": example.prompt,
            }
        )
    store.close()
    return folder, url


@pytest.fixture
def base(observed: tuple[Path, str], tmp_path: Path) -> list[object]:
    """Options of ``review``."""
    folder, url = observed
    return ["--url", url, "--switch", folder / "switch", "--reviews", tmp_path / "r.jsonl"]


def answers(monkeypatch: pytest.MonkeyPatch, letters: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{letter}\n" for letter in letters)))


def test_the_loop_gives_a_bundle_with_fewer_false_alarms_that_still_catches(
    call: Any,
    base: list[object],
    nano: TransformersEngine,
    jumpy: Switch,
    asked: Sequence[Example],
    tmp_path: Path,
) -> None:
    labels = {example.prompt: example.label for example in asked}
    code, told, error = call("review", *base, "--json", "--limit", 1000)
    assert code == 0, error
    rows = [json.loads(line) for line in told.splitlines()]
    margins = [row["margin"] for row in rows]
    assert margins == sorted(margins)
    given = tmp_path / "given.jsonl"
    given.write_text(
        "".join(
            json.dumps(
                {
                    "text_sha256": row["text_sha256"],
                    "verdict": "right" if labels[row["text"]] == "unsafe" else "false_alarm",
                }
            )
            + "\n"
            for row in rows
        )
    )
    code, told, error = call("review", *base, "--by", "ann", "--import", given)
    assert (code, told) == (0, f"{len(rows)} verdicts added to {tmp_path / 'r.jsonl'}\n"), error
    new = tmp_path / "new"
    code, told, error = call("recalibrate", *base, "--out", new, "--budget", 0.02, "--max-shift", 4)
    assert code == 0, error
    assert "false alarms a day at 10000 requests" in told
    assert "ann" in (new / "README.md").read_text()
    after = Switch.from_pretrained(new)
    fired = {
        switch: [
            reply.decision.fired
            for reply in nano.generate(list(asked), switch=switch, max_new_tokens=1)
        ]
        for switch in (jumpy, after)
    }
    safe = [not example.unsafe for example in asked]
    false = {
        switch: sum(f and s for f, s in zip(own, safe, strict=True))
        for switch, own in fired.items()
    }
    assert false[jumpy] >= 5
    # 160 requests at 2 %: 161 * .02 - 1 leaves room for two
    assert false[after] == 2
    assert sum(fired[after]) - false[after] >= 30


def test_verdicts_are_taken_row_by_row_and_a_second_run_goes_on(
    call: Any, base: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(monkeypatch, "fxrq")
    code, told, error = call("review", *base, "--by", "ann")
    assert code == 0, error
    assert "2 verdicts added" in told
    first = read_reviews(tmp_path / "r.jsonl")
    assert [(one.verdict, one.by) for one in first] == [("false_alarm", "ann"), ("right", "ann")]
    answers(monkeypatch, "su")  # and the end of input
    code, told, _ = call("review", *base, "--by", "bob")
    assert code == 0
    assert "2 have a verdict" in told
    assert [one.verdict for one in read_reviews(tmp_path / "r.jsonl")] == [
        "false_alarm",
        "right",
        "unsure",
    ]


def test_random_order_is_another_one_and_the_same_in_each_run(
    call: Any, base: list[object]
) -> None:
    shown = [call("review", *base, "--json", "--order", "random")[1] for _ in range(2)]
    assert shown[0] == shown[1] != call("review", *base, "--json")[1]


def test_the_page_shows_the_rows_and_runs_nothing_that_a_request_holds(
    call: Any, base: list[object], observed: tuple[Path, str], tmp_path: Path
) -> None:
    store = Audit(observed[1])
    known = next(record for record in store.export() if record["fired"])
    hostile = "<script>alert(1)</script>"
    shown = {name: value for name, value in known.items() if name not in ("id", "record", "at")}
    store.write({**shown, "text": hostile, "text_sha256": "a" * 64})
    store.close()
    code, _, error = call("review", *base, "--html", tmp_path / "page.html", "--limit", 500)
    assert code == 0, error
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert hostile not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_what_cannot_be_done_is_said_and_nothing_is_written(
    call: Any, base: list[object], observed: tuple[Path, str], tmp_path: Path
) -> None:
    code, _, error = call("recalibrate", *base, "--out", tmp_path / "new")
    assert code == 2
    assert "r.jsonl" in error
    (tmp_path / "r.jsonl").write_text('{"verdict": "right"}\n')
    code, _, error = call("recalibrate", *base, "--out", tmp_path / "new")
    assert code == 2
    assert "line 1" in error
    code, _, error = call("recalibrate", *base, "--out", observed[0] / "switch")
    assert code == 2
    assert "is the switch itself" in error
    assert not (tmp_path / "new").exists()
    code, _, error = call("review", *base, "--json", "--html", tmp_path / "page.html")
    assert code == 2
    assert "each go alone" in error


def test_fifty_verdicts_refit_the_last_layer_and_the_new_bundle_tells_of_it(
    call: Any,
    base: list[object],
    observed: tuple[Path, str],
    asked: Sequence[Example],
    tmp_path: Path,
) -> None:
    unsafe = {example.prompt: example.unsafe for example in asked}
    verdicts = []
    for line in call("review", *base, "--json", "--limit", 1000)[1].splitlines():
        row = json.loads(line)
        if row["text"] in unsafe:
            verdict = "right" if unsafe[row["text"]] else "false_alarm"
            verdicts.append({"text_sha256": row["text_sha256"], "verdict": verdict})
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts))
    assert call("review", *base, "--by", "ann", "--import", given)[0] == 0
    refit = ("recalibrate", *base, "--refit-last", "--model", "nano", "--out", tmp_path / "new")
    code, told, error = call(*refit)
    assert code == 0, error
    card = (tmp_path / "new/README.md").read_text()
    for line in told.splitlines()[:-1]:
        assert line in card
    assert "stage1: last layer fitted anew" in card
    assert Switch.from_pretrained(tmp_path / "new").fingerprint in told


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--model", "nano"], "--model goes with --refit-last alone"),
        (["--limit", 5], "--limit goes with --refit-last alone"),
        (["--refit-last"], "needs --model"),
        (["--refit-last", "--model", "nano", "--stage", "stage2"], "fits stage1"),
        (["--refit-last", "--model", "nano", "--max-shift", 1], "--max-shift is about the scores"),
        (["--refit-last", "--model", "nano", "--without-starter"], "needs --data"),
    ],
)
def test_options_of_a_refit_that_would_have_no_effect_are_refused(
    call: Any, base: list[object], tmp_path: Path, options: list[object], why: str
) -> None:
    code, _, error = call("recalibrate", *base, "--out", tmp_path / "new", *options)
    assert code == 2
    assert why in error
    assert not (tmp_path / "new").exists()


def test_a_reviewer_at_the_terminal_holds_nobody_else_up(
    call: Any, base: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reviews = tmp_path / "r.jsonl"
    letters = iter("rq")

    def answer(prompt: str) -> str:
        # what the page does, while the question stands
        add_reviews(reviews, [Review("0" * 64, "unsure", "page", 1.0, "another")])
        return next(letters)

    monkeypatch.setattr("builtins.input", answer)
    code, _, error = call("review", *base, "--by", "ann")
    assert code == 0, error
    assert [one.by for one in read_reviews(reviews)] == ["page", "ann", "page"]
