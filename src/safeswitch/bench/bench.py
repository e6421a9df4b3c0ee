"""The whole bench: load a suite, prepare methods, run them into a run folder, make what people look
at. Resumable.

What ``safeswitch eval`` and ``safeswitch compare`` do. Knows nothing of the command line.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from safeswitch._version import __version__
from safeswitch.bench.benchmark import BENCHMARKS, Loaded, MissingError, load
from safeswitch.bench.judges import (
    answers,  # noqa: F401  (each registers its judges)
    ifeval,  # noqa: F401  (each registers its judges)
    rules,  # noqa: F401  (each registers its judges)
)
from safeswitch.bench.judges.base import Judge, make_judge
from safeswitch.bench.log import SHARDS, RunLog
from safeswitch.bench.runner import Candidate, Progress, compare_replies, run_method, short_hash
from safeswitch.bench.shard import Shard
from safeswitch.core.artifact import check_writable
from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.lock import folder_writer
from safeswitch.data.contradictions import contradictions, describe
from safeswitch.data.writers import data_hash
from safeswitch.switch.engine import EngineFacts, MeasuredEngine

Say = Callable[[str], None]
_LIBRARIES = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "scikit-learn",
    "tokenizers",
    "safetensors",
)


@dataclass(frozen=True)
class BenchSettings:
    """What a bench run runs on.

    Args:
        suite: Its name, for the record.
        benchmarks: Names, in order.
        data: Folder of local benchmark files.
        hub: Whether the hub may be asked for what the folder does not hold.
        limit: Most requests of each benchmark.
        seed: Of the choice of requests.
        max_new_tokens: Longest reply in place of each benchmark's own; never more than half of the
            model's context.
        judges: Judges beside each benchmark's own.
        shard: Part of the requests that is answered, in a run folder inside ``out``, to be judged
            by the whole run; None answers all.
        command: The words of the command, for the record.
        fit: On what and how methods are fitted, for the record, as plain JSON.
    """

    suite: str
    benchmarks: tuple[str, ...]
    data: Path | None = None
    hub: bool = False
    limit: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    judges: tuple[Judge, ...] = ()
    shard: Shard | None = None
    command: tuple[str, ...] = ()
    fit: JsonMapping | None = None


def run_bench(
    engine: MeasuredEngine,
    settings: BenchSettings,
    candidates: Callable[[RunLog], Mapping[str, Candidate]],
    out: Path,
    *,
    say: Say = lambda text: None,
    progress: Progress = lambda method, benchmark, done: None,
    more: Callable[[Sequence[Loaded]], Sequence[Loaded]] = lambda loaded: (),
    after: Sequence[Callable[[Path], None]] = (),
    on_start: Callable[[Path], None] = lambda folder: None,
) -> RunLog:
    """Run, or resume the run in ``out``; then make tables and pictures.

    Args:
        engine: What generates.
        settings: On what.
        candidates: Gives the methods, ready to run; it may leave fitted parts in the run folder and
            find them there.
        out: Run folder.
        say: Told of each step.
        progress: Told of requests done.
        more: Makes further sets of requests out of those that were loaded.
        after: What is made at the end, each from the run folder alone.
        on_start: Told of the run folder once it holds this run, so that more can be put there.

    Raises:
        SettingError: an unknown benchmark.
        DataError: none of the benchmarks is at hand, or one holds unusable rows.
        ArtifactError: ``out`` holds another run, is being written by another process, or cannot be
            written.
    """
    if settings.shard is not None:
        out, after = settings.shard.folder(out), ()
    check_writable(out)
    with ExitStack() as held:
        held.enter_context(folder_writer(out))
        for part in (out / SHARDS).glob("*"):
            # what a part is still answering would be generated twice
            held.enter_context(folder_writer(part))
        return _run(engine, settings, candidates, out, say, progress, more, after, on_start)


def _run(
    engine: MeasuredEngine,
    settings: BenchSettings,
    candidates: Callable[[RunLog], Mapping[str, Candidate]],
    out: Path,
    say: Say,
    progress: Progress,
    more: Callable[[Sequence[Loaded]], Sequence[Loaded]],
    after: Sequence[Callable[[Path], None]],
    on_start: Callable[[Path], None],
) -> RunLog:
    """:func:`run_bench` in a folder that is ours."""
    loaded, missing = load_suite(settings, say)
    loaded += more(loaded)
    facts = engine.facts
    loaded = [_with_length(one, settings.max_new_tokens, facts.context_length) for one in loaded]
    judges = _judges(loaded, settings.judges)
    if settings.shard is not None:
        loaded, judges = settings.shard.part(loaded), {}
    log = RunLog.start(out, _manifest(facts, settings, loaded, missing, judges))
    on_start(log.folder)
    log.add_judges(
        {one.benchmark.name: _benchmark_entry(one, settings.judges)["judges"] for one in loaded},
        _judge_entries(judges),
    )
    log.finish(None)
    for name, candidate in candidates(log).items():
        say(f"running {name}")
        run_method(
            engine,
            name,
            candidate,
            loaded,
            judges,
            log,
            chunk=facts.chunk,
            progress=progress,
        )
    compare_replies(log, judges)
    log.finish(now())
    for make in after:
        make(out)
    return log


def load_suite(settings: BenchSettings, say: Say) -> tuple[list[Loaded], dict[str, str]]:
    """What is at hand, and the reason for each benchmark that is not.

    Raises:
        SettingError: an unknown benchmark.
        DataError: nothing is at hand.
    """
    loaded, missing = [], {}
    for benchmark in [BENCHMARKS[name] for name in settings.benchmarks]:
        try:
            found = load(
                benchmark,
                data=settings.data,
                hub=settings.hub,
                limit=settings.limit,
                seed=settings.seed,
            )
            for judge in benchmark.judges:
                make_judge(judge)  # says so where it lacks what it judges with
            loaded.append(found)
            if twice := contradictions(found.examples):
                say(f"note: {benchmark.name}: {describe(twice)}")
        except MissingError as error:
            missing[benchmark.name] = str(error)
            say(f"MISSING: {error}")
    if missing and not loaded:
        raise DataError(
            f"suite {settings.suite!r}: none of its {len(missing)} benchmarks is at hand; give "
            "--data or --hub"
        )
    return loaded, missing


def _with_length(one: Loaded, longest: int | None, context: int | None) -> Loaded:
    """The benchmark with replies of at most ``longest`` tokens, where the model's context has room
    for them and a prompt."""
    tokens = longest or one.benchmark.max_new_tokens
    return replace(
        one,
        benchmark=replace(
            one.benchmark, max_new_tokens=min(tokens, context // 2) if context else tokens
        ),
    )


def _judges(loaded: Sequence[Loaded], more: Sequence[Judge]) -> dict[str, Judge]:
    names = dict.fromkeys(name for one in loaded for name in one.benchmark.judges)
    return {name: make_judge(name) for name in names} | {judge.name: judge for judge in more}


def _manifest(
    facts: EngineFacts,
    settings: BenchSettings,
    loaded: Sequence[Loaded],
    missing: Mapping[str, str],
    judges: Mapping[str, Judge],
) -> JsonObject:
    versions = {"safeswitch": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _LIBRARIES}
    return {
        "identity": {
            **identity_of(facts),
            "suite": settings.suite,
            "seed": settings.seed,
            "limit": settings.limit,
            "max_new_tokens": settings.max_new_tokens,
            "versions": {name: versions[name] for name in ("safeswitch", "torch", "transformers")},
            "fit": dict(settings.fit or {}),
            "data": {one.benchmark.name: data_hash(one.examples) for one in loaded},
        },
        "model": {
            "id": facts.model_id,
            "revision": facts.revision,
            "fingerprint": facts.fingerprint,
            "device": facts.device,
            "num_layers": facts.num_layers,
        },
        "command": list(settings.command),
        "started": now(),
        "finished": None,
        "versions": versions,
        "benchmarks": {
            one.benchmark.name: _benchmark_entry(one, settings.judges) for one in loaded
        },
        "missing": dict(missing),
        "methods": {},
        "judges": _judge_entries(judges),
    }


def identity_of(facts: EngineFacts) -> JsonObject:
    """What must be the same of an engine for a run to be resumed.

    Transformers is not named, as it was not before there were other back ends.
    """
    identity: JsonObject = {
        "model": facts.fingerprint,
        "chat_template": short_hash(str(facts.chat_template)),
        "dtype": facts.dtype,
    }
    if facts.runs_in != "transformers":
        identity["engine"] = facts.runs_in
    return identity


def _judge_entries(judges: Mapping[str, Judge]) -> JsonObject:
    return {
        name: {"identity": dict(j.identity), "agreement": j.agreement()}
        for name, j in judges.items()
    }


def _benchmark_entry(one: Loaded, more: Sequence[Judge]) -> JsonObject:
    b = one.benchmark
    extra = [
        judge.name for judge in more if judge.speaks_of(b.measures) and judge.name not in b.judges
    ]
    return {
        "measures": b.measures,
        "title": b.title,
        "card": b.card,
        "origin": one.origin,
        "file_hash": one.file_hash,
        "data_hash": data_hash(one.examples),
        "n": len(one.examples),
        "of": one.of,
        "max_new_tokens": b.max_new_tokens,
        "judges": [*b.judges, *extra],
    }


def now() -> str:
    """ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
