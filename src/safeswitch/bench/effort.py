"""Reasoning effort: the same methods with more and less reasoning, asked for by prompt or bounded
by a budget.

*Are Smarter LLMs Safer?* (arXiv 2502.09673) raises reasoning by prompting and by training and finds
safety to move the other way. What a model was trained to do cannot be varied here; what it is asked
for, and how long it may think, can. Knows engines only as something that generates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from safeswitch.bench.log import RunLog
from safeswitch.bench.runner import Candidate
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Prompt, Reply, as_messages
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import SystemPrompt
from safeswitch.switch.engine import Around, GenerationOptions, ReadingEngine
from safeswitch.switch.switch import Switch

STEP_BY_STEP = "Think step by step before you answer, and then give your answer."
_BUDGET = re.compile(r"budget(\d+)")
_JOIN = "@"


@dataclass(frozen=True)
class Effort:
    """One way to have a model reason.

    Args:
        name: ``plain`` (as it comes), ``cot`` (asked to think step by step) or ``budget<N>``
            (thinking ended after N tokens).
        system: Text put in front of the conversation.
        budget: Tokens of thinking, None without bound.
    """

    name: str
    system: str = ""
    budget: int | None = None

    @classmethod
    def parse(cls, name: str) -> Effort:
        """The effort of that name.

        Raises:
            SettingError: there is none.
        """
        budget = _BUDGET.fullmatch(name)
        if not _is_effort(name):
            raise SettingError(f"effort must be plain, cot or budget<N>, as budget64; got {name!r}")
        return cls(name, STEP_BY_STEP if name == "cot" else "", int(budget[1]) if budget else None)


class AtEffort(Around):
    """An engine that reasons with one effort; what it says is judged without its thinking.

    Args:
        inner: What generates.
        effort: How.
    """

    def __init__(self, inner: ReadingEngine, effort: Effort) -> None:
        super().__init__(inner)
        self.effort = effort

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        """As the engine's own."""
        if self.effort.system:
            prompts = [SystemPrompt(self.effort.system).edit(as_messages(p)) for p in prompts]
        if self.effort.budget is not None:
            options["thinking_budget"] = self.effort.budget
        options["show_thinking"] = False
        return super().generate(prompts, switch, **options)


def check_efforts(names: Sequence[str], lm: LanguageModel) -> tuple[Effort, ...]:
    """The efforts of those names, each once, and all within what the model can do.

    Raises:
        SettingError: no name, one twice, an unknown one, or a budget for a model without known
            thinking marks.
    """
    efforts = tuple(Effort.parse(name) for name in names)
    if not efforts or len(set(efforts)) < len(efforts):
        raise SettingError(
            f"efforts: name at least one, each once; got {', '.join(names) or 'none'}"
        )
    if any(effort.budget is not None for effort in efforts):
        lm.needs_thinking()
    return efforts


def at_efforts(
    ready: Callable[[RunLog], Mapping[str, Candidate]], efforts: Sequence[Effort]
) -> Callable[[RunLog], dict[str, Candidate]]:
    """Every method at every effort, as ``<method>@<effort>``: fitted once, without any, and run
    with each."""

    def candidates(log: RunLog) -> dict[str, Candidate]:
        found = {}
        for method, candidate in ready(log).items():
            for effort in efforts:
                name = f"{method}{_JOIN}{effort.name}"
                if not log.switch_folder(name).exists():
                    candidate.switch.save_pretrained(log.switch_folder(name))
                found[name] = _at(candidate, effort)
        return found

    return candidates


def _at(candidate: Candidate, effort: Effort) -> Candidate:
    settings = {**candidate.settings, "effort": [effort.name, effort.system]}
    return replace(
        candidate, wrap=lambda engine: candidate.wrap(AtEffort(engine, effort)), settings=settings
    )


def split_name(name: str) -> tuple[str, str]:
    """Method and effort of a name that :func:`at_efforts` has made.

    Examples:
        >>> split_name("prober+merge@budget64")
        ('prober+merge', 'budget64')

    Raises:
        SettingError: another name.
    """
    method, joined, effort = name.rpartition(_JOIN)
    if not joined or not _is_effort(effort):
        raise SettingError(
            f"{name!r} is no method at an effort; make the run with safeswitch compare --efforts"
        )
    return method, effort


def _is_effort(name: str) -> bool:
    return name in ("plain", "cot") or _BUDGET.fullmatch(name) is not None
