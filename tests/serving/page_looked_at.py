"""A page in a headless Chromium: opened, asked, and looked at with axe; what it asked for and what
failed is held against it at the end."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

REQUEST = re.compile(r"^Request \d+$")


@contextmanager
def opened(
    browser: Any, url: str, width: int = 1280, scheme: str = "light", key: str = ""
) -> Iterator[Any]:
    """The page of the server at ``url``; at the end, everything it asked for must have been that
    server's, and nothing may have failed but what asks for the ``key``."""
    size = {"width": width, "height": 900}
    context = browser.new_context(color_scheme=scheme, viewport=size, reduced_motion="reduce")
    page = context.new_page()
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto(f"{url}/ui")
    if key:
        page.fill("#key", key)
        page.press("#key", "Enter")
        page.wait_for_selector("#draft")
    yield page
    assert asked
    assert [one for one in asked if not one.startswith(f"{url}/ui")] == []
    assert len(faults) == (1 if key else 0), faults
    context.close()


def ask(page: Any, text: str) -> None:
    """Send a request by keyboard, and wait until both replies are whole."""
    before = page.get_by_text(REQUEST).count()
    page.fill("#draft", text)
    page.press("#draft", "Enter")
    # not for the button to be disabled: a quick reply is whole before anybody looks
    page.get_by_text(f"Request {before + 1}", exact=True).first.wait_for()
    page.wait_for_selector(".composer .main:enabled")


def looked_at(page: Any) -> None:
    """No violation of an accessibility rule, and nothing wider than the screen."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def kept(page: Any, name: str) -> None:
    """A picture of the page, where somebody wants it, in few colours so that it is small."""
    if keep := os.environ.get("SAFESWITCH_SHOTS"):
        whole = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
        whole.quantize(64).save(Path(keep) / f"page-{name}.png", optimize=True)
