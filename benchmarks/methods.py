"""Every method on the embedded model, through ``safeswitch compare``; and what papers claim of
them, tested request by request.

    python benchmarks/methods.py --out build/methods        # all methods, 200 requests a suite; goes on after a kill

Table, pictures and tests are those of ``compare``, in the run folder, with ``claims.md`` and
``methods.md`` beside them; with ``--page docs/results/methods.md`` the last becomes that page's
block. Thresholds and strengths are fitted on fitting data, never on these suites. Left out are
methods that need a file (other weights, vectors). About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import safeswitch.methods.resolve  # noqa: F401  (registers every method)
from safeswitch.bench.log import LoggedRows, RunLog
from safeswitch.bench.metrics import ACCURACY, HARM, NEITHER, OVER_REFUSAL, outcomes
from safeswitch.bench.table import percent
from safeswitch.bench.tables import main_rates
from safeswitch.core.artifact import write_text
from safeswitch.methods.base import METHODS
from safeswitch.statistics.intervals import mcnemar

SUITES = {
    "nano_plain_unsafe": ("plain unsafe: complied", HARM), "nano_jailbroken": ("jailbroken: complied", HARM),
    "nano_lookalike": ("look-alike: refused", OVER_REFUSAL),
    "nano_lookalike_wrapped": ("wrapped look-alike: refused", OVER_REFUSAL),
    "nano_ordinary": ("ordinary: right", ACCURACY),
}  # fmt: skip
BEGIN, END = "<!-- methods -->", "<!-- /methods -->"
FIRST = ("base", "prompt", "head", "safeswitch")
JOINS = (
    "safeswitch+scans",
    "safeswitch+safe_scans",
    "safeswitch+antidote",
    "safeswitch+direction",
    "safeswitch+reroute",
    "safeswitch+patch",
    "safeswitch+safedecoding",
    "safeswitch+prompt",
    "cast+head",
    "scans+head",
    "note+head",
    "header+head",
)
NEED_FILES = ("merge", "patch_weights", "steer")
CLAIMS = (
    ("sparse steering is as good as dense (Antidote)", "antidote", "dense_antidote"),
    ("a sparse head is as good as the whole one (SafePatching's mask)", "patch", "head"),
    (
        "conditional is better than always on (CAST): refusal direction",
        "safeswitch+direction",
        "direction",
    ),
    ("conditional is better than always on: Antidote", "safeswitch+antidote", "antidote"),
    ("conditional is better than always on: rerouting", "safeswitch+reroute", "reroute"),
    ("two-sided steering lowers over-refusal (SCANS)", "scans", "one_sided_scans"),
    ("two-sided steering costs no safety (SCANS)", "scans", "one_sided_scans"),
    ("the safe variant costs no safety against one side", "safe_scans", "one_sided_scans"),
    (
        "examples of both kinds beat self-check on over-refusal (SODE), input",
        "exemplars",
        "check_input",
    ),
    (
        "examples of both kinds beat self-check on over-refusal (SODE), output",
        "exemplars",
        "check_output",
    ),
    (
        "examples of both kinds beat unsafe ones alone on over-refusal (SODE)",
        "exemplars",
        "unsafe_exemplars",
    ),
    ("early mixing is as good as the whole head (SafeDecoding)", "safedecoding", "head"),
)


def tested(log: RunLog) -> str:
    """Of each claim and suite: requests on which only the first, and only the second scored, and
    the exact p, uncorrected."""
    rows = LoggedRows(log)
    lines = [
        f"| claim | first | second | {' | '.join(SUITES)} |",
        "|---|---|---|" + "---|" * len(SUITES),
    ]
    for text, first, second in CLAIMS:
        if not {first, second} <= set(log.methods):
            continue
        cells = []
        for suite, (_, what) in SUITES.items():
            one, other = (
                outcomes(rows.of(m, suite), log.judges(suite)[0], what) for m in (first, second)
            )
            groups = {
                row.example.id: row.example.group or row.example.id for row in rows.of(first, suite)
            }
            common = sorted(one.keys() & other.keys())
            test = mcnemar(
                [one[i] for i in common], [other[i] for i in common], [groups[i] for i in common]
            )
            cells.append(f"{test.only_first} / {test.only_second}, p {test.p_value:.2g}")
        lines.append(f"| {text} | {first} | {second} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def silent_share(rows: LoggedRows, method: str) -> float:
    """Share of all replies of a method that neither refuse nor help."""
    hits = [
        hit
        for s in SUITES
        for hit in outcomes(rows.of(method, s), rows.log.judges(s)[0], NEITHER).values()
    ]
    return sum(hits) / len(hits)


def told(log: RunLog) -> str:
    """The table of the results page: a method a row, a suite a column, and the share of replies
    that are broken."""
    rows = LoggedRows(log)
    found = {(row["method"], row["benchmark"], row["metric"]): row for row in main_rates(rows)}
    lines = [
        f"| method | {' | '.join(text for text, _ in SUITES.values())} | broken |",
        "|---|" + "---|" * (len(SUITES) + 1),
    ]
    for method in log.methods:
        cells = []
        for suite, (_, what) in SUITES.items():
            row = found[method, suite, what.name]
            cells.append(percent(row["value"], row["low"], row["high"]))
        lines.append(f"| {method} | {' | '.join(cells)} | {100 * silent_share(rows, method):.0f} |")
    return "\n".join(lines) + "\n"


def write_block(page: Path, table: str, picture: Path) -> None:
    """Put ``table`` into the page's block of methods, and the picture beside it where it points."""
    text = page.read_text(encoding="utf-8")
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    shown = text[begin:end].rstrip("\n").rpartition("\n")[2]
    write_text(page, f"{text[:begin]}\n{table}\n{shown}\n{text[end:]}")
    (page.parent / shown.rpartition("(")[2].rstrip(")")).write_bytes(picture.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/methods"))
    parser.add_argument("--methods", default=",".join(
        [*FIRST, *(m for m in METHODS if m not in (*NEED_FILES, *FIRST)), *JOINS]
    ))  # fmt: skip
    parser.add_argument("--limit", type=int, default=200, help="requests a suite")
    parser.add_argument("--page", type=Path, help="file whose block of methods is to be replaced")
    args = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "safeswitch.cli.main",
        "compare",
        "--model",
        "nano",
        "--methods",
        args.methods,
    ]
    command += [
        "--limit",
        str(args.limit),
        "--out",
        str(args.out),
        *(part for s in SUITES for part in ("--benchmark", s)),
    ]
    subprocess.run(command, check=True)
    log = RunLog.open(args.out)
    write_text(args.out / "claims.md", tested(log))
    write_text(args.out / "methods.md", told(log))
    if args.page is not None:
        write_block(args.page, told(log), args.out / "pareto.png")


if __name__ == "__main__":
    main()
