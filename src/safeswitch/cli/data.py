"""``safeswitch data``: what ships as starter set, whether a file is fit to fit on, and public sets
from the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.command import Group, add
from safeswitch.cli.from_audit import from_audit
from safeswitch.cli.options import BudgetOption, JsonOption, LabelOption, SeedOption
from safeswitch.cli.screen import put, put_json
from safeswitch.core.errors import SafeSwitchError, SettingError
from safeswitch.core.grammar import entries
from safeswitch.core.types import LABELS, Example
from safeswitch.data import starter
from safeswitch.data.leakage import leaks
from safeswitch.data.readers import read_examples
from safeswitch.data.splits import fit_split
from safeswitch.data.text import normalise
from safeswitch.data.tool_cases import tool_cases

data_app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="The starter set that ships with the package, checks of your own data, public sets.",
)
_SHOWN = 5
_FIELDS: dict[str, Callable[[Example], str]] = {
    "kind": starter.kind,
    "category": lambda e: e.category,
    "label": lambda e: e.label,
    "severity": lambda e: e.meta.get("severity", ""),
    "form": lambda e: e.meta["form"],
    "lang": lambda e: e.meta["lang"],
    "wrapper": lambda e: e.wrapper,
    "split": lambda e: e.meta["split"],
}
"""What rows of the starter set are counted by."""


@dataclass(frozen=True)
class RowOptions:
    """Which rows of the starter set; the fields are named as in the set."""

    kind: Annotated[str | None, typer.Option(help="Only this kind, as pairs or languages.")] = None
    category: Annotated[str | None, typer.Option(help="Only this category.")] = None
    label: Annotated[str | None, typer.Option(help="Only safe, or only unsafe.")] = None
    severity: Annotated[str | None, typer.Option(help="Only severe, refuse, careful or allow.")] = (
        None
    )
    form: Annotated[str | None, typer.Option(help="Only this form, as question or story.")] = None
    lang: Annotated[str | None, typer.Option(help="Only this language, as de.")] = None
    split: Annotated[
        str | None, typer.Option(help="Only train, validation, calibration or held.")
    ] = None

    def rows(self) -> list[Example]:
        """The rows that have every value asked for.

        Raises:
            SettingError: a value that no row has.
        """
        rows = starter.load()
        for name, value in asdict(self).items():
            if value is None:
                continue
            known = sorted({_FIELDS[name](e) for e in rows} - {""})
            if value not in known:
                raise SettingError(
                    f"command line: --{name} must be one of {', '.join(known)}; got {value!r}"
                )
            rows = [e for e in rows if _FIELDS[name](e) == value]
        return rows


def list_rows(as_json: JsonOption = False) -> None:
    """Count what the starter set holds, by kind, category, severity, form, language and so on."""
    rows = starter.load()
    by_field = {name: _counts(rows, name) for name in _FIELDS}
    means = {name: category.means for name, category in starter.categories().items()}
    if as_json:
        put_json({"rows": len(rows), "counts": by_field, "categories": means}, indent=2)
        return
    put(f"{len(rows)} requests, {sum(e.unsafe for e in rows)} of them unsafe")
    for name, counts in by_field.items():
        put(f"\n{name:28}{'unsafe':>7}{'safe':>7}")
        for value, by_label in counts.items():
            numbers = f"{by_label['unsafe']:7}{by_label['safe']:7}"
            put(f"{value:28}{numbers}  {means.get(value, '')}".rstrip())


def _counts(rows: Sequence[Example], name: str) -> dict[str, dict[str, int]]:
    """By value of a field how many unsafe and safe rows have it, the commonest first."""
    commonest = Counter(_FIELDS[name](e) for e in rows).most_common()
    counts: Counter[tuple[str, str]] = Counter((_FIELDS[name](e), e.label) for e in rows)
    found: dict[str, dict[str, int]] = {}
    for value, _ in commonest:
        if value:
            found[value] = {label: counts[value, label] for label in reversed(LABELS)}
    return found


def show(
    chosen: RowOptions,
    limit: Annotated[
        int, typer.Option(min=1, help="Most rows, spread evenly over those found.")
    ] = 20,
    as_json: JsonOption = False,
) -> None:
    """Print rows of the starter set."""
    from safeswitch.data.writers import to_row  # torch comes with it

    rows = chosen.rows()
    count = min(limit, len(rows))
    for example in [rows[i * len(rows) // count] for i in range(count)]:
        if as_json:
            put_json(to_row(example))
        else:
            text = " | ".join(message.content for message in example.messages).replace("\n", " ")
            put(f"{example.label:7} {example.category:18} {example.id}: {text}")


def export(
    chosen: RowOptions,
    out: Annotated[Path, typer.Option("--out", help="JSONL file, as fit --data takes it.")],
    replies: Annotated[
        bool, typer.Option("--replies", help="Give unsafe rows a refusal as reply.")
    ] = False,
) -> None:
    """Write rows of the starter set to a file."""
    from safeswitch.data.writers import write_examples  # torch comes with it

    rows = chosen.rows()
    if replies:
        rows = [replace(e, reply=starter.refusal_for(e)) if e.unsafe else e for e in rows]
    write_examples(rows, out)
    put(f"{len(rows)} requests written to {out}")


def tool_results(
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write.")],
) -> None:
    """Write 300 results of tools, half of them with instructions inside, to fit a reader on.

    Fit it with safeswitch fit --data FILE --without-starter --stages stage1 --budget 0.05, and
    serve it with --injection-switch.
    """
    from safeswitch.data.writers import write_examples  # torch comes with it

    rows = tool_cases()
    write_examples(rows, out)
    put(f"{len(rows)} results of tools written to {out}")


def check(
    file: Annotated[str, typer.Argument(help="JSONL or CSV file, or hub data set.")],
    label: LabelOption = None,
    budget: BudgetOption = 0.02,
    seed: SeedOption = 0,
) -> None:
    """Read a file as fit does and say what it holds.

    Exit code 1 where fit would refuse it or labels contradict each other.
    """
    rows = read_examples(file, label=label)
    for name, counts in _counted(rows).items():
        put(
            f"{name}: "
            + ", ".join(f"{value or 'none'} {count}" for value, count in counts.most_common(12))
        )
        if len(counts) > 12:
            put(f"    and {len(counts) - 12} more")
    twice, contradicting = repeated(rows)
    put(
        f"repeated: {len(twice)} requests have the words and label of an earlier one"
        + _named(twice)
    )
    put(
        f"contradicting: {len(contradicting)} requests have the words of an earlier one, "
        "but another label" + _named(contradicting)
    )
    refusal = _fitting(file, label, budget, seed)
    put(f"fit: {refusal or 'takes it'}")
    if refusal or contradicting:
        raise typer.Exit(1)


def _counted(rows: Sequence[Example]) -> dict[str, Counter[str]]:
    """What a file holds, by field."""
    return {
        "rows": Counter({"in all": len(rows)}),
        "label": Counter(e.label for e in rows),
        "source": Counter(e.source for e in rows),
        "category": Counter(e.category for e in rows),
        "wrapper": Counter(e.wrapper for e in rows),
        "turns": Counter(str(len(e.messages)) for e in rows),
        "reply": Counter("given" if e.reply else "" for e in rows if e.unsafe),
    }


def repeated(rows: Sequence[Example]) -> tuple[list[str], list[str]]:
    """Ids of rows whose words stood in an earlier row: with the same label, with another one."""
    first: dict[str, Example] = {}
    twice: list[str] = []
    contradicting: list[str] = []
    for example in rows:
        text = " / ".join(f"{m.role} {normalise(m.content)}" for m in example.messages)
        known = first.setdefault(text, example)
        if known is not example:
            (twice if known.label == example.label else contradicting).append(example.id)
    return twice, contradicting


def _named(ids: Sequence[str]) -> str:
    """The first ids, for the end of a line."""
    return f": {', '.join(ids[:_SHOWN])}{' ...' if len(ids) > _SHOWN else ''}" if ids else ""


def _fitting(file: str, label: str | None, budget: float, seed: int) -> str:
    """Why fit would refuse the file as its only source, or nothing; prints the parts."""
    from safeswitch.fitting.files import read_sources
    from safeswitch.fitting.fit import check_parts  # torch comes with it

    try:
        parts = fit_split(read_sources([file], label=label, limit=None), seed)
        for name, part in parts.items():
            near = 0 if name == "train" else len(leaks(parts["train"], part))
            note = f", {near} nearly repeat a training request" if near else ""
            unsafe = sum(e.unsafe for e in part)
            alike = len(part) - unsafe - sum(e.ordinary for e in part)
            told = f" ({alike} look-alikes)" if alike else ""
            put(f"part {name}: {unsafe} unsafe, {len(part) - unsafe} safe{told}{note}")
        check_parts(parts, budget)
    except SafeSwitchError as error:
        return f"refuses it: {error}"
    return ""


def hub(
    names: Annotated[
        str | None,
        typer.Argument(help="Sets to fetch, joined by commas. None: list those there are."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files, as --data takes it.")
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of one set. None: the newest, which is noted."),
    ] = None,
) -> None:
    """Fetch public sets from the hub by name, with licence and revision beside each."""
    from safeswitch.bench.fetch import fetch, on_hub  # torch comes with it

    if not names:
        if out is not None or revision is not None:
            raise SettingError("command line: name the sets to fetch")
        for benchmark in on_hub():
            places = ", ".join(dict.fromkeys(place.name for place in benchmark.hub))
            put(f"{benchmark.name:28} {places}; {benchmark.card['Licence']}")
        return
    if out is None:
        raise SettingError("command line: give --out, the folder for the files")
    for about in fetch(entries("names", names), out, revision):
        commits = ", ".join(f"{name} at {commit[:12]}" for name, commit in about["hub"].items())
        put(f"{out / about['file']}: {about['rows']} requests, {commits}; {about['licence']}")


add(data_app, list_rows, "list")
add(data_app, show)
add(data_app, export)
add(data_app, tool_results, "tool-results")
add(data_app, check)
add(data_app, hub)
add(data_app, from_audit, "from-audit")
