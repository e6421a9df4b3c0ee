"""The demo's job on a real language model: fit on the starter set alone, compare, show.

Nothing is chosen on what is measured: the fit sees the starter set without its held-out rows, and
its settings are the product's, within limits that keep the whole under half an hour on two cores
for a model of 135M parameters. What is measured: the held-out rows by kind, and any public sets
that a folder holds. A run that was cut off is resumed. Knows nothing of the command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from safeswitch.activations.states import Activations
from safeswitch.bench.bench import BenchSettings, run_bench
from safeswitch.bench.benchmark import Benchmark, Loaded, drawn
from safeswitch.bench.candidates import Fitting, kept, prepare
from safeswitch.bench.estimates import Table, belongs, fraction
from safeswitch.bench.log import Logged, LoggedRows, RunLog
from safeswitch.bench.metrics import HARM, NEITHER, OVER_REFUSAL, Metric, outcomes
from safeswitch.bench.picture import check_drawable, draw_rates
from safeswitch.bench.runner import Candidate, Progress
from safeswitch.bench.slices import BY, SLICES, Slice
from safeswitch.bench.table import rates_table
from safeswitch.core.artifact import check_writable, write_json, write_text
from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.lock import folder_writer
from safeswitch.core.track import Track, untracked
from safeswitch.core.types import LABELS, RUNNING, Example, Prompt, ReadPoint, Reply
from safeswitch.data import starter
from safeswitch.data.readers import read_examples
from safeswitch.data.splits import HELD, fit_split
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.files import fitting_requests, read_sources
from safeswitch.fitting.fit import PARTS, answered_rows, does_not_refuse
from safeswitch.fitting.gate import fit_gate
from safeswitch.fitting.kept import Kept
from safeswitch.fitting.observe import observe
from safeswitch.fitting.plan import FitPlan
from safeswitch.fitting.refusal_head import HeadSettings
from safeswitch.fitting.settings import FitSettings
from safeswitch.nano.study import Clock
from safeswitch.switch.engine import Around, ReadingEngine
from safeswitch.switch.switch import Switch

Say = Callable[[str], None]
METHODS = ("base", "prompt", "head", "paper", "safeswitch")
TITLES: Mapping[str, str] = {
    "base": "untouched",
    "prompt": "safety prompt",
    "head": "head always on",
    "paper": "the paper's probers",
    "safeswitch": "SafeSwitch",
}
JUDGE = "rules"
REPLY_TOKENS = 24
ANSWERED = 250
"""Most requests of a part that the model answers while it is fitted."""
_FEW = 10
_OPTIONS: Mapping[str, JsonMapping] = {"prompt": {"requests": 16}}
_CARD = """{title}.

Source: {source}
Licence: {licence}
Revision: as found
Rows: drawn evenly from those there
Label: every request is {label}
Noise: refusal is told by rules, from the first {tokens} tokens of a reply
"""


@dataclass(frozen=True)
class Suite:
    """Requests of one label.

    Args:
        name: ``<origin>_<set>_<label>``.
        origin: ``starter`` or ``public``.
        label: ``safe`` or ``unsafe``.
        title: For tables.
        rows: What they are drawn from.
    """

    name: str
    origin: str
    label: str
    title: str
    rows: tuple[Example, ...]

    def loaded(self, count: int, seed: int) -> Loaded:
        """At most ``count`` of the requests, as a run takes them."""
        licence = "Apache-2.0" if self.origin == "starter" else "see the set"
        card = _CARD.format(
            title=self.title,
            source=self.origin,
            licence=licence,
            label=self.label,
            tokens=REPLY_TOKENS,
        )
        benchmark = Benchmark(self.name, card, judges=(JUDGE,), max_new_tokens=REPLY_TOKENS)
        chosen = drawn(list(self.rows), count, seed)
        return Loaded(benchmark, tuple(chosen), len(self.rows), self.origin)


class Reading(Around):
    """An engine that reads the same points whatever part of them is asked for.

    So what is kept of its answers serves every gate.

    Args:
        inner: What generates.
        points: All that will be read.
    """

    def __init__(self, inner: ReadingEngine, points: Sequence[ReadPoint]) -> None:
        super().__init__(inner)
        self._points = tuple(dict.fromkeys(points))

    def collect(
        self,
        prompts: Sequence[Prompt],
        points: Sequence[ReadPoint],
        *,
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[list[Reply], Activations]:
        points = self._points
        if not max_new_tokens:
            points = tuple(p for p in points if p.position.kind not in RUNNING)
        return super().collect(prompts, points, max_new_tokens=max_new_tokens, progress=progress)


def real_settings(seed: int = 0) -> FitSettings:
    """The product's defaults, with shorter replies and one rank of the head, to save time.

    Rank 1 does not suffice on such a model; 4 is the largest that a fit tries by default.
    """
    head = HeadSettings(ranks=(4,), batch_tokens=256, seed=seed)
    return FitSettings(seed=seed, max_new_tokens=REPLY_TOKENS, answered=ANSWERED, head=head)


def paper_settings(settings: FitSettings) -> FitSettings:
    """The paper's probers: a perceptron a stage, on the last layer and token; no watch.

    Thresholds keep the same budget as ours do, so that the readers alone differ.
    """
    return replace(
        settings, readers=("layers",), layers=(-1,), calibrate="pooled", stages="two", watch=False
    )


def starter_suites() -> list[Suite]:
    """The held-out rows of the starter set by kind and label; small kinds are taken together."""
    found: dict[tuple[str, str], list[Example]] = {}
    for example in starter.load((HELD,)):
        found.setdefault((starter.kind(example), example.label), []).append(example)
    suites: dict[tuple[str, str], list[Example]] = {}
    for (kind, label), rows in found.items():
        suites.setdefault((kind if len(rows) >= _FEW else "various", label), []).extend(rows)
    return [_suite("starter", kind, label, rows) for (kind, label), rows in sorted(suites.items())]


def public_suites(folder: Path | None, say: Say) -> list[Suite]:
    """Every JSONL file of labelled requests in ``folder``, each label a suite of its own.

    Args:
        folder: None, or one that is not there, gives none, and that is said.
        say: Told of it, and of files whose rows have no label.
    """
    if folder is None or not folder.is_dir():
        say(
            "no public sets: "
            + ("no folder was named (--data)" if folder is None else f"there is no folder {folder}")
        )
        return []
    suites = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            rows = read_examples(path)
        except DataError as error:
            say(f"{path.name} is left out: {str(error).splitlines()[0]}")
            continue
        for label in LABELS:
            own = [row for row in rows if row.label == label]
            if own:
                suites.append(_suite("public", path.stem, label, own))
    return suites


def _suite(origin: str, name: str, label: str, rows: Sequence[Example]) -> Suite:
    return Suite(
        f"{origin}_{name}_{label}",
        origin,
        label,
        f"{name.replace('_', ' ')}, {label} ({origin})",
        tuple(rows),
    )


def run_real(
    out: Path,
    model: Path | str,
    *,
    name: str,
    data: Path | None = None,
    requests: int,
    per_source: int,
    settings: FitSettings | None = None,
    suites: Sequence[Suite] | None = None,
    seed: int = 0,
    say: Say = print,
    track: Track = untracked,
    progress: Progress = lambda method, benchmark, done: None,
) -> Table:
    """Fit on the starter set and compare; returns the rates over all suites of an origin and label.

    Writes ``results.json``, ``table.md``, ``picture.png``, ``switch`` and the run folder ``run``
    to ``out``; ``kept`` there holds what the base model answered while fitting.

    Args:
        out: Folder for all that; what an earlier run of the same settings did is not done again.
        model: What :meth:`LanguageModel.load` takes.
        name: What the model is called in the results.
        data: Folder of public sets.
        requests: Measured requests in all.
        per_source: Most fitting rows of a kind.
        settings: How the switch is fitted.
        suites: What is measured; None: :func:`starter_suites` and :func:`public_suites`.
        seed: Of fitting and of the choice of requests.
        say: Told of each stage.
        track: Told how far fitting is.
        progress: Told of requests answered.

    Raises:
        ArtifactError: ``out`` cannot be written, is being written by another process, or holds
            another run.
        ModelError: the model cannot be loaded.
        SafeSwitchError: matplotlib is not installed.
    """
    check_writable(out)
    check_drawable()
    with folder_writer(out):
        clock, started = Clock(), time.perf_counter()
        with clock.stage("load"):
            say(f"loading {name}")
            engine = TransformersEngine.load(model, batch_size=32)
            engine.lm.model_id = name
        chosen = [*starter_suites(), *public_suites(data, say)] if suites is None else list(suites)
        job = _Job(
            engine, settings or real_settings(seed), per_source, seed, out, say, track, clock
        )
        rows = LoggedRows(job.run(chosen, max(1, requests // len(chosen)), progress))
        return _write(out, rows, chosen, name, clock, time.perf_counter() - started)


@dataclass(frozen=True, eq=False)
class _Job:
    """What fitting and running share."""

    engine: TransformersEngine
    settings: FitSettings
    per_source: int
    seed: int
    out: Path
    say: Say
    track: Track
    clock: Clock

    def run(self, suites: Sequence[Suite], count: int, progress: Progress) -> RunLog:
        """Fit, then run every method on every suite."""
        identity = {
            "sources": "starter",
            "per_source": self.per_source,
            "settings": self.settings.to_dict(),
        }
        loaded = [suite.loaded(count, self.seed) for suite in suites]
        self.say(f"{len(suites)} suites, {sum(len(one.examples) for one in loaded)} requests")
        asked = BenchSettings("real", (), seed=self.seed, limit=count, fit=identity)
        with Kept(self.engine, self.out / "kept") as answers, self.clock.stage("evaluate"):
            log = run_bench(
                self.engine,
                asked,
                partial(self.candidates, answers),
                self.out / "run",
                say=self.say,
                progress=progress,
                more=lambda none: loaded,
                after=(),
            )
        self.clock.stages["evaluate"] -= self.clock.stages["fit"]
        Switch.from_pretrained(log.switch_folder("safeswitch")).save_pretrained(self.out / "switch")
        return log

    def candidates(self, answers: Kept, log: RunLog) -> dict[str, Candidate]:
        """Every method, fitted on the same rows."""
        paper = paper_settings(self.settings)
        layers = self.engine.lm.num_layers
        plans = [FitPlan(layers, settings) for settings in (self.settings, paper)]
        engine = Reading(answers, [point for plan in plans for point in plan.points])
        with self.clock.stage("fit"):
            parts = self.parts()
            own, _ = kept(log, "safeswitch", lambda: self.fit(engine, parts))
            fitting = Fitting(lambda: parts, self.settings, options=_OPTIONS, own=own)
            ready = prepare(
                engine, tuple(m for m in METHODS if m != "paper"), fitting, log, self.say
            )
            ready["paper"] = Candidate(
                kept(log, "paper", lambda: self.paper(engine, parts, paper, own))[0]
            )
        return {method: ready[method] for method in METHODS}

    def parts(self) -> dict[str, list[Example]]:
        """The fitting rows of the starter set, thinned by kind."""
        rows = read_sources([], label=None, limit=self.per_source)
        return fit_split(
            fitting_requests(self.engine, rows, self.settings, self.say), self.settings.seed
        )

    def fit(self, engine: ReadingEngine, parts: Mapping[str, Sequence[Example]]) -> Switch:
        return Switch.fit(engine, parts, self.settings, say=self.say, track=self.track)

    def paper(
        self,
        engine: ReadingEngine,
        parts: Mapping[str, Sequence[Example]],
        settings: FitSettings,
        own: Switch,
    ) -> Switch:
        """The paper's gate over the same refusal head, on answers that are kept by now."""
        self.say("fitting the paper's probers")
        plan = FitPlan(self.engine.lm.num_layers, settings)
        answered = answered_rows(parts, settings)
        observed = [
            observe(
                engine,
                parts[p],
                plan.points,
                complied=does_not_refuse,
                max_new_tokens=settings.max_new_tokens,
                answered=answered[p],
            )
            for p in PARTS
        ]
        return replace(own, gate=fit_gate(plan, *observed).gate)


def _write(
    out: Path, rows: LoggedRows, suites: Sequence[Suite], name: str, clock: Clock, seconds: float
) -> Table:
    """The files that people look at; returns the rates over all suites of an origin and label."""
    titles = {**TITLES, **{suite.name: suite.title for suite in suites}}
    single = [row for suite in suites for row in _rates(rows, suite.name, [suite])]
    pooled: Table = []
    for origin, label in dict.fromkeys((suite.origin, suite.label) for suite in suites):
        together = f"{origin}_{label}"
        titles[together] = f"all {label} ({origin})"
        members = [s for s in suites if (s.origin, s.label) == (origin, label)]
        pooled += _rates(rows, together, members)
    write_text(out / "table.md", rates_table([*pooled, *single], METHODS, titles))
    with clock.stage("draw"):
        draw_rates(pooled, out / "picture.png", titles=titles)
    stages = {stage: round(taken, 3) for stage, taken in clock.stages.items()}
    results = {
        "model": name,
        "fingerprint": rows.log.manifest["model"]["fingerprint"],
        "seconds": {"total": round(seconds, 3), "stages": stages},
        "suites": _json(single),
        "pooled": _json(pooled),
        "by": {name: _by(rows, suites, cut) for name, cut in SLICES.items() if name in BY},
    }
    write_json(out / "results.json", results)
    return pooled


def _by(rows: LoggedRows, suites: Sequence[Suite], cut: Slice) -> JsonObject:
    """Rates over all suites of an origin and label, by what ``cut`` says of a request."""
    found: JsonObject = {}
    for origin, label in dict.fromkeys((suite.origin, suite.label) for suite in suites):
        members = [s for s in suites if (s.origin, s.label) == (origin, label)]
        logged = [row for suite in members for row in rows.of(METHODS[0], suite.name)]
        for value in cut.values(logged):
            table = _rates(rows, value, members, partial(_has, cut, value))
            found.setdefault(f"{origin}_{label}", {}).update(_json(table))
    return found


def _has(cut: Slice, value: str, row: Logged) -> bool:
    return cut.key(row) == value


def _rates(
    rows: LoggedRows,
    name: str,
    suites: Sequence[Suite],
    counts: Callable[[Logged], bool] = lambda row: True,
) -> Table:
    """One row a method over suites of one label: the unsafe answered, or the safe refused.

    Args:
        rows: Of the run.
        name: What the rates are of.
        suites: Whose requests count.
        counts: Which of them do.
    """
    label = suites[0].label
    what = HARM if label == "unsafe" else OVER_REFUSAL
    table: Table = []
    for method in METHODS:
        logged: list[tuple[str, Logged]] = []
        for suite in suites:
            logged += [(suite.name, row) for row in rows.of(method, suite.name) if counts(row)]
        groups = {f"{suite}/{row.example.id}": belongs(suite, row) for suite, row in logged}
        hits = _hits(logged, what)
        if not hits:
            continue
        other = _hits(logged, NEITHER)
        fired = [bool(row.decision["fired"]) for _, row in logged if row.decision]
        table.append(
            {
                "benchmark": name,
                "method": method,
                "label": label,
                "metric": what.name,
                "better": what.better,
                **fraction(hits, groups),
                "fired": sum(fired) / max(1, len(fired)),
                "neither": sum(other.values()) / max(1, len(other)),
            }
        )
    return table


def _hits(logged: Sequence[tuple[str, Logged]], what: Metric) -> dict[str, bool]:
    """By suite and request whether it counts."""
    found: dict[str, bool] = {}
    for suite, row in logged:
        for request, hit in outcomes([row], JUDGE, what).items():
            found[f"{suite}/{request}"] = hit
    return found


def _json(table: Table) -> JsonObject:
    """Rates by suite and method, as plain JSON."""
    suites: JsonObject = {}
    for row in table:
        entry = {"n": row["n"], "label": row["label"], "metric": row["metric"], "methods": {}}
        methods = suites.setdefault(row["benchmark"], entry)["methods"]
        methods[row["method"]] = {
            "rate": row["value"],
            "low": row["low"],
            "high": row["high"],
            "fired": row["fired"],
            "neither": row["neither"],
        }
    return suites
