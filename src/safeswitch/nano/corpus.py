"""The language model's corpus: conversations drawn from a seed, without any test or fit prompt.

Parts of split A and B only; see :mod:`safeswitch.nano.splits`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from safeswitch.core.types import Message, Role
from safeswitch.nano import tasks
from safeswitch.nano.replies import answer
from safeswitch.nano.requests import Request, compose, draw_safe, draw_unsafe, small_talk, wrap
from safeswitch.nano.splits import bucket
from safeswitch.nano.tables.system import NEUTRAL_PROMPTS, SAFETY_PROMPTS_A, SAFETY_PROMPTS_B

# Shares of the conversations; "wrapped" counts unsafe and safe requests alike.
MIXTURE = {"plain_unsafe": 17, "wrapped_unsafe": 13, "plain_safe": 14, "wrapped_safe": 16, "ordinary": 40}
SAFETY_SHARE = 0.15
# Share of ordinary tasks drawn with long lists: copying (induction) forms sooner on them.
DRILLS = 0.35
NEUTRAL_SHARE = 0.10


def _part(rng: random.Random) -> str:
    return "A" if rng.random() < 0.7 else "B"


def _request(rng: random.Random, kind: str) -> Request:
    if kind.endswith("unsafe"):
        action = draw_unsafe(rng, _part(rng), "A" if rng.random() < 0.9 else "B")
    else:
        action = draw_safe(rng, _part(rng))
    return compose(rng, action, _part(rng), _part(rng) if kind.startswith("wrapped") else "")


def _system(rng: random.Random) -> tuple[tuple[Role, str], ...]:
    """No system turn, a neutral or a safety prompt."""
    roll = rng.random()
    if roll < SAFETY_SHARE:
        return (("system", rng.choice(SAFETY_PROMPTS_A + SAFETY_PROMPTS_B)),)
    return (("system", rng.choice(NEUTRAL_PROMPTS)),) if roll < SAFETY_SHARE + NEUTRAL_SHARE else ()


def _ordinary(rng: random.Random) -> tuple[tuple[tuple[Role, str], ...], str]:
    item = tasks.draw(rng, _part(rng), drill=rng.random() < DRILLS)
    roll = rng.random()
    if roll < 0.12:
        return wrap(rng, item.text, _part(rng))[0], item.reply
    return (("user", small_talk(rng, item.text, "A") if roll < 0.35 else item.text),), item.reply


def conversation(rng: random.Random) -> tuple[Message, ...]:
    """One conversation that ends with the assistant's reply; test and fit prompts are drawn again."""
    kind = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
    while True:
        system = _system(rng)
        if kind == "ordinary":
            turns, reply = _ordinary(rng)
        else:
            request = _request(rng, kind)
            turns = request.turns
            safety = bool(system) and system[0][1] not in NEUTRAL_PROMPTS
            reply = answer(rng, request, safety)
        if bucket(turns[-1][1]) == "corpus":
            everything = (*system, *turns, ("assistant", reply))
            return tuple(Message(role, text) for role, text in everything)


def conversations(seed: int = 0) -> Iterator[tuple[Message, ...]]:
    """An endless stream of conversations, the same for the same seed."""
    rng = random.Random(f"nano-corpus-{seed}")
    while True:
        yield conversation(rng)
