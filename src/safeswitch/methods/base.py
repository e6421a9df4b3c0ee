"""The contract of a method and the table of methods. Knows nothing of engines or reports.

A method is a name, the place in the literature, and ``prepare``: it is handed something that generates and the fitting data
and gives a :class:`Switch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from safeswitch.core.registry import Registry
from safeswitch.core.types import Example, Reply
from safeswitch.switch.fit import does_not_refuse
from safeswitch.switch.fit_data import Complied, Generating
from safeswitch.switch.fit_settings import FitSettings
from safeswitch.switch.switch import Switch

Generate = Callable[[Sequence[Example]], list[Reply]]

METHODS: Registry[type[Method]] = Registry("method")


@dataclass(frozen=True)
class Method(ABC):
    """One defence.

    Args:
        settings: Fitting settings, shared so that methods are compared on equal terms.
        complied: Judge of replies to fitting requests.
    """

    settings: FitSettings = field(default_factory=FitSettings)
    complied: Complied = does_not_refuse
    name: ClassVar[str]

    @abstractmethod
    def prepare(self, engine: Generating, data: Mapping[str, Sequence[Example]]) -> Switch:
        """Fit on ``data`` (parts ``train``, ``validation``, ``calibration``) and give the switch."""

    def wrap(self, generate: Generate) -> Generate:
        """What a method does around generation (search, self-check); by default nothing."""
        return generate
