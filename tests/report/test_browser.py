"""The report in a real Chromium: light, dark and narrow; nothing overflows, nothing is cut off,
nothing is fetched.

Skipped by name where there is no browser. With SAFESWITCH_SHOTS=folder the screenshots are kept
there, to be looked at.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

from safeswitch.report.page import write_report
from tests.report.made import add_analyses, made_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)

TEXTS = """() => [...document.querySelectorAll('svg.chart')].map(svg => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(t => {
    const b = t.getBoundingClientRect();
    return {text: t.textContent.trim(), left: b.left - frame.left, right: frame.right - b.right, top: b.top - frame.top,
            bottom: frame.bottom - b.bottom, box: [b.left, b.top, b.right, b.bottom],
            size: parseFloat(getComputedStyle(t).fontSize) * frame.width / svg.viewBox.baseVal.width};
  }).filter(t => t.text);
  return {name: svg.getAttribute('aria-label'), width: frame.width, height: frame.height, texts};
})"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = made_run(tmp_path_factory.mktemp("run"))
    add_analyses(run)
    write_report(run)
    return (run / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Visit:
    """One page, with all that it asked for and complained of."""

    def __init__(
        self, browser: Any, address: str, scheme: str = "light", width: int = 1360
    ) -> None:
        self.context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True
        )
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def shot(self, name: str) -> Image.Image:
        """The first screen; the whole page is kept as well where that is asked for."""
        if keep := os.environ.get("SAFESWITCH_SHOTS"):
            self.page.screenshot(path=Path(keep) / f"{name}.png", full_page=True)
        return Image.open(io.BytesIO(self.page.screenshot())).convert("L")


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    visits: list[Visit] = []

    def go(*args: Any) -> Visit:
        visits.append(Visit(browser, address, *args))
        return visits[-1]

    yield go
    for one in visits:
        one.context.close()


def brightness(image: Image.Image) -> float:
    return float(ImageStat.Stat(image).median[0])


def test_the_page_follows_the_systems_theme_and_the_button_changes_it(visit: Any) -> None:
    light, dark = visit("light"), visit("dark")
    assert brightness(light.shot("light")) > 225
    assert brightness(dark.shot("dark")) < 40
    dark.page.click("#theme")
    assert brightness(dark.shot("dark-made-light")) > 225
    dark.page.reload()
    assert brightness(dark.shot("still-light")) > 225
    light.page.click("#theme")
    assert brightness(light.shot("light-made-dark")) < 40


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 800), ("light", 390)])
def test_nothing_overflows_and_no_label_is_cut_off_overlaps_or_is_tiny(
    visit: Any, scheme: str, width: int
) -> None:
    seen = visit(scheme, width)
    assert ImageStat.Stat(seen.shot(f"{scheme}-{width}")).stddev[0] > 10
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    charts = seen.page.evaluate(TEXTS)
    assert len(charts) >= 14
    for chart in charts:
        assert chart["width"] > 250, chart["name"]
        assert chart["height"] > 100, chart["name"]
        assert len(chart["texts"]) >= 4, chart["name"]
        for text in chart["texts"]:
            assert min(text["left"], text["right"], text["top"], text["bottom"]) > -2.5, (
                chart["name"],
                text,
            )
            assert text["size"] >= 8.5, (chart["name"], text)
        boxes = [(t["text"], t["box"]) for t in chart["texts"]]
        for i, (one, a) in enumerate(boxes):
            for other, b in boxes[i + 1 :]:
                wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                assert wide < 3 or high < 4, (chart["name"], one, other)


def test_the_page_asks_for_nothing_but_itself_and_complains_of_nothing(
    visit: Any, address: str
) -> None:
    seen = visit()
    assert [url for url in seen.asked if not url.startswith("data:")] == [address]
    assert seen.complaints == []


def test_harmful_text_is_not_seen_until_it_is_unfolded(visit: Any) -> None:
    page = visit().page
    asked = page.locator("#examples .asked", has_text="harmful").first
    assert not asked.is_visible()
    page.locator("#examples summary").first.click()
    assert asked.is_visible()
    assert "<script>" in asked.inner_text()


def test_the_first_screen_holds_the_verdict(visit: Any) -> None:
    page = visit().page
    for place in (page.locator("h1"), page.locator(".tile").first, page.locator(".words li").first):
        box = place.bounding_box()
        assert box["y"] + box["height"] <= 900


def test_a_table_is_saved_as_csv_from_the_page(visit: Any, tmp_path: Path) -> None:
    page = visit().page
    with page.expect_download() as waiting:
        page.locator("#tables details[open] a[download]").first.click()
    waiting.value.save_as(tmp_path / "saved.csv")
    assert (
        (tmp_path / "saved.csv")
        .read_text()
        .startswith("benchmark,method,judge,metric,better,value,low,high,n\n")
    )
    assert waiting.value.suggested_filename == "rates.csv"
