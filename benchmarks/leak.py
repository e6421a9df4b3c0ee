"""Does a byte of a flagged request's pilot text ever leave the server?

    python benchmarks/leak.py [--engine vllm|transformers] [--requests 1000] [--unwatched]

Starts the server on nano and sends streamed requests, most at once, with random pauses, disconnects
and aborts, through a plain HTTP client that keeps every byte. What may be shown is known beforehand
from the transformers engine, request by request; what must not be is what the untouched model would
have said. Ends with exit code 1 at the first byte that is not the beginning of what may be shown.
With ``--unwatched`` the switch has its two stages alone, so that nothing but stage 2 holds a reply
back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
from benchmarks.running import serving

from safeswitch.core.types import Example, Reply
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.switch.switch import Switch

NEW = 48
SUITES = ("jailbroken", "plain_unsafe", "lookalike", "ordinary")


@dataclass(frozen=True)
class Told:
    """One request, what may be shown, and what the untouched model says: in all, in the tokens that
    stage 2 reads, and up to the last reading of a watch before the one that fires."""

    example: Example
    shown: Reply
    untouched: Reply
    pilot: str
    cleared: str


def unwatched() -> Switch:
    """Nano's own switch, its two stages alone."""
    switch = Switch.from_pretrained(switch_path())
    return replace(switch, gate=replace(switch.gate, watch=None, watch_until=None))


def told(each: int, switch: Switch | None = None) -> list[Told]:
    """Flagged and unflagged requests of nano, as the transformers engine answers them under
    ``switch``, or nano's own."""
    rows = [e for name in SUITES for e in load_suite(name, each, 0)]
    engine, switch = (
        TransformersEngine.load(weights_path()),
        switch or Switch.from_pretrained(switch_path()),
    )
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}

    def facts(example: Example, shown: Reply, bare: Reply) -> Told:
        last = max(0, shown.decision.token_index - switch.gate.watch_every)
        parts = (
            engine.lm.tokenizer.decode(bare.token_ids[:count])
            for count in (switch.gate.pilot, last)
        )
        return Told(example, shown, bare, *map(str, parts))

    return list(
        map(facts, rows, engine.generate(rows, switch, **options), engine.generate(rows, **options))
    )


def body(example: Example, **more: Any) -> dict[str, Any]:
    """A greedy chat request."""
    turns = [{"role": m.role, "content": m.content} for m in example.messages]
    return {"model": "nano", "messages": turns, "max_tokens": NEW, "temperature": 0.0, **more}


def check(facts: Told, text: str, raw: bytes) -> None:
    """Raise for text that may not have been shown.

    Raises:
        AssertionError: what leaked.
    """
    allowed, decision = facts.shown.text, facts.shown.decision
    if decision.fired and decision.stage == "watch":
        # the watch takes back what it has shown so far, after a blank line
        before, _, after = text.partition("\n\n")
        taken_back = facts.cleared.startswith(before) and allowed.startswith(after)
        assert allowed.startswith(text) or taken_back, (facts.example.id, text, facts.cleared)
        return
    assert allowed.startswith(text), (facts.example.id, text, allowed)
    if decision.fired and facts.pilot.strip() and facts.pilot not in allowed:
        assert facts.pilot.encode() not in raw, (facts.example.id, "raw", raw)


async def one(
    client: httpx.AsyncClient, facts: Told, draw: random.Random, how: str, spread: float
) -> str:
    """Send one request, leave it as ``how`` says, and check what came."""
    raw, text, decided = b"", "", None
    leave_after = draw.choice((1, 2, 3, 5, 9)) if how == "disconnects" else None

    async def read() -> None:
        nonlocal raw, text, decided
        async with client.stream(
            "POST", "/v1/chat/completions", json=body(facts.example, stream=True)
        ) as answer:
            assert answer.status_code == 200, (answer.status_code, await answer.aread())
            number = 0
            async for line in answer.aiter_lines():
                raw += line.encode() + b"\n"
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    assert "error" not in chunk, chunk
                    text += "".join(
                        choice["delta"].get("content") or "" for choice in chunk["choices"]
                    )
                    decided = chunk.get("safeswitch", decided)
                    number += 1
                if number == leave_after:
                    return

    await asyncio.sleep(draw.random() * spread)
    reading = asyncio.create_task(read())
    if how == "aborts":
        await asyncio.wait({reading}, timeout=draw.random())
        reading.cancel()
    try:
        await reading
    except asyncio.CancelledError:
        how = "aborted"
    check(facts, text, raw)
    if how == "reads to its end":
        assert text == facts.shown.text or facts.shown.decision.stage == "watch", (
            text,
            facts.shown.text,
        )
        assert (decided or {}).get("fired", False) == facts.shown.decision.fired, decided
        assert decided is not None or facts.shown.decision.stage == "none"
    return how


async def attack(
    url: str,
    key: str | None,
    facts: Sequence[Told],
    requests: int,
    *,
    at_once: int = 64,
    seed: int = 0,
) -> Counter[str]:
    """Send ``requests`` streams; how each ended.

    Raises:
        AssertionError: something leaked.
    """
    draw, ends = random.Random(seed), Counter[str]()
    gate = asyncio.Semaphore(at_once)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once // 2)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=120, limits=limits
    ) as client:

        async def send() -> None:
            async with gate:
                how = draw.choice(("reads to its end", "disconnects", "aborts"))
                chosen = facts[draw.randrange(len(facts))]
                ends[
                    f"{await one(client, chosen, draw, how, 0.5)}, {'flagged' if chosen.shown.decision.fired else 'passed'}"
                ] += 1

        await asyncio.gather(*(send() for _ in range(requests)))
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--unwatched", action="store_true", help="two stages, no watch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = unwatched() if args.unwatched else Switch.from_pretrained(switch_path())
        own.save_pretrained(folder / "switch")
        facts = told(40, own)
        with serving(folder, args.engine, switch=str(folder / "switch")) as running:
            ends = asyncio.run(attack(running.url, None, facts, args.requests))
    print("| streams that | number |\n|---|---|")
    for how, number in sorted(ends.items()):
        print(f"| {how} | {number} |")
    print(f"{sum(ends.values())} streams, none showed a byte it should not have")


if __name__ == "__main__":
    main()
