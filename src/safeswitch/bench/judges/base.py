"""The contract of a judge and the table of judges that need no arguments. Knows nothing of how any of them judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safeswitch.bench.log import Logged
from safeswitch.bench.verdict import Verdict
from safeswitch.core.registry import Registry


class Judge(ABC):
    """Gives a verdict on logged replies."""

    name: str
    """For tables and files: letters, digits, ``.``, ``_`` and ``-``."""
    against: str = ""
    """Method whose replies it compares with; empty for judges that look at one reply alone."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What makes its verdicts what they are, as plain JSON: version, weights, prompt."""

    def speaks_of(self, measures: str) -> bool:
        """Whether it has something to say of benchmarks that measure ``safety``, ``task`` or ``open``."""
        return True

    def agreement(self) -> list[dict[str, Any]]:
        """How well it agrees with people's labels: rows of figures with intervals, where that was measured."""
        return []

    def beside(self, others: Mapping[str, Logged]) -> Judge:
        """The judge with the replies of ``against`` at hand, by request id."""
        return self

    @abstractmethod
    def judge(self, rows: Sequence[Logged]) -> list[Verdict]:
        """One verdict a row, in order; every row has a reply."""


JUDGES: Registry[Callable[[], Judge]] = Registry("judge")
