"""What a policy has done with requests that the gate flags, by the kind of harm seen in them.

The compiled form of a policy file for one client and one bundle; engines know policies by this
alone. Where a request is of several kinds, the strictest of their rules holds. Knows nothing of
files, keys or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from safeswitch.core.errors import check_range
from safeswitch.core.harms import HARMS
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import build, mapping, only, take
from safeswitch.probers.harms import Seen
from safeswitch.switch.actuators.base import Actuator, NoAction, SystemPrompt

Act = Literal["refuse", "careful", "annotate", "log", "allow"]
ACTS: tuple[Act, ...] = get_args(Act)
"""What can be done, the strictest first: the switch's own action; the model answers under a safety
prompt; the reply is left alone and its client told; it is left alone and put on record; it does not
count as flagged."""
CAREFUL = (
    "Part of this request may do harm. Help only with what is safe, leave out anything that could "
    "hurt somebody, and say briefly what you leave out and why."
)
"""The safety prompt of ``careful``."""


@dataclass(frozen=True)
class Rule:
    """What is done with requests of a kind.

    Args:
        act: What is done.
        threshold: Stage-1 score in [0, 1] above which it is done; None: the switch's own.
    """

    act: Act = "refuse"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_range("Rule", "threshold", self.threshold, 0.0, 1.0)


REFUSE = Rule()
"""Where nothing is known of a request but that the gate has fired."""


@dataclass(frozen=True)
class Rules:
    """Rules for one client under one bundle.

    Args:
        default: For kinds that ``kinds`` does not name.
        kinds: Rules by kind of harm, as pairs.
    """

    default: Rule = REFUSE
    kinds: tuple[tuple[str, Rule], ...] = ()

    @cached_property
    def _by_kind(self) -> Mapping[str, Rule]:
        return dict(self.kinds)

    @property
    def all(self) -> tuple[Rule, ...]:
        """Every rule."""
        return (self.default, *self._by_kind.values())

    @property
    def acts(self) -> frozenset[str]:
        """Everything that may be done."""
        return frozenset(rule.act for rule in self.all)

    def of(self, seen: Seen | None) -> tuple[Rule, ...]:
        """The rules for a request: one for each kind that is seen in it; all of them where none
        could be read, since any may be the right one."""
        if seen is None or not seen.categories:
            return self.all
        return tuple(self._by_kind.get(kind, self.default) for kind in seen.kinds)

    def at(self, seen: Seen | None, score: float) -> Rule | None:
        """The strictest of a request's rules whose threshold its stage-1 ``score`` exceeds; None
        where it exceeds none."""
        over = [r for r in self.of(seen) if r.threshold is None or score > r.threshold]
        return _strictest(over) if over else None

    def strictest(self, seen: Seen | None) -> Rule:
        """The strictest of the rules for a request that another stage than the first flags, to
        which thresholds of stage 1 say nothing."""
        return _strictest(self.of(seen))

    def filled(self, own: float) -> Rules:
        """The same rules, with a switch's ``own`` stage-1 threshold where they have none."""
        return self._each(
            lambda r: replace(r, threshold=own if r.threshold is None else r.threshold)
        )

    def without_careful(self) -> Rules:
        """The same rules where a prompt cannot be edited: ``careful`` refuses."""
        return self._each(lambda r: replace(r, act="refuse") if r.act == "careful" else r)

    def _each(self, change: Callable[[Rule], Rule]) -> Rules:
        kinds = tuple((kind, change(rule)) for kind, rule in self.kinds)
        return Rules(change(self.default), kinds)

    def to_dict(self) -> JsonObject:
        """Plain JSON."""
        kinds = {kind: _rule_dict(rule) for kind, rule in self.kinds}
        return {"default": _rule_dict(self.default), "kinds": kinds}

    @classmethod
    def parse(cls, stored: JsonMapping) -> Rules:
        """Inverse of :meth:`to_dict`.

        Raises:
            ArtifactError: a field or kind that is unknown, missing, or of another type.
        """
        only(stored, ("default", "kinds"), "rules")
        kinds = mapping(take(stored, "kinds", JsonMapping, "rules"), "rules.kinds")
        only(kinds, tuple(HARMS), "rules.kinds")
        made = []
        for kind, rule in kinds.items():
            made.append((kind, build(Rule, rule, f"rules.kinds.{kind}")))
        return cls(build(Rule, stored["default"], "rules.default"), tuple(made))


def _strictest(rules: Sequence[Rule]) -> Rule:
    return min(rules, key=lambda rule: ACTS.index(rule.act))


def _rule_dict(rule: Rule) -> JsonObject:
    return {"act": rule.act, "threshold": rule.threshold}


SAFETY_PROMPT = SystemPrompt(CAREFUL)
"""The action of ``careful``."""
_NONE = NoAction()


def action_for(act: str, own: Actuator) -> Actuator:
    """What is in force on a flagged request: the switch's ``own`` action, a safety prompt, or
    nothing. Where the switch only observes, nothing."""
    if act == "refuse" or own.place == "none":
        return own
    return SAFETY_PROMPT if act == "careful" else _NONE
