"""The report as a file: known figures in words and tiles, nothing loaded from outside, harm folded
away, texts escaped."""

from __future__ import annotations

import base64
import csv
import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy.stats import binomtest

from safeswitch.bench.outputs import write_tables
from safeswitch.core.artifact import read_json, write_json
from safeswitch.core.errors import ArtifactError
from safeswitch.report.page import write_report
from tests.report.made import ATTACKED_HARM, HARM, HARMFUL, OVER, SLIPPED, add_analyses, made_run


class Page(HTMLParser):
    """Tags with attributes, and text with the tags that it stands in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, tuple[str, ...]]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "path", "use", "rect", "br", "line", "circle", "image"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.texts.append((data, tuple(self._open)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = made_run(tmp_path_factory.mktemp("run"))
    add_analyses(run)
    write_tables(run)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_analyses_that_did_not_run_have_no_picture(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    add_analyses(run)
    found = read_json(run / "analyses.json")
    kept = {name: found[name] for name in found if name not in ("projection", "strips")}
    write_json(run / "analyses.json", {**kept, "lengths": [1, 2]})
    write_report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Telling unsafe requests apart" in page
    assert "States before and after" not in page
    assert "Scores, conversation 1" not in page


def test_the_verdict_says_the_known_figures(html: str) -> None:
    plain = re.sub(r"\s+", " ", unescape(html).replace("\N{NO-BREAK SPACE}", " "))

    def share(hits: int) -> str:
        bounds = binomtest(hits, 20).proportion_ci(method="wilson")
        return f"{5 * hits:.1f} % ({100 * bounds.low:.1f} to {100 * bounds.high:.1f} %)"

    own, base = "safeswitch", "base"
    assert (
        f"SafeSwitch complied with {share(HARM[own])} of unsafe requests; the untouched model {share(HARM[base])}."
        in plain
    )
    assert (
        f"It refused {share(OVER[own])} of safe requests; the untouched model {share(OVER[base])}."
        in plain
    )
    assert (
        f"complied with {share(ATTACKED_HARM[own])} of the attacked requests under gcg-prober"
        in plain
    )
    assert f"fired on only {share(20 - SLIPPED)} of them under gcg-prober" in plain
    assert "A prober is a tripwire, not a wall" in plain
    assert "missing here: gated_set (1 of the suite's benchmarks)" in plain
    assert "gated_set: the hub says no" in plain
    assert f'<div class="value">{5 * HARM[own]:.1f} %</div>' in plain


def test_nothing_is_loaded_from_outside(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in html
    assert not re.search(r"url\((?!['\"]?#)", html)


def test_unsafe_requests_stand_in_folded_parts_alone_and_are_escaped(html: str) -> None:
    page = Page(html)
    told = [where for text, where in page.texts if HARMFUL in text]
    assert told
    assert all("details" in where for where in told)
    assert "<script>alert" not in html
    assert "<b>" not in "".join(re.findall(r'<p class="tokens">.*?</p>', html))
    opened = [
        attributes for tag, attributes in page.tags if tag == "details" and "open" in attributes
    ]
    assert 0 < len(opened) < sum(tag == "details" for tag, _ in page.tags)
    unfolded = re.findall(r"<details open>.*?</details>", html, re.DOTALL)
    assert not any("harmful request" in part for part in unfolded)


def test_every_picture_has_a_name_and_every_id_is_used_once(html: str) -> None:
    page = Page(html)
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) >= 14
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"] or "") > 20
    anchors = {
        (a["href"] or "")[1:]
        for tag, a in page.tags
        if tag == "a" and (a.get("href") or "").startswith("#")
    }
    outside = [a["id"] for tag, a in page.tags if tag in ("section", "h2", "button") and "id" in a]
    assert len(set(outside)) == len(outside)
    assert anchors <= set(outside)
    assert sum(tag == "h1" for tag, _ in page.tags) == 1


def test_every_table_can_be_saved_and_is_the_one_beside_the_report(folder: Path, html: str) -> None:
    links = dict(re.findall(r'href="data:text/csv;base64,([^"]+)" download="(\w+)\.csv"', html))
    saved = {name: base64.b64decode(data).decode() for data, name in links.items()}
    for path in (folder / "tables").glob("*.csv"):
        assert saved[path.stem] == path.read_text(encoding="utf-8")
    visage = list(csv.DictReader(io.StringIO(saved["visage"])))
    assert {row["moved"]: float(row["VISAGE"]) for row in visage}["model, gate"] == 75.0
    attacks = [
        row
        for row in csv.DictReader(io.StringIO(saved["attacks"]))
        if row["method"] == "safeswitch"
    ]
    assert {(r["attack"], r["metric"]): float(r["value"]) for r in attacks if r["metric"] == "gate recall"} == {
        ("none", "gate recall"): 0.9, ("gcg-prober", "gate recall"): (20 - SLIPPED) / 20
    }  # fmt: skip


def test_what_was_not_run_is_said_and_leaves_no_empty_panel(tmp_path: Path) -> None:
    write_report(made_run(tmp_path, attacked=False, finished=False))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "run: safeswitch attack" in html
    assert "run: safeswitch landscape" in html
    assert "This run is not finished" in html
    assert 'id="attacks"' in html
    assert html.count("<svg") == html.count("<figure>") > 0


def test_the_same_folder_gives_the_same_report(tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        write_report(made_run(tmp_path, attacked=False))
        texts.append((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert texts[0] == texts[1]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        write_report(tmp_path)
    made_run(tmp_path, attacked=False)
    (tmp_path / "landscape.json").write_text('{"format_version": 0}')
    with pytest.raises(ArtifactError, match=r"landscape\.json: format version 0 is not supported"):
        write_report(tmp_path)
