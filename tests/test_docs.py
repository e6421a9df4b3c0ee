"""The documentation builds strictly, its links lead somewhere, its code runs, its commands parse.

With SAFESWITCH_SHOTS=folder the screenshots are kept there, to be looked at.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

import safeswitch
from safeswitch.engines.settings import GuardSettings
from safeswitch.engines.vllm.settings import engine_flags
from tests.browser import chromium

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
MOST_README_BYTES = 6144
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = re.compile(
    r"^<!-- run -->\n```python\n(?P<code>.*?)^```\n"
    r"(?:\n<!-- output -->\n```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
README_RUN = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- the built site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings", "prometheus_client"):
        pytest.importorskip(package, reason=f"{package} is absent: pip install 'safeswitch[docs]'")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Page(HTMLParser):
    """A page's anchors, the links in it, and what a browser would fetch for it."""

    FETCHED = (
        ("script", "src"),
        ("link", "href"),
        ("img", "src"),
        ("iframe", "src"),
        ("source", "src"),
    )

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {found[name] or "" for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"] or "")
        self.fetched += [
            found[name] or "" for kind, name in self.FETCHED if kind == tag and name in found
        ]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_and_anchor_of_the_site_leads_somewhere(pages: dict[Path, Page]) -> None:
    followed = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link in ("#", "."):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, f"{path}: {link}"
            followed += 1
    assert followed > 500


def test_no_page_asks_another_host_for_anything(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.fetched:
            assert not urlsplit(address).netloc, f"{path} fetches {address}"
    for path in site.rglob("*.css"):
        assert not re.search(
            r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")
        ), path


def test_the_generated_reference_knows_every_name_command_and_metric(
    pages: dict[Path, Page], site: Path
) -> None:
    api = pages[site / "reference/api.html"].ids
    assert {f"safeswitch.{name}" for name in safeswitch.__all__ if not name.startswith("_")} <= api
    commands = pages[site / "reference/cli.html"].ids
    assert {"safeswitch-fit", "safeswitch-keys-add", "safeswitch-serve"} <= commands
    metrics = (site / "reference/metrics.html").read_text(encoding="utf-8")
    for name in ("requests_total", "score", "latency_seconds", "drift_psi", "prober_errors_total"):
        assert f"safeswitch_{name}</code>" in metrics
    fields = (site / "reference/vllm-fields.html").read_text(encoding="utf-8")
    assert "POST /v1/chat/completions" in fields
    assert "<code>temperature</code>" in fields
    catalogue = (site / "reference/catalogue.html").read_text(encoding="utf-8")
    assert "<code>scans</code>" in catalogue
    assert "<code>xstest</code>" in catalogue


def test_every_page_of_the_folder_stands_in_the_navigation() -> None:
    told = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in PAGES:
        if not path.name.startswith("_"):
            assert path.relative_to(ROOT / "docs").as_posix() in told, path


# --- texts as they lie in the repository


def test_the_readme_is_short_and_shows_its_picture() -> None:
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= MOST_README_BYTES
    assert b"docs/assets/flow.svg" in text


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_links_between_files_lead_to_files(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    generated = {
        "api.md",
        "cli.md",
        "configuration.md",
        "metrics.md",
        "catalogue.md",
        "kinds.md",
        "vllm-fields.md",
    }
    generated |= {"contributing.md", "changelog.md"}
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        parts = urlsplit("".join(link))
        if not parts.scheme and parts.path and Path(parts.path).name not in generated:
            assert (path.parent / parts.path).exists(), f"{named(path)}: {parts.path}"


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_files_of_the_repository_that_are_named_exist(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for name in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|md|toml))`", text):
        if not name.endswith("yours.py"):
            assert (ROOT / name).exists() or (ROOT / "src/safeswitch" / name).exists(), (
                f"{named(path)}: {name}"
            )


def test_the_flags_of_the_vllm_page_are_those_that_are_set() -> None:
    text = (ROOT / "docs/background/vllm.md").read_text(encoding="utf-8")
    flags = engine_flags(GuardSettings({"default": "folder"}), ["NAME"])
    assert f"`{flags['logits_processors'][0]}`" in text
    assert f"`{flags['worker_extension_cls']}`" in text
    assert f"`{flags['logprobs_mode']}`" in text
    assert json.dumps(flags["model_class_overrides"]) in text


def spoken() -> Iterator[tuple[str, str, bool]]:
    """Every ``safeswitch ...`` command: where, its words, whether it stands in a code block."""
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for language, block in FENCE.findall(text):
            if language in ("sh", "console", "bash", ""):
                for line in block.replace("\\\n", " ").splitlines():
                    yield from ((named(path), part, True) for part in re.split(r" && | ; ", line))
        for inline in re.findall(r"`(\S*safeswitch [^`]+)`", FENCE.sub("", text)):
            yield named(path), re.sub(r"[\[\]\n]", " ", inline), False


COMMANDS = sorted({one for one in spoken() if re.match(r"(\S*/)?safeswitch ", one[1].strip())})


def fault_of(line: str) -> tuple[str, str] | None:
    """Kind and text of what the parser says against a command, None where it takes it."""
    from safeswitch.cli.main import app

    command: Any = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    while hasattr(command, "commands") and words:
        if words[0] not in command.commands:
            return "NoSuchCommand", words[0]
        command = command.commands[words.pop(0)]
    try:
        command.make_context(command.name, words)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


@pytest.mark.parametrize(("where", "line", "whole"), COMMANDS)
def test_commands_that_are_shown_exist_with_their_options(
    where: str, line: str, whole: bool
) -> None:
    found = fault_of(line)
    if not whole and found is not None and found[0] in ("MissingParameter", "BadOptionUsage"):
        return  # a command named in a sentence need not be complete
    assert found is None, f"{where}: {line}: {found}"


def test_a_command_with_an_option_that_does_not_exist_is_found() -> None:
    assert fault_of("safeswitch fit --model M --out s/ --no-such-option") is not None
    assert fault_of("safeswitch no-such-command") == ("NoSuchCommand", "no-such-command")
    assert fault_of("safeswitch fit --model M --out s/") is None


# --- code that is shown and run

RUNNER = """
import contextlib, io, json, sys, traceback
told = []
for blocks in json.load(open(sys.argv[1])):
    space = {"__name__": "shown"}
    for code in blocks:
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(code, "shown", "exec"), space)
        except Exception:
            out.write(traceback.format_exc())
        told.append(out.getvalue())
json.dump(told, open(sys.argv[2], "w"))
"""


def runnable() -> dict[str, list[tuple[str, str | None]]]:
    """Code and expected output by page."""
    found = {}
    for path in TEXTS:
        pattern = README_RUN if path.name == "README.md" else RUN
        shown = pattern.finditer(path.read_text(encoding="utf-8"))
        if blocks := [(match["code"], match["output"]) for match in shown]:
            found[named(path)] = blocks
    return found


def test_code_that_is_shown_as_run_gives_the_output_that_is_shown(tmp_path: Path) -> None:
    shown = runnable()
    assert {"README.md", "docs/index.md", "docs/guides/extend.md"} <= set(shown)
    given, told = tmp_path / "given.json", tmp_path / "told.json"
    given.write_text(json.dumps([[code for code, _ in blocks] for blocks in shown.values()]))
    # In a process of its own: a page registers methods, which later tests must not find.
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, given, told], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    outputs = iter(json.loads(told.read_text()))
    for where, blocks in shown.items():
        for code, expected in blocks:
            assert next(outputs) == (expected or ""), f"{where}:\n{code}"


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_modules_that_shown_code_imports_exist(path: Path) -> None:
    for language, block in FENCE.findall(path.read_text(encoding="utf-8")):
        if language == "python":
            for module in re.findall(r"^from (safeswitch[\w.]*) import", block, re.MULTILINE):
                assert importlib.util.find_spec(module) is not None, f"{named(path)}: {module}"


# --- looked at in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_search_finds_a_page_that_was_opened_from_disk(site: Path, browser: Any) -> None:
    page = browser.new_context(offline=True).new_page()
    page.goto((site / "guides/fit.html").as_uri())
    page.click("[data-md-component=search-query]")
    page.keyboard.type("fingerprint")
    found = page.wait_for_selector(".md-search-result__link")
    assert found.get_attribute("href").startswith("file:")
    page.context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_pages_fit_their_screen_and_fetch_nothing(
    site: Path, browser: Any, scheme: str, width: int
) -> None:
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True
    )
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name in (
        "index",
        "concepts/how-it-works",
        "results/methods",
        "reference/api",
        "reference/cli",
    ):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", background)[:3])) < 60) == (scheme == "dark"), (
            background
        )
        for picture in page.query_selector_all("article img"):
            assert picture.evaluate("p => p.complete && p.naturalWidth > 0"), name
        if keep := os.environ.get("SAFESWITCH_SHOTS"):
            page.screenshot(path=Path(keep) / f"docs-{name.replace('/', '-')}-{scheme}-{width}.png")
    assert [
        address for address in asked if not address.startswith(("file:", "data:", "blob:"))
    ] == []
    context.close()
