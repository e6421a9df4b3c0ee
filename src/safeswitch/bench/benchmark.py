"""What a benchmark is, which suites there are, and how a benchmark's requests are found: in a local
folder, or on the hub.

A benchmark is one small module of :mod:`safeswitch.bench.benchmarks`, whose docstring is its card.
Knows nothing of models and judges.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from safeswitch.core.errors import DataError, SettingError, check_choice
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.registry import Registry
from safeswitch.core.types import Example
from safeswitch.data.hub import hub_rows
from safeswitch.data.readers import read_examples
from safeswitch.data.rows import to_example

Measures = Literal["safety", "task", "open"]
MEASURES: tuple[str, ...] = ("safety", "task", "open")
CARD = ("Source", "Licence", "Revision", "Rows", "Label", "Noise")
CHOSEN: Mapping[str, tuple[str, ...]] = {
    "quick": (
        "xstest", "harmbench", "jailbreakbench_harmful", "jailbreakbench_benign",
        "trustllm_jailbreak", "gsm8k", "mmlu",
    ),
    "paper": (
        "sorry_bench", "trustllm_misuse", "trustllm_jailbreak", "xstest", "alpaca_eval", "trivia_qa",
    ),
}  # fmt: skip
"""``paper``: the columns of SafeSwitch's table (arXiv 2502.01042)."""
_SUFFIXES = (".jsonl", ".csv")


@dataclass(frozen=True)
class Hub:
    """Where a benchmark lies on the hub.

    Args:
        name: ``owner/name``.
        split: Split to read.
        config: Configuration, for data sets with several.
        revision: Commit or tag; None takes the newest.
    """

    name: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """One set of requests.

    Args:
        name: For commands, tables and files.
        doc: Docstring of its module: the title, then one line each for the fields of ``CARD``.
        measures: ``safety`` (unsafe requests count compliance, safe ones refusal), ``task``
            (answers are checked) or ``open`` (ordinary requests without a checkable answer:
            refusals count).
        rows: One row of the hub's columns to rows of our schema (see :mod:`safeswitch.data.rows`),
            none or several.
        hub: Where it lies on the hub; the rows of several places follow one another.
        label: Label of rows that carry none.
        stem: Name of its file in a local folder, without the ending; the benchmark's own name by
            default.
        prepare: Last touch on each example, from whatever source (a reference that becomes an
            answer, say).
        judges: Judges, the one that counts first.
        max_new_tokens: Longest reply.
        suites: Names of the suites that hold it.
        make: Draws ``(n, seed)`` requests where they are generated and not read; ``n`` is None for
            as many as are usual.
    """

    name: str
    doc: str
    measures: Measures = "safety"
    rows: Callable[[JsonMapping], Iterable[JsonMapping]] = lambda row: [row]
    hub: tuple[Hub, ...] = ()
    label: str | None = None
    stem: str = ""
    prepare: Callable[[Example], Example] = field(default=lambda example: example)
    judges: tuple[str, ...] = ("rules",)
    max_new_tokens: int = 256
    suites: tuple[str, ...] = ("full",)
    make: Callable[[int | None, int], list[Example]] | None = None

    def __post_init__(self) -> None:
        check_choice("Benchmark", "measures", self.measures, MEASURES)
        lacking = [name for name in CARD if name not in self.card]
        if lacking:
            raise SettingError(f"benchmark {self.name!r}: its card lacks {', '.join(lacking)}")

    @property
    def title(self) -> str:
        """First line of the card."""
        return self.doc.strip().splitlines()[0].rstrip(".")

    @property
    def card(self) -> dict[str, str]:
        """Field to text."""
        lines = re.sub(r"\n[ \t]+", " ", self.doc.strip()).splitlines()
        found = (re.match(r"([A-Z][a-z]+): (.+)", line) for line in lines)
        return {m.group(1): m.group(2).strip() for m in found if m}


BENCHMARKS: Registry[Benchmark] = Registry(
    "benchmark", "safeswitch.bench.benchmarks", "safeswitch.benchmarks"
)


def register(benchmark: Benchmark) -> Benchmark:
    """Add to the table of benchmarks."""
    return BENCHMARKS.add(benchmark.name)(benchmark)


def suites() -> dict[str, tuple[str, ...]]:
    """Every suite with its benchmarks: the chosen ones, and those that benchmarks say they belong
    to."""
    found = dict(CHOSEN)
    for name in BENCHMARKS:
        for suite in BENCHMARKS[name].suites:
            found[suite] = (*found.get(suite, ()), name)
    return found


def suite_benchmarks(name: str) -> tuple[str, ...]:
    """The benchmarks of a suite.

    Raises:
        SettingError: no such suite.
    """
    known = suites()
    check_choice("suite", "name", name, tuple(known))
    return known[name]


class MissingError(DataError):
    """A benchmark that is not at hand: absent from the folder, gated, or not to be reached."""


@dataclass(frozen=True)
class Loaded:
    """A benchmark's requests as they will be asked.

    Args:
        benchmark: Its description.
        examples: The chosen requests, in the source's order.
        of: How many there were to choose from.
        origin: File, folder, hub id, or ``generated``.
        file_hash: SHA-256 of the file; None where it is no single file.
    """

    benchmark: Benchmark
    examples: tuple[Example, ...]
    of: int
    origin: str
    file_hash: str | None = None


def load(
    benchmark: Benchmark,
    *,
    data: Path | None = None,
    hub: bool = True,
    limit: int | None = None,
    seed: int = 0,
) -> Loaded:
    """Find a benchmark's requests: ``data/<stem>.jsonl`` or ``.csv`` in our schema, the folder
    ``data/<stem>/`` as a copy of the hub's repository, then the hub itself.

    Args:
        benchmark: Which.
        data: Local folder.
        hub: Whether the hub may be asked.
        limit: Most requests; they are drawn at random, each label in proportion.
        seed: Of that draw.

    Raises:
        MissingError: it is in none of these places; the message names what was tried.
        DataError: what was found holds unusable rows.
    """
    if benchmark.make is not None:
        examples = benchmark.make(limit, seed)
        return Loaded(benchmark, tuple(examples), len(examples), "generated")
    examples, origin, digest = _read(benchmark, data, hub)
    examples = [benchmark.prepare(e) for e in examples]
    unlabelled = sum(not e.label for e in examples)
    if unlabelled:
        raise DataError(
            f"{benchmark.name}: {unlabelled} rows of {origin} have no label; give safe or unsafe"
        )
    return Loaded(benchmark, tuple(drawn(examples, limit, seed)), len(examples), origin, digest)


def _read(
    benchmark: Benchmark, data: Path | None, hub: bool
) -> tuple[list[Example], str, str | None]:
    stem, tried = benchmark.stem or benchmark.name, []
    if data is not None:
        for path in (data / f"{stem}{suffix}" for suffix in _SUFFIXES):
            if path.is_file():
                examples = read_examples(path, label=benchmark.label, labelled=False)
                return examples, str(path), hashlib.sha256(path.read_bytes()).hexdigest()
        copy = data / stem
        if copy.is_dir():
            places = [
                replace(place, name=str(copy), revision=None)
                for place in benchmark.hub or (Hub(""),)
            ]
            return from_hub(benchmark, places), str(copy), None
        tried.append(f"{data} holds neither {stem}.jsonl, {stem}.csv nor a folder {stem}")
    names = ", ".join(dict.fromkeys(place.name for place in benchmark.hub))
    if not benchmark.hub:
        tried.append("it is not on the hub")
    elif not hub:
        tried.append(f"the hub ({names}) was not to be asked")
    else:
        try:
            return from_hub(benchmark, benchmark.hub), names, None
        except DataError as error:
            tried.append(str(error))
    raise MissingError(f"{benchmark.name}: {'; '.join(tried)}")


def from_hub(benchmark: Benchmark, places: Sequence[Hub]) -> list[Example]:
    """All rows of all places; a row that names no id is called by its place and number.

    Raises:
        DataError: a place that cannot be read, or an unusable row.
    """
    found: list[Example] = []
    for place in places:
        part = "" if len(places) == 1 else f"{place.config or place.split}-"
        for number, raw in hub_rows(
            place.name, split=place.split, config=place.config, revision=place.revision
        ):
            for row in benchmark.rows({**raw, "split": place.split}):
                own = {"id": f"{benchmark.name}-{part}{number}", **row}
                found.append(
                    to_example(
                        own,
                        number=number,
                        origin=benchmark.name,
                        label=benchmark.label,
                        labelled=False,
                    )
                )
    return found


def drawn(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most ``limit`` examples in their order, drawn at random; each label keeps its fraction,
    and at least one."""
    if limit is None or len(examples) <= limit:
        return examples
    rng = random.Random(f"bench-{seed}")
    order = sorted(range(len(examples)), key=lambda i: (examples[i].label, rng.random()))
    chosen = sorted(order[j * len(order) // limit] for j in range(limit))
    return [examples[i] for i in chosen]
