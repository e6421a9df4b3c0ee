"""Every method on the embedded model: harm left, over-refusal, accuracy, seconds a request; and what papers claim of them.

    python benchmarks/methods.py --out build/methods                       # all methods, 100 requests a suite
    python benchmarks/methods.py --out build/methods --methods base,head,safeswitch,safeswitch+scans

A method that is done is kept in its own file, so that an interrupted run goes on. Thresholds and strengths are fitted on
fitting data, never on these suites. Writes ``methods.md`` to the folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from safeswitch.core.artifact import read_json, write_json, write_text
from safeswitch.core.errors import SafeSwitchError
from safeswitch.core.types import Example
from safeswitch.engines.transformers_engine import TransformersEngine
from safeswitch.evaluation.intervals import mcnemar, wilson
from safeswitch.evaluation.table import percent
from safeswitch.methods.base import METHODS
from safeswitch.methods.resolve import resolve
from safeswitch.nano import judge, weights_path
from safeswitch.nano.bench import OPTIONS, REPLY_TOKENS, complied
from safeswitch.nano.study import demo_settings
from safeswitch.nano.suites import load_suite

SUITES = ("plain_unsafe", "jailbroken", "lookalike", "lookalike_wrapped", "ordinary")
JOINS = (
    "safeswitch+scans", "safeswitch+safe_scans", "safeswitch+antidote", "safeswitch+direction", "safeswitch+reroute",
    "safeswitch+patch", "safeswitch+safedecoding", "safeswitch+prompt", "cast+head", "scans+head", "note+head", "header+head",
)
Told = Callable[[Example, str], tuple[bool, bool]]
"""Of a reply, whether it is a hit, and whether it is the other good outcome (neither: broken text)."""
_HARM: tuple[str, Told] = ("harmful compliance", lambda e, text: (judge.complied(text), judge.refused(text)))
KINDS: dict[str, tuple[str, Told]] = {
    "plain": _HARM, "jailbroken": _HARM,
    "lookalike": ("refusal", lambda e, text: (judge.refused(text), judge.complied(text))),
    "ordinary": ("accuracy", lambda e, text: (judge.correct(e, text), judge.refused(text))),
}
NEED_FILES = ("merge", "patch_weights", "steer")
CLAIMS = (
    ("sparse steering is as good as dense (Antidote)", "antidote", "dense_antidote"),
    ("a sparse head is as good as the whole one (SafePatching's mask)", "patch", "head"),
    ("conditional is better than always on (CAST): refusal direction", "safeswitch+direction", "direction"),
    ("conditional is better than always on: Antidote", "safeswitch+antidote", "antidote"),
    ("conditional is better than always on: rerouting", "safeswitch+reroute", "reroute"),
    ("two-sided steering lowers over-refusal (SCANS)", "scans", "one_sided_scans"),
    ("two-sided steering costs no safety (SCANS)", "scans", "one_sided_scans"),
    ("the safe variant costs no safety against one side", "safe_scans", "one_sided_scans"),
    ("examples of both kinds beat self-check on over-refusal (SODE), input", "exemplars", "check_input"),
    ("examples of both kinds beat self-check on over-refusal (SODE), output", "exemplars", "check_output"),
    ("examples of both kinds beat unsafe ones alone on over-refusal (SODE)", "exemplars", "unsafe_exemplars"),
    ("early mixing is as good as the whole head (SafeDecoding)", "safedecoding", "head"),
)


def one(engine: TransformersEngine, name: str, parts: Any, settings: Any, n: int) -> dict[str, Any]:
    """Fit one method and run it on every suite."""
    start = time.perf_counter()
    method = resolve(name, settings, complied, **OPTIONS.get(name.rpartition("+")[2], {}))
    switch = method.prepare(engine, parts)
    fit = time.perf_counter() - start
    wrapped = method.wrap(engine)
    suites: dict[str, Any] = {}
    for title in SUITES:
        examples = load_suite(title, n=n)
        start = time.perf_counter()
        replies = wrapped.generate(examples, switch=switch, max_new_tokens=REPLY_TOKENS, do_sample=False)
        seconds = time.perf_counter() - start
        kind = next(kind for kind in KINDS if title.startswith(kind))
        judged = [KINDS[kind][1](e, r.text) for e, r in zip(examples, replies, strict=True)]
        suites[title] = {
            "metric": KINDS[kind][0], "hits": [hit for hit, _ in judged], "seconds": seconds / n,
            "fired": [r.decision.fired for r in replies], "neither": sum(not hit and not other for hit, other in judged),
        }
    spent = getattr(wrapped, "spent", None)
    return {"fit_seconds": fit, "suites": suites, "spent": vars(spent) if spent is not None else None}


def table(done: dict[str, dict[str, Any]], n: int) -> str:
    """Rates in per cent with 95 % Wilson intervals, one row a method."""
    heads = " | ".join(f"{name}: {row['metric']}" for name, row in done["base"]["suites"].items())
    lines = [
        f"| method | {heads} | broken | ms/request | fit s |",
        "|---|" + "---|" * (len(SUITES) + 3),
    ]
    for name, row in done.items():
        cells = [percent(wilson(sum(row["suites"][s]["hits"]), n)) for s in SUITES]
        broken = sum(row["suites"][s]["neither"] for s in SUITES) / (n * len(SUITES))
        took = sum(row["suites"][s]["seconds"] for s in SUITES) / len(SUITES)
        lines.append(f"| {name} | {' | '.join(cells)} | {100 * broken:.0f} | {1000 * took:.0f} | {row['fit_seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def claims(done: dict[str, dict[str, Any]]) -> str:
    """Paired tests of the papers' claims: requests on which only the first, only the second scored, and p."""
    lines = ["| claim | first | second | " + " | ".join(SUITES) + " |", "|---|---|---|" + "---|" * len(SUITES)]
    for text, first, second in CLAIMS:
        if first not in done or second not in done:
            continue
        cells = []
        for suite in SUITES:
            test = mcnemar(*(done[m]["suites"][suite]["hits"] for m in (first, second)))
            cells.append(f"{test.only_first} / {test.only_second}, p {test.p_value:.2g}")
        lines.append(f"| {text} | {first} | {second} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/methods"))
    parser.add_argument("--methods", default=",".join([*(m for m in METHODS if m not in NEED_FILES), *JOINS]))
    parser.add_argument("--n", type=int, default=100, help="requests a suite")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = TransformersEngine.load(weights_path(), batch_size=64)
    data, settings = demo_settings()
    settings = replace(settings, watch=True)
    parts = {"train": data.train, "validation": data.validation, "calibration": data.calibration}
    done: dict[str, dict[str, Any]] = {}
    for name in ["base", *(m for m in args.methods.split(",") if m != "base")]:
        path = args.out / f"{name}-{args.n}.json"
        if path.is_file():
            done[name] = read_json(path)
            continue
        try:
            done[name] = one(engine, name, parts, settings, args.n)
        except SafeSwitchError as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        write_json(path, done[name])
        rates = ", ".join(f"{s} {sum(r['hits']) / args.n:.2f}" for s, r in done[name]["suites"].items())
        print(f"{name}: {rates}; fit {done[name]['fit_seconds']:.0f} s", flush=True)
    write_text(args.out / "methods.md", f"{table(done, args.n)}\n{claims(done)}")


if __name__ == "__main__":
    main()
