"""The policy file: what is done with flagged requests, by client and kind of harm.

An operator's YAML is read strictly, resolved for each client (organisation, team, key), and compiled
to the rules that engines know (:mod:`safeswitch.switch.rules`). Of one kind of harm:

- a level that names the kind goes before levels that do not; among these the nearest to the client
  goes first (key, team, organisation, preset). What an organisation says of one kind is therefore
  not undone by what a team says of all;
- kinds that a bundle cannot tell apart are seen as ``other``, for which the strictest of their
  rules then holds;
- a request of several kinds is held to the strictest of the rules that its score reaches.

Knows nothing of HTTP or engines.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from safeswitch.core.errors import SettingError, check_choice
from safeswitch.core.harms import HARMS, OTHER
from safeswitch.core.json_types import JsonObject
from safeswitch.switch.rules import ACTS, Act, Rule, Rules
from safeswitch.switch.switch import Switch

PresetName = Literal["permissive", "balanced", "strict"]
Probability = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
_LONGEST = 4096
"""Characters of a request that patterns are held against; a longer one matches none."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Word(_Strict):
    """What is said of requests of a kind; what is left out is for the next level to say.

    Attributes:
        act: What is done.
        threshold: Stage-1 score above which it is done.
        fpr: Fraction of benign requests that may score above that threshold; the bundle knows the
            threshold.
    """

    act: Act | None = None
    threshold: Probability | None = None
    fpr: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Word:
        if self.threshold is not None and self.fpr is not None:
            raise ValueError("threshold and fpr say the same; give one of them")
        return self


class Level(Word):
    """What an organisation, a team or a key says.

    Attributes:
        preset: Begin from this preset, and leave what the levels above say.
        kinds: What is said of single kinds of harm.
    """

    preset: PresetName | None = None
    kinds: Mapping[str, Word] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known_kinds(self) -> Level:
        unknown = sorted(set(self.kinds) - set(HARMS))
        if unknown:
            raise ValueError(f"no kind of harm: {unknown[0]!r}; known: {', '.join(HARMS)}")
        return self


class KeyLevel(Level):
    """What is said of one API key.

    Attributes:
        team: Whose rules it inherits.
    """

    team: str | None = None


class Allowed(_Strict):
    """A request that is let through whatever is seen in it; what the gate says is on record.

    Attributes:
        pattern: The whole text of the request, ``*`` standing for any characters, ``?`` for one.
        fingerprint: SHA-256 of the text, as ``text_sha256`` of an audit record has it.
        until: The last day on which it holds (UTC).
        teams: For these teams; with neither teams nor keys, for everybody.
        keys: For these keys.
        why: For whoever reads the file.
    """

    pattern: str | None = None
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    until: date
    teams: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    why: str = ""

    @model_validator(mode="after")
    def _one_way(self) -> Allowed:
        if (self.pattern is None) == (self.fingerprint is None):
            raise ValueError("give a pattern or a fingerprint, one of them")
        if self.pattern is not None and not self.pattern.strip("*? "):
            raise ValueError(f"pattern {self.pattern!r} would match every request")
        return self

    def matches(self, text: str) -> bool:
        """Whether it names this text."""
        if self.fingerprint is not None:
            return self.fingerprint == fingerprint(text)
        assert self.pattern is not None
        return len(text) <= _LONGEST and _compiled(self.pattern).match(text) is not None


class Policy(_Strict):
    """The file.

    Attributes:
        version: Of its format.
        organisation: What holds for everybody.
        teams: Teams by name.
        keys: API keys by name.
        allow: Requests that are let through.
    """

    version: Literal[1]
    organisation: Level = Level(preset="balanced")
    teams: Mapping[str, Level] = Field(default_factory=dict)
    keys: Mapping[str, KeyLevel] = Field(default_factory=dict)
    allow: tuple[Allowed, ...] = ()

    @model_validator(mode="after")
    def _known_names(self) -> Policy:
        for name, key in self.keys.items():
            self._check(f"keys.{name}.team", [key.team] if key.team is not None else [])
        for i, allowed in enumerate(self.allow):
            self._check(f"allow[{i}].teams", allowed.teams)
        return self

    def _check(self, where: str, teams: Iterable[str]) -> None:
        unknown = sorted(set(teams) - set(self.teams))
        if unknown:
            have = ", ".join(self.teams) or "none"
            raise ValueError(f"{where}: there is no team {unknown[0]!r}; there are: {have}")

    def levels(self, key: str | None) -> list[Level]:
        """What is said to a client, from the widest to the nearest; the first is a preset."""
        own = self.keys.get(key) if key is not None else None
        team = self.teams[own.team] if own is not None and own.team is not None else None
        said = [level for level in (self.organisation, team, own) if level is not None]
        for start in reversed(range(len(said))):
            preset = said[start].preset
            if preset is not None:
                return [PRESETS[preset], *said[start:]]
        return [PRESETS["balanced"], *said]

    def word(self, key: str | None, kind: str) -> Word:
        """What holds for requests of ``kind`` by the client ``key`` (None: without a key)."""
        levels = self.levels(key)[::-1]
        named = [level.kinds[kind] for level in levels if kind in level.kinds]
        said: list[Word] = [*named, *levels]
        act = next((word.act for word in said if word.act is not None), None)
        limited = next((w for w in said if w.threshold is not None or w.fpr is not None), Word())
        return Word(act=act, threshold=limited.threshold, fpr=limited.fpr)

    def rules(self, key: str | None, bundle: Facts) -> Rules:
        """The rules for a client under a bundle.

        Raises:
            SettingError: a budget or threshold that the bundle has none for, or kinds of harm that
                it does not read.
        """
        made = {kind: _rule(self.word(key, kind), bundle) for kind in HARMS}
        blind = [made[kind] for kind in HARMS if kind not in bundle.kinds]
        default = _strictest([made[OTHER], *blind], bundle)
        if not bundle.kinds and len(set(made.values())) > 1:
            raise SettingError(
                f"bundle {bundle.name!r} does not read kinds of harm, and the policy tells some "
                "apart; fit the bundle anew, on data that name categories"
            )
        kinds = [(k, made[k]) for k in bundle.kinds if k != OTHER and made[k] != default]
        return Rules(default, tuple(kinds))

    def allows(self, key: str | None, text: str, today: date) -> bool:
        """Whether a client's request is let through, whatever is seen in it."""
        own = self.keys.get(key) if key is not None else None
        team = own.team if own is not None else None
        for allowed in self.allow:
            everybody = not (allowed.teams or allowed.keys)
            meant = everybody or key in allowed.keys or team in allowed.teams
            if meant and today <= allowed.until and allowed.matches(text):
                return True
        return False

    @cached_property
    def acts(self) -> frozenset[str]:
        """Everything that may be done for anybody."""
        clients = [None, *self.keys]
        words = [self.word(client, kind) for client in clients for kind in HARMS]
        return frozenset(word.act for word in words if word.act is not None)


PRESETS: Mapping[str, Level] = {
    "balanced": Level(act="refuse"),
    "permissive": Level(
        act="refuse",
        fpr=0.005,
        kinds={
            name: Word(act="annotate")
            for name in ("advice", "ai_misuse", "copyright", "misinformation", "privacy")
        },
    ),
    "strict": Level(act="refuse", fpr=0.03),
}
"""``balanced``: the bundle's own thresholds, everything refused. ``permissive``: one benign request
in 200, and kinds in which a wrong answer hurts nobody at once are annotated. ``strict``: three in
100, everything refused."""


@dataclass(frozen=True)
class Facts:
    """What a policy must know of a bundle.

    Args:
        name: Its name.
        kinds: The kinds of harm that it reads.
        threshold: Of stage 1; None where the gate has none.
        budgets: Thresholds of stage 1 by false positive rate.
    """

    name: str
    kinds: tuple[str, ...] = ()
    threshold: float | None = None
    budgets: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, switch: Switch) -> Facts:
        """The facts of a switch."""
        gate = switch.gate
        staged = gate.stage1 is not None and gate.rule == "and" and not gate.always
        threshold = gate.stage1.threshold if gate.stage1 is not None and staged else None
        kinds = gate.harms.names if gate.harms is not None else ()
        calibration = switch.record.get("calibration") or {}
        return cls(name, kinds, threshold, dict(calibration.get("budgets") or {}))

    @classmethod
    def parse(cls, name: str, told: JsonObject) -> Facts:
        """Inverse of :meth:`to_dict`."""
        return cls(name, tuple(told["kinds"]), told["threshold"], told["budgets"])

    def to_dict(self) -> JsonObject:
        """Plain JSON."""
        budgets = dict(self.budgets)
        return {"kinds": list(self.kinds), "threshold": self.threshold, "budgets": budgets}

    def at(self, fpr: float) -> float:
        """The threshold above which at most ``fpr`` of benign requests score.

        Raises:
            SettingError: the bundle was not calibrated for so small a budget.
        """
        known = {float(budget): value for budget, value in self.budgets.items()}
        fitting = [budget for budget in known if budget <= fpr + 1e-12]
        if not fitting:
            have = ", ".join(self.budgets) or "none"
            raise SettingError(
                f"bundle {self.name!r} has no threshold for fpr {fpr:g} (it has: {have}); fit it "
                "anew with more benign requests, or give a threshold"
            )
        return known[max(fitting)]


def read_policy(path: Path) -> tuple[Policy, str]:
    """The policy in a file, and its id: SHA-256 of the file (first 16 hex digits).

    Raises:
        SettingError: no such file, no YAML, a name twice, or anything that is unknown or out of its
            range; all faults are told at once.
    """
    try:
        raw = path.read_bytes()
        _check_once(yaml.compose(raw, yaml.SafeLoader))
        told = yaml.safe_load(raw)
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        # YAML's reader raises the last three for dates that are none, odd keys and endless aliases
        raise SettingError(f"{path} is no policy: {error}") from error
    try:
        policy = Policy.model_validate(told)
    except ValidationError as error:
        faults = "; ".join(_fault(fault) for fault in error.errors())
        raise SettingError(f"{path} is no policy: {faults}") from error
    return policy, hashlib.sha256(raw).hexdigest()[:16]


def check_policy(policy: Policy, bundles: Iterable[Facts], engine: str) -> None:
    """Compile the policy for every client and bundle.

    Args:
        policy: To be checked.
        bundles: Everything that it will be used with.
        engine: ``transformers`` or ``vllm``.

    Raises:
        SettingError: rules that a bundle or the engine cannot honour.
    """
    check_choice("policy", "engine", engine, ("transformers", "vllm"))
    if engine == "vllm" and "careful" in policy.acts:
        raise SettingError(
            "policy: act 'careful' reads a request anew under a safety prompt, which the vLLM "
            "engine does not do; take 'refuse' or 'annotate', or serve with --engine transformers"
        )
    for bundle in bundles:
        for client in (None, *policy.keys):
            policy.rules(client, bundle)


def facts_of(bundles: Mapping[str, str]) -> dict[str, JsonObject]:
    """What a policy must know of bundles, as plain JSON by name; ``bundles``: folders by name.

    Raises:
        ArtifactError: a folder that holds no bundle.
    """
    found = {}
    for name, folder in bundles.items():
        found[name] = Facts.of(name, Switch.from_pretrained(folder)).to_dict()
    return found


def schema() -> JsonObject:
    """The JSON schema of the file, for editors."""
    found: JsonObject = Policy.model_json_schema()
    level = found["$defs"]["Level"]["properties"]["kinds"]
    level["propertyNames"] = {"enum": list(HARMS)}
    return found


def fingerprint(text: str) -> str:
    """SHA-256 of a request's text, as in the audit."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def today() -> date:
    """The day, in UTC, as which a policy's dates are read."""
    return datetime.now(UTC).date()


def _check_once(node: yaml.Node | None) -> None:
    """Refuse a name that is given twice, of which YAML would keep the last.

    Raises:
        YAMLError: there is one.
    """
    seen: set[str] = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value in seen:
            line = key.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {key.value!r} is given twice")
        seen.add(key.value)
        _check_once(value)
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        _check_once(item)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Of ``fnmatch`` without its sets of characters; linear in the text, however many ``*`` there
    are."""
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


def _rule(word: Word, bundle: Facts) -> Rule:
    assert word.act is not None  # every preset has one
    limit = word.threshold if word.fpr is None else bundle.at(word.fpr)
    if limit is not None and bundle.threshold is None:
        raise SettingError(
            f"bundle {bundle.name!r} decides without a threshold of stage 1, so a policy can give "
            "it none; leave threshold and fpr out"
        )
    return Rule(word.act, limit)


def _strictest(rules: list[Rule], bundle: Facts) -> Rule:
    """The strictest act and the lowest threshold of several rules."""
    act = min((rule.act for rule in rules), key=ACTS.index)
    limits = {bundle.threshold if rule.threshold is None else rule.threshold for rule in rules}
    known = [limit for limit in limits if limit is not None]
    same = all(rule.threshold is None for rule in rules)
    return Rule(act, None if same or not known else min(known))


def _fault(fault: ErrorDetails) -> str:
    where = ".".join(str(part) for part in fault["loc"]) or "the file"
    return f"{where}: {str(fault['msg']).removeprefix('Value error, ')}"
