"""The language model's corpus: conversations drawn from a seed, without any test or fit request.

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
MIXTURE = {
    "plain_unsafe": 15,
    "wrapped_unsafe": 11,
    "plain_safe": 11,
    "wrapped_safe": 13,
    "ordinary": 50,
}
SAFETY_SHARE = 0.15
# Drills copy and reverse longer lists than tests do. The corpus opens with WARM conversations of
# ordinary tasks, most of them drills: copying in order (induction) forms there in some 200 steps,
# and hardly at all in the mixture alone.
DRILLS = 0.25
WARM = 30_000
WARM_DRILLS = 0.6
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


def _ordinary(rng: random.Random, drills: float) -> tuple[str, tuple[tuple[Role, str], ...], str]:
    """Bare request, turns and reply."""
    item = tasks.drill(rng, _part(rng)) if rng.random() < drills else tasks.draw(rng, _part(rng))
    roll = rng.random()
    if roll < 0.12:
        return item.text, wrap(rng, item.text, _part(rng))[0], item.reply
    return (
        item.text,
        (("user", small_talk(rng, item.text, "A") if roll < 0.35 else item.text),),
        item.reply,
    )


def conversation(rng: random.Random, warm: bool = False) -> tuple[Message, ...]:
    """One conversation that ends with the assistant's reply; test and fit requests are drawn
    again."""
    kind = "ordinary" if warm else rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
    while True:
        system = _system(rng)
        if kind == "ordinary":
            bare, turns, reply = _ordinary(rng, WARM_DRILLS if warm else DRILLS)
        else:
            request = _request(rng, kind)
            bare, turns = request.bare, request.turns
            safety = bool(system) and system[0][1] not in NEUTRAL_PROMPTS
            reply = answer(rng, request, safety)
        if bucket(bare) == "corpus":
            everything = (*system, *turns, ("assistant", reply))
            return tuple(Message(role, text) for role, text in everything)


def conversations(seed: int = 0, warm: int = 0) -> Iterator[tuple[Message, ...]]:
    """An endless stream of conversations, the same for the same seed; the first ``warm`` are
    ordinary tasks."""
    rng = random.Random(f"nano-corpus-{seed}")
    for _ in range(warm):
        yield conversation(rng, warm=True)
    while True:
        yield conversation(rng)
