"""Runs methods over benchmarks into a run folder: generate, judge, say when it is done. Nothing is
done twice.

The one way of running suites: the commands ``eval`` and ``compare``, the demo and the study all
come through here. Everything is generated greedily through an engine. Knows nothing of how a method
came about or of what is made from the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import torch

from safeswitch.bench.benchmark import Loaded
from safeswitch.bench.judges.base import Judge
from safeswitch.bench.log import Logged, RunLog
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.lines import append, take_up
from safeswitch.core.types import Prompt, Reply
from safeswitch.engines.jsonl import generate_file
from safeswitch.switch.engine import Around, GenerationOptions, ReadingEngine
from safeswitch.switch.switch import Switch

Progress = Callable[[str, str, int], None]
"""Told of method, benchmark and requests newly done."""
_CHUNK = 64
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A method that is ready to run.

    Args:
        switch: What the engine runs.
        wrap: What it does around generation, see :meth:`safeswitch.methods.base.Method.wrap`.
        settings: What else makes it what it is, as plain JSON.
        seconds: What fitting took; None where nothing was fitted now.
        engine: What generates in place of the run's engine; None: that one.
    """

    switch: Switch
    wrap: Callable[[ReadingEngine], ReadingEngine] = lambda engine: engine
    settings: JsonMapping = field(default_factory=dict)
    seconds: float | None = None
    engine: ReadingEngine | None = None


class Peak:
    """Peak memory in bytes between two calls of :meth:`read`: of the GPU where the model is there,
    else of this process (on Linux).

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._reset()

    def read(self) -> int | None:
        """The peak since the last call, and begin anew; None where the system does not tell."""
        if self.device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _high_water()
        self._reset()
        return peak

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            # resets the high-water mark of the resident set, see proc_pid_clear_refs(5)
            _CLEAR.write_text("5")
        except OSError:
            return


def _high_water() -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


class Meter(Around):
    """Generates through a method's wrapping engine and counts what passes.

    Args:
        engine: What generates.
        wrap: Puts the method's own engine around another.
        peak: Memory gauge; None where memory is not measured.
    """

    def __init__(
        self,
        engine: ReadingEngine,
        wrap: Callable[[ReadingEngine], ReadingEngine],
        peak: Peak | None = None,
    ) -> None:
        self._counted, self._peak = _Counted(engine), peak
        super().__init__(wrap(self._counted))

    def read(self, rows: int) -> JsonObject:
        """Cost since the last reading, shared evenly by ``rows``."""
        counted = self._counted
        cost = {"fed_tokens": counted.fed / rows, "made_tokens": counted.made / rows}
        counted.fed = counted.made = 0
        return {**cost, "peak_bytes": self._peak.read() if self._peak is not None else None}


class _Counted(Around):
    """The engine, with its tokens counted, those of a wrapping engine's own requests among them."""

    def __init__(self, inner: ReadingEngine) -> None:
        super().__init__(inner)
        self.fed = self.made = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        replies = super().generate(prompts, switch, **options)
        self.fed += sum(r.prompt_tokens for r in replies)
        self.made += sum(len(r.token_ids) if r.generated is None else r.generated for r in replies)
        return replies


def run_method(
    engine: ReadingEngine,
    name: str,
    candidate: Candidate,
    benchmarks: Sequence[Loaded],
    judges: Mapping[str, Judge],
    log: RunLog,
    *,
    chunk: int = _CHUNK,
    progress: Progress = lambda method, benchmark, done: None,
) -> None:
    """One method over all benchmarks: replies, then the judgements of all judges of each benchmark.

    ``chunk`` requests are written at a time: no more is lost when the run is killed.

    Raises:
        ArtifactError: the folder cannot be written, or holds replies of another switch.
    """
    if name not in log.methods:
        log.note("methods", {name: _entry(candidate)})
    device = log.manifest["model"]["device"]
    peak = Peak(torch.device(device)) if device and candidate.engine is None else None
    meter = Meter(candidate.engine or engine, candidate.wrap, peak)
    identity = {
        "model": log.manifest["model"]["fingerprint"],
        "switch": candidate.switch.fingerprint,
        "method": {"name": name, **candidate.settings},
    }
    for loaded in benchmarks:
        benchmark = loaded.benchmark
        path = log.replies_path(name, benchmark.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        generate_file(
            meter,
            loaded.examples,
            path,
            candidate.switch,
            identity=identity,
            chunk=chunk,
            measured=meter.read,
            also=log.shards_of(path),
            progress=lambda done, b=benchmark.name: progress(name, b, done),  # type: ignore[misc]
            max_new_tokens=benchmark.max_new_tokens,
            do_sample=False,
        )
        for judge in log.judges(benchmark.name):
            if judge in judges and not judges[judge].against:
                judge_rows(log, name, benchmark.name, judges[judge])


def _entry(candidate: Candidate) -> JsonObject:
    """What the manifest holds of a method."""
    switch = candidate.switch
    record = dict(switch.record)
    return {"switch": switch.fingerprint, "record": record, "seconds": candidate.seconds}


def compare_replies(log: RunLog, judges: Mapping[str, Judge]) -> None:
    """Have the judges that compare say what they have not yet said of the replies of all methods
    but the one compared with."""
    for benchmark in log.benchmarks:
        for judge in (
            judges[name]
            for name in log.judges(benchmark)
            if name in judges and judges[name].against
        ):
            others = {
                row.example.id: row
                for row in log.rows(judge.against, benchmark)
                if row.reply is not None
            }
            for method in (m for m in log.methods if m != judge.against):
                judge_rows(log, method, benchmark, judge.beside(others))


def judge_rows(log: RunLog, method: str, benchmark: str, judge: Judge) -> None:
    """Have a judge say what it has not yet said of the replies of one method to one benchmark.

    Where it could not judge, the reason is written, and a resumed run asks it again: the later
    row counts.
    """
    rows = [row for row in log.rows(method, benchmark) if row.reply is not None]
    path = log.judgements_path(method, benchmark, judge.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = take_up(path, dict(judge.identity), {row.example.id: row.answer for row in rows})
    left = [
        row for row in rows if done.get(row.example.id, {"unjudged": "not yet"}).get("unjudged")
    ]
    for start in range(0, len(left), _CHUNK):
        part = left[start : start + _CHUNK]
        append(
            path, [_row(row, v.to_dict()) for row, v in zip(part, judge.judge(part), strict=True)]
        )


def _row(row: Logged, verdict: JsonMapping) -> JsonObject:
    return {"id": row.example.id, "request": row.answer, **verdict}


def short_hash(text: str) -> str:
    """First 16 hex digits of the SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
