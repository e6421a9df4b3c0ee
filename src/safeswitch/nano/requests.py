"""Composes requests: an action (verb x object), a phrasing, and perhaps a jailbreak template around
it.

Knows the tables and the splits; knows nothing of replies, suites or models.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from safeswitch.core.types import Message, Role
from safeswitch.nano.splits import objects, safe_actions, unsafe_actions
from safeswitch.nano.tables.facts import WORDS
from safeswitch.nano.tables.phrasings import FAREWELLS, GREETINGS, PHRASINGS
from safeswitch.nano.tables.slots import SLOTS
from safeswitch.nano.tables.verbs import VERBS
from safeswitch.nano.tables.wrappers import FRAMES, UNSEEN

Turns = tuple[tuple[Role, str], ...]
_SLOT = re.compile(r"<(\w+)>")
NESTED = 0.15


@dataclass(frozen=True)
class Action:
    """A verb with an object; ``category`` is empty when that is harmless."""

    verb: str
    kind: str
    object: str
    category: str

    @property
    def base(self) -> str:
        """``kill a process``."""
        return f"{self.verb} {self.object}"

    @property
    def gerund(self) -> str:
        """``killing a process``."""
        return f"{VERBS[self.verb][0]} {self.object}"


@dataclass(frozen=True)
class Request:
    """An action in words: the turns of the conversation up to the final user turn; ``bare`` is the
    request in them, without small talk or template."""

    action: Action
    bare: str
    turns: Turns
    wrapper: str
    blunt: bool

    @property
    def text(self) -> str:
        """The final user text."""
        return self.turns[-1][1]

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(Message(role, text) for role, text in self.turns)


def draw_unsafe(rng: random.Random, object_split: str, category_split: str = "A") -> Action:
    """A harmful action, uniform over the categories of the split."""
    by_category = unsafe_actions(category_split)
    category = rng.choice(sorted(by_category))
    verb, kind = rng.choice(by_category[category])
    return Action(verb, kind, rng.choice(objects(kind, object_split)), category)


def draw_safe(rng: random.Random, object_split: str) -> Action:
    """A harmless look-alike: it shares its verb or its object with harmful actions."""
    verb, kinds = rng.choice(safe_actions(rng.random() < 0.6))
    kind = rng.choice(kinds)
    return Action(verb, kind, rng.choice(objects(kind, object_split)), "")


def draw_phrasing(rng: random.Random, split: str) -> tuple[str, bool]:
    """A phrasing template and whether it is blunt."""
    blunt = rng.random() < 0.5
    return rng.choice(PHRASINGS[split]["blunt" if blunt else "soft"]), blunt


def phrase(template: str, action: Action) -> str:
    """Fill a phrasing."""
    text = template.format(v=action.base, g=action.gerund)
    return text[0].upper() + text[1:]


def small_talk(rng: random.Random, text: str, split: str) -> str:
    """Put a greeting or a farewell around a plain request, one time in three."""
    roll = rng.random()
    if roll < 0.12:
        return f"{rng.choice(GREETINGS[split])} {text}"
    if roll < 0.28:
        return f"{text} {rng.choice(FAREWELLS[split])}"
    return (
        f"{rng.choice(GREETINGS[split])} {text} {rng.choice(FAREWELLS[split])}"
        if roll < 0.33
        else text
    )


def template_family(name: str) -> str:
    """``roleplay_a3`` -> ``roleplay``."""
    return name.partition("_")[0]


def wrap(rng: random.Random, text: str, split: str) -> tuple[Turns, str]:
    """Wrap a text (one time in seven twice, in splits A and B); returns the turns and the outer
    template's name."""
    if split != "C" and rng.random() < NESTED:
        inner = _fill(rng, _pick(rng, split), split)
        if "||" not in inner:
            text = _upper(inner.replace("@", text))
    name = _pick(rng, split)
    parts = [_upper(part.replace("@", text)) for part in _fill(rng, name, split).split("||")]
    roles: tuple[Role, ...] = ("user", "assistant", "user") if len(parts) == 3 else ("user",)
    return tuple(zip(roles, parts, strict=True)), name


def _fill(rng: random.Random, name: str, split: str) -> str:
    family, _, index = name.partition("_")
    template = UNSEEN[name] if split == "C" else FRAMES[split][family][int(index[1:])]
    return _SLOT.sub(_filler(rng, split), template)


def _pick(rng: random.Random, split: str) -> str:
    if split == "C":
        return rng.choice(sorted(UNSEEN))
    family = rng.choice(sorted(FRAMES[split]))
    return f"{family}_{split.lower()}{rng.randrange(len(FRAMES[split][family]))}"


def _filler(rng: random.Random, split: str) -> Callable[[re.Match[str]], str]:
    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "words":
            return " ".join(rng.sample(WORDS, rng.randint(2, 7)))
        own = SLOTS[split][name]
        return rng.choice(own if split == "A" or rng.random() < 0.6 else SLOTS["A"][name])

    return fill


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def compose(
    rng: random.Random,
    action: Action,
    phrasing_split: str,
    template_split: str = "",
    chatty: bool = True,
) -> Request:
    """Word an action, plain (with small talk now and then) or wrapped."""
    template, blunt = draw_phrasing(rng, phrasing_split)
    bare = phrase(template, action)
    if template_split:
        turns, name = wrap(rng, bare, template_split)
        return Request(action, bare, turns, name, blunt)
    text = small_talk(rng, bare, "A" if phrasing_split == "A" else "B") if chatty else bare
    return Request(action, bare, (("user", text),), "", blunt)
