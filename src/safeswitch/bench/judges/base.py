"""The contract of a judge, the table of judges, and how the command line names one.

    rules                                         refusal by rules
    openai:MODEL@URL[,budget=TOKENS]              a chat model at an OpenAI-compatible server; without @URL at OpenAI
    strongreject:MODEL@URL[,budget=TOKENS]        StrongREJECT's rubric, graded by such a model
    pairwise:MODEL@URL[,budget=TOKENS]            replies to open requests against those of the untouched model
    llama-guard:MODEL  granite-guardian:MODEL  shieldgemma:MODEL        a folder or hub id
    harmbench:MODEL[,template=FILE]  sorry-bench:MODEL[,template=FILE]

Knows nothing of how any of them judges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from safeswitch.bench.log import Logged
from safeswitch.bench.verdict import Verdict
from safeswitch.core.errors import SettingError
from safeswitch.core.grammar import JudgeSpec, judge_spec
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.registry import Registry


class Judge(ABC):
    """Gives a verdict on logged replies."""

    name: str
    """For tables and files: letters, digits, ``.``, ``_`` and ``-``."""
    against: str = ""
    """Method whose replies it compares with; empty for judges that look at one reply alone."""
    needs_model: ClassVar[bool] = False
    """Whether a model stands behind the colon of its name."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Settings that may follow the model."""

    @classmethod
    def from_spec(cls, spec: JudgeSpec, cache: Path) -> Judge:
        """The judge that ``spec`` names; its kind, model and settings are known to be of this
        class.

        Args:
            spec: What was typed.
            cache: Folder in which answers of chat models are kept.
        """
        return cls()

    @property
    @abstractmethod
    def identity(self) -> JsonMapping:
        """What makes its verdicts what they are, as plain JSON: version, weights, prompt."""

    def speaks_of(self, measures: str) -> bool:
        """Whether it has something to say of benchmarks that measure ``safety``, ``task`` or
        ``open``."""
        return True

    def agreement(self) -> list[JsonObject]:
        """How well it agrees with people's labels: rows of figures with intervals, where that was
        measured."""
        return []

    def beside(self, others: Mapping[str, Logged]) -> Judge:
        """The judge with the replies of ``against`` at hand, by request id."""
        return self

    @abstractmethod
    def judge(self, rows: Sequence[Logged]) -> list[Verdict]:
        """One verdict a row, in order; every row has a reply."""


JUDGES: Registry[type[Judge]] = Registry("judge", "safeswitch.bench.judges", "safeswitch.judges")


def make_judge(text: str, cache: Path = Path()) -> Judge:
    """The judge that ``text`` names; see the module text.

    Args:
        text: As it was typed.
        cache: Folder in which answers of chat models are kept.

    Raises:
        SettingError: an unknown kind or setting, or a model that is missing or not asked for.
        SafeSwitchError: a package or model that is not there.
    """
    spec = judge_spec(text)
    kind = JUDGES.get(spec.kind)
    if (
        kind is None
        or bool(spec.model) != kind.needs_model
        or set(spec.settings) - set(kind.settings)
    ):
        raise SettingError(
            f"judge {text!r}: give kind, or kind:where[,setting=value]; kinds: {_kinds()}"
        )
    return kind.from_spec(spec, cache)


def _kinds() -> str:
    """Every kind with what it takes, for messages."""
    descriptions = []
    for name in JUDGES:
        kind = JUDGES[name]
        settings = f" (settings: {', '.join(kind.settings)})" if kind.settings else ""
        descriptions.append(f"{name}{':MODEL' if kind.needs_model else ''}{settings}")
    return ", ".join(descriptions)
