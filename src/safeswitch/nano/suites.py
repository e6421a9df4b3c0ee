"""Test suites and fit data of the base model, as examples of the common vocabulary.

Suites of kind B hold at least one part (object, phrasing, jailbreak template) that probers and head
never saw; ``_c`` suites use phrasings and templates that nothing saw, over known objects;
``_obj_c`` unseen objects; ``_cat``/``_cat_c`` held-out categories; ``_a`` new combinations of known
parts. No test request is in the corpus or in fit data, in whatever template
(:func:`safeswitch.nano.splits.bucket`); ``meta["request"]`` holds it bare.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from safeswitch.core.errors import SettingError, check_choice
from safeswitch.core.types import Example, Message
from safeswitch.nano import tasks
from safeswitch.nano.replies import helpful, refusal
from safeswitch.nano.requests import Request, compose, draw_safe, draw_unsafe, small_talk, wrap
from safeswitch.nano.splits import Bucket, bucket, checksum
from safeswitch.nano.tables.system import SAFETY_PROMPTS_A as SAFETY_PROMPTS_A
from safeswitch.nano.tables.system import SAFETY_PROMPTS_B as SAFETY_PROMPTS_B
from safeswitch.nano.tasks import TASKS

Generator = Callable[[random.Random], Example]
_PATIENCE = 5000  # draws in a row without a new prompt, after which a suite is taken to be used up


@dataclass(frozen=True)
class TableParts:
    """Splits of the parts of a request, one letter string each; a part is drawn from its letters at
    random.

    Args:
        held: At least one part must be of split B.
    """

    objects: str = "A"
    phrasings: str = "A"
    wrappers: str = ""
    category: str = "A"
    held: bool = False

    def draw(self, rng: random.Random) -> tuple[str, str, str]:
        """Splits of object, phrasing and template (empty: plain)."""
        while True:
            picked = (
                rng.choice(self.objects),
                rng.choice(self.phrasings),
                rng.choice(self.wrappers or " ").strip(),
            )
            if not self.held or "B" in picked:
                return picked


# Objects that the tables of the shipped weights' corpus list both as A and as B: not held out, so
# no suite counts them so.
TWICE = ("a snowball",)
_B = TableParts("AB", "AB", held=True)
_B_WRAPPED = TableParts("AB", "AB", "ABB", held=True)
_C = TableParts("AB", "C")
_C_WRAPPED = TableParts("AB", "ABCC", "C")
_OBJ = TableParts("C", "AB")
# suite: (generator name, parts)
_SPECS: dict[str, tuple[str, TableParts]] = {
    "plain_unsafe": ("plain", _B),
    "jailbroken": ("wrapped", _B_WRAPPED),
    "lookalike": ("lookalike", _B),
    "lookalike_wrapped": ("lookalike", _B_WRAPPED),
    "ordinary": ("ordinary", TableParts(phrasings="B")),
    "plain_unsafe_c": ("plain", _C),
    "jailbroken_c": ("wrapped", _C_WRAPPED),
    "lookalike_c": ("lookalike", _C),
    "lookalike_wrapped_c": ("lookalike", _C_WRAPPED),
    "ordinary_c": ("ordinary", TableParts(phrasings="C")),
    "plain_unsafe_cat": ("plain", TableParts("AB", "AB", category="B")),
    "jailbroken_cat": ("wrapped", TableParts("AB", "AB", "AB", category="B")),
    "plain_unsafe_obj_c": ("plain", _OBJ),
    "jailbroken_obj_c": ("wrapped", replace(_OBJ, wrappers="AB")),
    "lookalike_obj_c": ("lookalike", _OBJ),
    "plain_unsafe_cat_c": ("plain", TableParts("AB", "AB", category="C")),
    "jailbroken_cat_c": ("wrapped", TableParts("AB", "AB", "AB", category="C")),
    "plain_unsafe_a": ("plain", TableParts()),
    "jailbroken_a": ("wrapped", TableParts(wrappers="A")),
    "lookalike_a": ("lookalike", TableParts()),
    "ordinary_a": ("ordinary", TableParts()),
}
SUITES: tuple[str, ...] = tuple(_SPECS)


@dataclass(frozen=True)
class FitData:
    """Examples to fit probers and head on: parts of split A only, disjoint in prompt text and in
    group.

    Args:
        train: Fitting.
        validation: Choice of settings.
        calibration: Benign only, as wide as real traffic; for thresholds.
    """

    train: list[Example]
    validation: list[Example]
    calibration: list[Example]


def _of_request(rng: random.Random, request: Request, source: str) -> Example:
    action = request.action
    unsafe = bool(action.category)
    return Example(
        id="",
        messages=request.messages,
        label="unsafe" if unsafe else "safe",
        category=action.category,
        source=f"nano/{source}",
        group=f"{action.verb}|{action.object}",
        wrapper=request.wrapper,
        reply=refusal(rng, action) if unsafe else helpful(rng, action),
        meta={
            "request": request.bare,
            "verb": action.verb,
            "object": action.object,
            "blunt": str(request.blunt),
        },
    )


def _of_item(item: tasks.Item, messages: tuple[Message, ...], wrapper: str) -> Example:
    return Example(
        id="",
        messages=messages,
        label="safe",
        category=item.task,
        source="nano/ordinary",
        group=item.key,
        wrapper=wrapper,
        reply=item.reply,
        answers=item.answers,
        meta={"request": item.text, "check": TASKS[item.task].check},
    )


def _generator(kind: str, parts: TableParts, wrap_tasks: bool = False) -> Generator:
    """A function that draws one example."""

    def request(rng: random.Random) -> Example:
        object_split, phrasing, wrapper = parts.draw(rng)
        while True:
            safe = kind == "lookalike"
            action = (
                draw_safe(rng, object_split)
                if safe
                else draw_unsafe(rng, object_split, parts.category)
            )
            if object_split == "A" or action.object not in TWICE:
                break
        return _of_request(rng, compose(rng, action, phrasing, wrapper), kind)

    def ordinary(rng: random.Random) -> Example:
        item = tasks.draw(rng, parts.draw(rng)[1])
        roll = rng.random()
        if wrap_tasks and roll < 0.15:
            turns, wrapper = wrap(rng, item.text, "A")
            return _of_item(item, tuple(Message(role, text) for role, text in turns), wrapper)
        text = small_talk(rng, item.text, "A") if wrap_tasks and roll < 0.4 else item.text
        return _of_item(item, (Message("user", text),), "")

    return ordinary if kind == "ordinary" else request


def _collect(
    name: str,
    generator: Generator,
    n: int,
    rng: random.Random,
    allowed: Callable[[Example], bool],
    seen: set[str],
) -> list[Example]:
    """``n`` examples with distinct final texts that are allowed and not in ``seen`` (which
    grows)."""
    found: list[Example] = []
    stale = 0
    while len(found) < n:
        example = generator(rng)
        stale += 1
        if example.prompt not in seen and allowed(example):
            seen.add(example.prompt)
            found.append(replace(example, id=f"{name}-{len(found)}"))
            stale = 0
        if stale > _PATIENCE:
            raise SettingError(f"{name}: has only {len(found)} distinct prompts; asked for n={n}")
    return found


def _in(wanted: Bucket) -> Callable[[Example], bool]:
    return lambda example: bucket(example.meta["request"]) == wanted


def load_suite(name: str, n: int = 300, seed: int = 0) -> list[Example]:
    """A test suite: ``n`` examples with distinct final user texts, the same for the same seed.

    Raises:
        SettingError: an unknown name, or more prompts than the tables yield.
    """
    check_choice("load_suite", "name", name, SUITES)
    kind, parts = _SPECS[name]
    rng = random.Random(f"nano-suite-{name}-{seed}")
    return _collect(name, _generator(kind, parts), n, rng, _in("test"), set())


def _side(group: str) -> str:
    """All examples of a group are on one side."""
    rest = checksum("side:" + group) % 10
    return "train" if rest < 5 else "validation" if rest < 7 else "calibration"


def load_fit(
    seed: int = 0,
    n_unsafe: int = 800,
    n_safe: int = 800,
    n_validation: int = 600,
    n_calibration: int = 800,
) -> FitData:
    """Data for probers and head, from parts of split A only.

    Args:
        n_unsafe: Unsafe training examples, half of them wrapped.
        n_safe: Safe training examples: look-alikes plain and wrapped, ordinary tasks and small
            talk.
        n_validation: Validation examples, half of them unsafe.
        n_calibration: Benign calibration examples.
    """
    rng = random.Random(f"nano-fit-{seed}")
    seen: set[str] = set()
    half = n_validation // 2
    return FitData(
        train=_mixed("train", n_unsafe, n_safe, rng, seen),
        validation=_mixed("validation", half, n_validation - half, rng, seen),
        calibration=_mixed("calibration", 0, n_calibration, rng, seen),
    )


def _mixed(
    side: str, n_unsafe: int, n_safe: int, rng: random.Random, seen: set[str]
) -> list[Example]:
    """Shuffled examples of one side: unsafe 50/50 plain and wrapped, safe 30/35/35 plain, wrapped,
    ordinary."""
    plain, wrapped = TableParts(), TableParts(wrappers="A")
    lookalikes, in_templates = n_safe * 30 // 100, n_safe * 35 // 100
    wanted = [
        ("plain", _generator("plain", plain), n_unsafe // 2),
        ("wrapped", _generator("wrapped", wrapped), n_unsafe - n_unsafe // 2),
        ("lookalike", _generator("lookalike", plain), lookalikes),
        ("lookalike_wrapped", _generator("lookalike", wrapped), in_templates),
        (
            "ordinary",
            _generator("ordinary", plain, wrap_tasks=True),
            n_safe - lookalikes - in_templates,
        ),
    ]

    def allowed(example: Example) -> bool:
        return bucket(example.meta["request"]) == "fit" and _side(example.group) == side

    examples: list[Example] = []
    for name, generator, n in wanted:
        examples += _collect(f"{side}-{name}", generator, n, rng, allowed, seen)
    rng.shuffle(examples)
    return examples
