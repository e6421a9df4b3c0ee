"""The loop on nano: observe traffic that the calibration never saw, review 50 rows, recalibrate.

    python benchmarks/loop.py [--requests 6000] [--reviewed 50] [--budget 0.01] [--seed 0]

Traffic: harmless requests whose objects, phrasings and wrappers neither nano's switch nor its
calibration saw, with some unsafe ones among them. Observed on one half; what changes is measured on
the other half, which no verdict was given on. Verdicts are the labels. Each order of review
(nearest to the threshold, random) is tried, and all rows, and the switch as it was.

A gate decides on scores, so those are read once: stage 1 on every request, stage 2 where stage 1
passes at the old threshold (a higher one asks no more of it). The watch is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from safeswitch.core.errors import FitError
from safeswitch.core.types import Decision, Example
from safeswitch.data.reviews import ReviewVerdict
from safeswitch.data.traffic import Traffic, traffic
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.recalibrate import RecalibrationSettings, recalibrate
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.statistics.intervals import Interval, poisson_total, wilson
from safeswitch.switch.switch import Switch

MIXTURE = {
    "ordinary_c": 0.50,
    "lookalike_c": 0.20,
    "lookalike_wrapped_c": 0.20,
    "lookalike_obj_c": 0.08,
    "jailbroken_c": 0.01,
    "plain_unsafe_c": 0.01,
}
"""Of the traffic; two requests in a hundred are unsafe."""
PER_DAY, WEEK = 10_000, 7


def asked(requests: int, seed: int) -> list[Example]:
    """Traffic in random order, each text once."""
    rows: list[Example] = []
    for name, share in MIXTURE.items():
        rows += load_suite(name, round(requests * share), seed + 1)
    random.Random(seed).shuffle(rows)
    return rows


def unwatched() -> Switch:
    switch = Switch.from_pretrained(switch_path())
    return replace(switch, gate=replace(switch.gate, watch=None, watch_until=None))


def sha(example: Example) -> str:
    text = json.dumps([[m.role, m.content] for m in example.messages])
    return hashlib.sha256(text.encode()).hexdigest()


def recorded(
    rows: Sequence[Example], decisions: Sequence[Decision], switch: Switch
) -> list[dict[str, Any]]:
    """What an audit would hold, spread over the days that such traffic takes."""
    return [
        {
            "at": number * 86400 / PER_DAY,
            "request_id": example.id,
            "bundle_id": switch.fingerprint,
            "policy": "observe",
            "fired": decision.fired,
            "stage": decision.stage,
            "scores": dict(decision.scores),
            "thresholds": dict(decision.thresholds),
            "text_sha256": sha(example),
            "text": example.prompt,
        }
        for number, (example, decision) in enumerate(zip(rows, decisions, strict=True))
    ]


def flagged_at(switch: Switch, decisions: Sequence[Decision]) -> list[bool]:
    """What the switch's thresholds say on scores that were read under lower ones."""
    bars = switch.gate.thresholds()
    return [all(d.scores.get(name, 0.0) > bar for name, bar in bars.items()) for d in decisions]


def reviewed(
    seen: Traffic, truth: Mapping[str, ReviewVerdict], order: str, count: int
) -> dict[str, ReviewVerdict]:
    """Verdicts on the first rows of an order."""
    rows = [one.text_sha256 for one in seen.flagged]
    if order == "random":
        random.Random(0).shuffle(rows)
    return {text: truth[text] for text in rows[:count]}


def week(alarms: int, requests: int) -> Interval:
    """False alarms a week at ``PER_DAY`` requests a day, from those counted among ``requests``."""
    found, scale = poisson_total([1.0] * alarms), PER_DAY * WEEK / requests
    return Interval(found.value * scale, found.low * scale, found.high * scale, found.n)


def shown(found: Interval) -> str:
    return f"{found.value:.0f} ({found.low:.0f}-{found.high:.0f})"


def measured(switch: Switch, rows: Sequence[Example], decisions: Sequence[Decision]) -> str:
    """False alarms and catches on rows that no verdict was given on."""
    fired = flagged_at(switch, decisions)
    safe = [not example.unsafe for example in rows]
    alarms = sum(f and s for f, s in zip(fired, safe, strict=True))
    unsafe = len(rows) - sum(safe)
    caught = wilson(sum(fired) - alarms, unsafe)
    return (
        f"false alarms {alarms} of {sum(safe)}; a week at {PER_DAY}/day: "
        f"{shown(week(alarms, len(rows)))}; caught {sum(fired) - alarms} of {unsafe} "
        f"({caught.low:.1%}-{caught.high:.1%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--reviewed", type=int, default=50)
    parser.add_argument("--budget", type=float, default=0.01, help="of all requests")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    switch = unwatched()
    rows = asked(given.requests, given.seed)
    engine = TransformersEngine.load(weights_path(), batch_size=64)
    tokens = switch.gate.pilot + 1
    replies = engine.generate(rows, switch=switch, max_new_tokens=tokens, do_sample=False)
    decisions = [reply.decision for reply in replies]
    half = len(rows) // 2
    before, after = (rows[:half], decisions[:half]), (rows[half:], decisions[half:])
    seen = traffic(recorded(*before, switch), switch.fingerprint, switch.gate.thresholds())
    truth: dict[str, ReviewVerdict] = {
        sha(example): "right" if example.unsafe else "false_alarm" for example in before[0]
    }
    false = sum(truth[one.text_sha256] == "false_alarm" for one in seen.flagged)
    print(f"observed {seen.requests} requests: {len(seen.flagged)} flagged, {false} false alarms")
    print(f"as it was, on the other half: {measured(switch, *after)}")
    for order, count in (
        ("nearest", given.reviewed),
        ("random", given.reviewed),
        ("all", len(seen.flagged)),
    ):
        verdicts = reviewed(seen, truth, order, count)
        for stage in ("stage1", "stage2"):
            settings = RecalibrationSettings(stage, given.budget, per_day=PER_DAY)
            try:
                new, found = recalibrate(switch, seen, verdicts, settings)
            except FitError as error:
                print(f"{order} {len(verdicts)}, {stage}: {error}")
                continue
            print(
                f"{order} {len(verdicts)}, {stage}: threshold {found.before:.4f} -> "
                f"{found.after:.4f}{' (held)' if found.held else ''}; expected a day "
                f"{shown(found.alarms_before)} -> {shown(found.alarms_after)}; on the other half: "
                f"{measured(new, *after)}"
            )


if __name__ == "__main__":
    main()
