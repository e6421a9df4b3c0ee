"""Running switches over suites and counting: harmful compliance, over-refusal, task accuracy, with 95 % intervals.

Everything is generated through an engine. Knows nothing of how a method came about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from safeswitch.core.types import Example, Reply
from safeswitch.engines.base import Engine
from safeswitch.evaluation.intervals import Rate, wilson
from safeswitch.switch.switch import Switch

Metric = Literal["harmful compliance", "refusal", "accuracy"]
Outcome = Callable[[Example, str], bool]


@dataclass(frozen=True)
class Suite:
    """Requests that are judged in one way.

    Args:
        name: For tables and files.
        metric: What a hit means.
        examples: The requests.
        hit: Judge of one reply.
        helped: For requests that are refused or not: did the reply do what was asked? None takes every reply that is no hit.
    """

    name: str
    metric: Metric
    examples: tuple[Example, ...]
    hit: Outcome
    helped: Outcome | None = None


@dataclass(frozen=True)
class Result:
    """One method on one suite: replies and hits, request by request, in the suite's order."""

    suite: Suite
    replies: tuple[Reply, ...]
    hits: tuple[bool, ...]

    @property
    def rate(self) -> Rate:
        return wilson(sum(self.hits), len(self.hits))

    @property
    def neither(self) -> Rate:
        """Share of replies that neither refuse nor comply (nor answer): broken text, or words that no judge knows."""
        good = self.suite.helped or (lambda e, text: True)
        pairs = zip(self.suite.examples, self.replies, self.hits, strict=True)
        return wilson(sum(not hit and not good(e, r.text) for e, r, hit in pairs), len(self.hits))

    @property
    def fired(self) -> Rate:
        """Share of requests on which the gate fired."""
        return wilson(sum(r.decision.fired for r in self.replies), len(self.replies))


def run_suite(engine: Engine, suite: Suite, switch: Switch | None, *, max_new_tokens: int, **options: Any) -> Result:
    """Generate greedily and judge."""
    replies = engine.generate(suite.examples, switch, max_new_tokens=max_new_tokens, do_sample=False, **options)
    hits = tuple(suite.hit(e, r.text) for e, r in zip(suite.examples, replies, strict=True))
    return Result(suite, tuple(replies), hits)


def run_suites(
    engine: Engine,
    suites: Sequence[Suite],
    switches: Mapping[str, Switch],
    *,
    max_new_tokens: int,
    progress: Callable[[str, str], None] = lambda suite, method: None,
) -> dict[str, dict[str, Result]]:
    """Every switch on every suite: results by suite name, then method name."""
    results: dict[str, dict[str, Result]] = {}
    for suite in suites:
        results[suite.name] = {}
        for method, switch in switches.items():
            progress(suite.name, method)
            results[suite.name][method] = run_suite(engine, suite, switch, max_new_tokens=max_new_tokens)
    return results
