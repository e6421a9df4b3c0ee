"""What ``safeswitch eval`` and ``safeswitch compare`` share: methods run on a suite."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import typer

from safeswitch.cli.config import write_config
from safeswitch.cli.options import SuiteRunOptions
from safeswitch.cli.screen import bars, put, put_markdown, say

if TYPE_CHECKING:
    from safeswitch.bench.bench import BenchSettings
    from safeswitch.bench.candidates import Fitting
    from safeswitch.bench.judges.base import Judge
    from safeswitch.bench.log import RunLog
    from safeswitch.bench.runner import Candidate
    from safeswitch.switch.engine import MeasuredEngine

    Prepare = Callable[[RunLog], Mapping[str, Candidate]]


def run_suite(
    context: typer.Context,
    engine: MeasuredEngine,
    methods: Sequence[str],
    fitting: tuple[Fitting, Mapping[str, object]],
    run: SuiteRunOptions,
    around: Callable[[Prepare], Prepare] = lambda ready: ready,
) -> None:
    """Run methods on a suite and print the first table.

    Args:
        context: Of the command, whose options are left in the run folder.
        engine: What generates.
        methods: Their names.
        fitting: How they are fitted, and the same for the run's identity.
        run: On what, and where.
        around: Makes out of what prepares the methods what is run.
    """
    from safeswitch.bench.bench import run_bench
    from safeswitch.bench.candidates import check_methods, check_ready, prepare
    from safeswitch.bench.judges.base import JUDGES, make_judge
    from safeswitch.bench.picture import check_drawable
    from safeswitch.report.after import AFTER

    check_drawable()
    specs = [JUDGES.from_files(text) for text in run.judge or ()]
    judges = tuple(make_judge(spec, run.out / "judge-cache") for spec in specs)
    check_methods(methods, judges)
    if run.shard:
        check_ready(methods, fitting[0].own)
    how, identity = fitting
    asked = _bench_settings(run, judges, identity)
    ready = around(lambda log: prepare(engine, methods, how, log, say))
    on_start = partial(write_config, context)
    with bars() as advance:
        run_bench(
            engine, asked, ready, run.out, say=say, progress=advance, on_start=on_start, after=AFTER
        )
    if run.shard:
        put(f"part {run.shard} is answered; without --shard the same command puts all together")
        return
    put_markdown((run.out / "table.md").read_text(encoding="utf-8"))
    # a run without harm, or with nothing beside it, has no Pareto picture
    made = [name for name in ("figures.json", "pareto.png") if (run.out / name).is_file()]
    put(f"written to {run.out}: {', '.join(['table.md', 'tables/', *made])}")


def _bench_settings(
    run: SuiteRunOptions, judges: tuple[Judge, ...], identity: Mapping[str, object]
) -> BenchSettings:
    from safeswitch.bench.bench import BenchSettings
    from safeswitch.bench.benchmark import BENCHMARKS, suite_benchmarks
    from safeswitch.bench.shard import Shard

    return BenchSettings(
        "own" if run.benchmark else run.suite,
        tuple(BENCHMARKS.from_files(name) for name in run.benchmark or suite_benchmarks(run.suite)),
        run.data,
        run.hub,
        run.limit,
        run.seed,
        run.max_new_tokens,
        judges=judges,
        shard=Shard.parse(run.shard) if run.shard else None,
        command=tuple(sys.argv),
        fit=identity,
    )
