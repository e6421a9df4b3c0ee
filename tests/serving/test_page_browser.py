"""The page in a browser: a rollback is seen, by keyboard too; nothing is asked of another host; axe
finds nothing; it fits a phone.

With SAFESWITCH_SHOTS=docs/assets the screenshots of the documentation are made anew.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.types import PROMPT_END, Position, ReadPoint
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano import weights_path
from safeswitch.serving.audit import Audit
from safeswitch.serving.keys import add_key
from safeswitch.switch.gate import Gate, Stage
from tests.browser import chromium
from tests.serving.page_looked_at import ask, kept, looked_at, opened
from tests.serving.page_made import OPEN, SAFE, UNSAFE, Paged, paged
from tests.serving.test_audit import record
from tests.switch.test_gate import Says

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
pytestmark = pytest.mark.slow
DAY = 86_400.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel.load(weights_path())


@pytest.fixture(scope="module")
def server(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paged]:
    """The server of ``make demo-ui``, with a week of records in its audit."""
    with paged(demo(tmp_path_factory.mktemp("page")), lm=lm) as found:
        yield found


@pytest.fixture(scope="module")
def untraced(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paged]:
    """The same with the page that vLLM has."""
    with paged(demo(tmp_path_factory.mktemp("untraced")), lm=lm, traces=False) as found:
        yield found


def demo(folder: Path) -> dict[str, Any]:
    url = f"sqlite:///{folder / 'audit.db'}"
    fill(url)
    settings = {**OPEN, "ui_pilot_text": True, "audit": url, "audit_text": True}
    return {**settings, "ui_reviews": str(folder / "reviews.jsonl")}


def fill(url: str) -> None:
    """Records of a week that ends now, drawn at random."""
    draw, store = random.Random(0), Audit(url)
    for i in range(120):
        score = draw.betavariate(0.15, 1.5)
        fired = score > 0.75
        store.write({
            **record(i), "at": time.time() - draw.random() * 6 * DAY, "policy": "observe",
            "fired": fired, "stage": "stage1", "text": f"request number {i}",
            "scores": f'{{"stage1": {score}}}', "thresholds": '{"stage1": 0.75}',
        })  # fmt: skip
    store.close()


@pytest.mark.parametrize("kind", ["server", "untraced"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_every_view_is_accessible_and_fits_its_screen(
    browser: Any, request: pytest.FixtureRequest, kind: str, scheme: str, width: int
) -> None:
    name = "" if kind == "server" else f"{kind}-"
    with opened(browser, request.getfixturevalue(kind).url, width, scheme) as page:
        if kind == "server":
            page.uncheck("text=Readable pace")
        ask(page, UNSAFE)
        kept(page, f"{name}chat-{scheme}")
        ask(page, SAFE)
        looked_at(page)
        for view, sign in (("traffic", "figure"), ("switch", "table")):
            page.click(f"nav a[href='#{view}']")
            page.wait_for_selector(sign)
            looked_at(page)
            kept(page, f"{name}{view}-{scheme}")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightest = max(int(part) for part in ground[4:-1].split(","))
        assert (brightest < 60) == (scheme == "dark")


def test_a_rollback_is_seen_and_what_it_dropped(browser: Any, server: Paged) -> None:
    with opened(browser, server.url) as page:
        page.get_by_role("button", name=UNSAFE).click()
        page.wait_for_selector(".token.held")
        page.wait_for_selector(".token.rolled")
        assert page.locator(".verdict").first.inner_text() == "Being written."
        page.wait_for_selector("text=Refused: stage 1 read an unsafe request")
        assert page.locator(".token.rolled .text").all_inner_texts() == ["Well", ",", " I"]
        sides = page.locator(".reply").all_inner_texts()
        assert "I can't help with" in sides[0]
        assert "I can help with" in sides[1]
        assert "3 tokens rolled back" in page.locator(".steps").first.inner_text()


def test_sliders_say_what_would_have_been_decided(browser: Any, server: Paged) -> None:
    with opened(browser, server.url) as page:
        page.uncheck("text=Readable pace")
        ask(page, UNSAFE)
        ask(page, SAFE)
        cells = page.locator(".others td")
        refused = "refused by stage 2, after 3 reply tokens"
        playwright.expect(cells).to_have_text([refused, refused, "passes", "passes"])
        page.focus("#bar-stage2")
        page.keyboard.press("End")
        watched = "refused by watch, after 16 reply tokens"
        playwright.expect(cells).to_have_text([refused, watched, "passes", "passes"])
        page.focus("#bar-stage1")
        page.keyboard.press("End")
        page.focus("#bar-watch")
        page.keyboard.press("End")
        playwright.expect(cells).to_have_text([refused, "passes", "passes", "passes"])
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        playwright.expect(cells).to_have_text([refused, refused, "passes", "passes"])


def test_without_a_trace_a_rollback_is_told_by_the_decision(browser: Any, untraced: Paged) -> None:
    with opened(browser, untraced.url) as page:
        page.get_by_role("button", name=UNSAFE).click()
        page.wait_for_selector("text=Refused: stage 1 read an unsafe request")
        page.wait_for_selector(".composer .main:enabled")
        assert page.locator(".strip").count() == 0
        assert "this server does not trace tokens" in page.locator(".turn").inner_text()
        assert page.get_by_text("Readable pace").count() == 0
        sides = page.locator(".reply").all_inner_texts()
        assert "I can't help with" in sides[0]
        assert "I can help with" in sides[1]
        first, second, third = page.locator(".steps").first.locator("li").all_inner_texts()
        assert first == "Stage 1, at the prompt's end: 0.976 is above 0.749. Stage 2 will decide."
        assert second.startswith("Stage 2, after 3 reply tokens: ")
        assert second.endswith("The request is flagged.")
        assert third == "Rolled back after 3 reply tokens; the refusal begins at the prompt's end."
        assert page.locator(".verdict").last.inner_text() == "Written without the guard."


def test_without_a_trace_sliders_say_what_can_be_said(browser: Any, untraced: Paged) -> None:
    with opened(browser, untraced.url) as page:
        ask(page, UNSAFE)
        ask(page, SAFE)
        cells = page.locator(".others td")
        refused = "refused by stage 2, after 3 reply tokens"
        unsaid = "cannot be said: Watch was not asked"
        playwright.expect(cells).to_have_text([refused, refused, "passes", "passes"])
        page.focus("#bar-stage2")
        page.keyboard.press("End")
        playwright.expect(cells).to_have_text([refused, unsaid, "passes", "passes"])
        page.focus("#bar-watch")
        page.keyboard.press("Home")
        at_most = re.compile(r"^refused by watch, after at most \d+ reply tokens$")
        playwright.expect(cells).to_have_text([refused, unsaid, "passes", at_most])


def test_a_verdict_is_given_in_the_queue_and_stays(browser: Any, server: Paged) -> None:
    with opened(browser, server.url) as page:
        page.click("nav a[href='#traffic']")
        button = page.get_by_role("button", name="false alarm").first
        button.click()
        playwright.expect(button).to_have_attribute("aria-pressed", "true")
        page.reload()
        playwright.expect(button).to_have_attribute("aria-pressed", "true")
        unsure = page.get_by_role("button", name="unsure").first
        playwright.expect(unsure).to_have_attribute("aria-pressed", "false")


def test_a_keyboard_is_enough_and_the_key_is_kept_nowhere(
    browser: Any, lm: LanguageModel, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "sees", scores=True)
    with paged({"ui": True, "keys": str(keys)}, lm=lm) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{server.url}/ui")
        page.focus("#key")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        assert "known API key" in page.get_by_role("alert").inner_text()
        looked_at(page)
        page.focus("#key")
        page.keyboard.press("Control+a")
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        page.get_by_role("button", name=UNSAFE).wait_for()
        for _ in range(2):  # the main part has the focus: the first example, the second
            page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Refused: stage 1 read an unsafe request")
        page.wait_for_selector(".composer .main:enabled")
        playwright.expect(page.locator("#draft")).to_be_focused()
        assert set(page.locator(".token.rolled .text").all_inner_texts()) == {"▪▪"}
        assert "clients that may ask for the policy" in page.locator(".sides").inner_text()
        page.focus(".strip")
        page.keyboard.press("End")
        said = page.locator(".strip .readout").first
        playwright.expect(said).to_have_text("<|assistant|>: score 0.976, above the threshold")
        playwright.expect(page.locator("p[role=status]")).to_contain_text("Refused")
        stored = "localStorage.length + sessionStorage.length + document.cookie.length"
        assert page.evaluate(stored) == 0
        page.reload()
        page.wait_for_selector("#key")
        context.close()


def test_what_is_written_is_text_and_never_part_of_the_page(browser: Any, server: Paged) -> None:
    with opened(browser, server.url) as page:
        page.uncheck("text=Readable pace")
        ask(page, "<img src=x onerror=alert(1)><b>bold</b>")
        assert "<img src=x" in page.locator(".asked").inner_text()
        assert page.locator("#main img, #main b").count() == 0


class Fixed(Says):
    """One score."""

    def score(self, activations: Activations) -> Tensor:
        return torch.tensor(self.scores[:1])


def test_other_thresholds_are_decided_as_the_gate_decides(browser: Any, server: Paged) -> None:
    draw, told, expected = random.Random(1), [], []
    for _ in range(300):
        case = random_case(draw)
        told.append(case)
        expected.append(decided(case))
    script = """async (cases) => {
        const { decide } = await import("/ui/decide.js");
        return cases.map((c) => decide(c.readings, c.gate, c.thresholds));
    }"""
    with opened(browser, server.url) as page:
        found = page.evaluate(script, told)
    assert [(one["stage"], one["at"]) for one in found] == expected
    assert {stage for stage, _ in expected} == {None, "stage1", "stage2", "watch"}


def test_what_is_said_of_a_reply_whose_last_readings_alone_are_known_is_never_wrong(
    browser: Any, server: Paged
) -> None:
    draw, whole, last = random.Random(2), [], []
    for _ in range(400):
        case = random_case(draw)
        own, case["thresholds"]["watch"] = draw.random(), draw.random()
        case["gate"]["stages"] = sorted({*case["gate"]["stages"], "watch"})
        watch = [{"score": draw.random(), "at": 8 * i} for i in range(1, draw.randint(2, 5))]
        fired = next((i for i, one in enumerate(watch) if one["score"] > own), len(watch) - 1)
        told = {**case["readings"], "watch": [watch[fired]], "whole": watch[fired]["score"] <= own}
        told |= {"unseen": own} if fired else {}
        whole.append({**case, "readings": {**case["readings"], "watch": watch}})
        last.append({**case, "readings": told})
    script = """async (cases) => {
        const { decide } = await import("/ui/decide.js");
        return cases.map((c) => decide(c.readings, c.gate, c.thresholds));
    }"""
    with opened(browser, server.url) as page:
        right, said = page.evaluate(script, whole), page.evaluate(script, last)
    kinds = set()
    for expected, found in zip(right, said, strict=True):
        if "missing" in found:
            kinds.add("missing")
            continue
        assert found["stage"] == expected["stage"]
        earlier = bool(found.get("latest"))
        assert found["at"] >= expected["at"] if earlier else found["at"] == expected["at"]
        kinds.add("at most" if earlier else "exact")
    assert kinds == {"missing", "at most", "exact"}


def random_case(draw: random.Random) -> dict[str, Any]:
    """Readings and thresholds of a gate with some of its stages."""
    stages = ["stage1", *draw.sample(["stage2", "watch"], draw.randint(0, 2))]
    product = "stage2" in stages and draw.random() < 0.5
    names = (["product"] if product else []) + [s for s in stages if not product or s == "watch"]
    watch = [{"score": draw.random(), "at": at} for at in (8, 16)] if "watch" in stages else []
    second = {"score": draw.random(), "at": 3} if "stage2" in stages else None
    readings = {"stage1": {"score": draw.random(), "at": 0}, "stage2": second, "watch": watch}
    return {
        "readings": {**readings, "whole": True},
        "gate": {"rule": "product" if product else "and", "stages": stages},
        "thresholds": {name: round(draw.random(), 2) for name in names},
    }


def decided(case: dict[str, Any]) -> tuple[str | None, int]:
    """The stage that fires and its place, by the gate itself."""
    readings, bars = case["readings"], case["thresholds"]
    pilot = ReadPoint(2, Position("pilot", 3))
    score = {name: readings[name]["score"] for name in ("stage1", "stage2") if readings[name]}
    stages = {
        "stage1": Stage(Fixed(score["stage1"], points=(ReadPoint(2, PROMPT_END),)), 0.5),
        "stage2": Stage(Fixed(score["stage2"], points=(pilot,)), 0.5)
        if "stage2" in score
        else None,
    }
    watched = [Stage(Fixed(one["score"], points=(pilot,)), 0.5) for one in readings["watch"]]
    gate = Gate(**stages, watch=watched[0] if watched else None, rule=case["gate"]["rule"])
    gate = gate.with_thresholds(bars)
    states = Activations({point: torch.zeros(1, 2) for point in gate.points})
    first = gate.at_prompt(states)
    if bool(first.fired):
        return "stage1", 0
    if bool(first.pending) and bool(gate.at_pilot(states, first.scores).fired):
        return "stage2", 3
    for one, reading in zip(watched, readings["watch"], strict=True):
        late = Gate(watch=one).with_thresholds({"watch": bars["watch"]})
        if bool(late.at_watch(states).fired):
            return "watch", reading["at"]
    return None, 0
