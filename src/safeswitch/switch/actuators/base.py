"""Actuators: what happens to a request on which the gate has fired. Frozen specs, run by the
engines.

Four places of action: ``logits`` (a second head, switched per row and per step), ``prompt`` (the
request is edited and read anew), ``body`` (states or weights inside the model are moved) and
``text`` (a fixed reply). Only the first and the last need no second reading of the prompt. Further
actions of each kind are in ``heads.py``, ``prompts.py``, ``vectors.py`` and
``weights.py``.

Letters: n rows, d hidden size, V vocabulary, r rank. Knows nothing of gates or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from safeswitch.core.errors import SettingError, check_choice, check_range
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.registry import Registry
from safeswitch.core.strict import build, check_shapes, mapping, shown
from safeswitch.core.types import Message

MOST_STRENGTH = 1e6
"""Largest multiplier of a vector or of a difference of weights."""
Place = Literal["none", "logits", "prompt", "body", "text"]
ACTUATORS: Registry[type[Actuator]] = Registry("actuator", "safeswitch.switch.actuators")


@dataclass(frozen=True, eq=False)
class Actuator:
    """Base of all actions; says what each needs of an engine, so that no engine has to know them
    all.

    Attributes:
        kind: Names the class in files and decisions.
        place: Where it acts.
        not_in_vllm: Why vLLM cannot run it, as the rest of a sentence; None where it can.
        per_row: Whether requests of one batch may each have a strength of their own.
    """

    kind: ClassVar[str]
    place: ClassVar[Place]
    not_in_vllm: ClassVar[str | None] = "does not run in vLLM (only refusal heads do)"
    per_row: ClassVar[bool] = False
    shapes: ClassVar[Mapping[str, str]] = {}
    """Of its tensors, as :func:`safeswitch.core.strict.check_shapes` reads them."""

    @property
    def head(self) -> HeadActuator | None:
        """The action itself where it is a second head, else None."""
        return None

    @property
    def fixed_reply(self) -> str | None:
        """The text that stands in for the model's reply, None where the model replies."""
        return None

    @property
    def uniform(self) -> bool:
        """Whether it acts alike on every token of every request on which the gate fired, and on no
        other request."""
        return True

    def edit(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation as the model shall read it: as it is, but for actions whose ``place`` is
        the prompt."""
        return messages

    def fraction(self, scores: Tensor) -> Tensor | None:
        """How much of it is in force on rows that fired at ``scores`` ``[n]``: ``[n]`` in [0, 1],
        None for all of it."""
        return None

    def relieves(self, scores: Tensor) -> Tensor | None:
        """Which rows, cleared at stage-1 ``scores`` ``[n]``, it acts on the other way: ``[n]``
        bool, None for none."""
        return None

    def strength_on(self, fired: bool, given: float | None) -> float:
        """The strength in force on a request that has ``fired`` or not, for which ``given`` was
        asked (None: nothing)."""
        return 1.0 if given is None else given

    def check(self, hidden_size: int, vocab_size: int) -> None:
        """Raise :class:`SettingError` unless it fits a model of that width and vocabulary."""

    def widened(self, vocab_size: int) -> Self:
        """The action for a model to whose vocabulary an adaptation has added tokens, whose logits
        it leaves alone; the same one where it cannot be told."""
        return self

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """Plain-JSON config and tensors from which :func:`actuator_from_state` rebuilds the
        actuator."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
        return {"kind": self.kind, **{n: v for n, v in own.items() if n not in tensors}}, tensors

    @classmethod
    def rebuild(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`; ``config`` without its ``kind``.

        Raises:
            ArtifactError: a field or tensor that is unknown, missing, of another type or shape.
        """
        where = f"actuator {cls.kind!r}"
        check_shapes(where, tensors, cls.shapes)
        return build(cls, config, where, tensors)


def actuator_from_state(config: JsonMapping, tensors: Mapping[str, Tensor]) -> Actuator:
    """Rebuild an actuator.

    Raises:
        SettingError: unknown kind, or a value outside its range.
        ArtifactError: fields that do not fit the kind.
    """
    stored = dict(mapping(config, "actuator"))
    kind = stored.pop("kind", None)
    if not isinstance(kind, str):
        raise SettingError(
            f"actuator: kind must be one of {', '.join(ACTUATORS)}; got {shown(kind)}"
        )
    return ACTUATORS[kind].rebuild(stored, tensors)


@ACTUATORS.add("none")
@dataclass(frozen=True, eq=False)
class NoAction(Actuator):
    """Leave the request alone (the untouched model, or a gate that only observes)."""

    kind: ClassVar[str] = "none"
    place: ClassVar[Place] = "none"
    not_in_vllm: ClassVar[str | None] = None


@ACTUATORS.add("canned")
@dataclass(frozen=True, eq=False)
class Canned(Actuator):
    """A fixed reply in place of the model's."""

    text: str
    kind: ClassVar[str] = "canned"
    place: ClassVar[Place] = "text"

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise SettingError("Canned: text is empty")

    @property
    def fixed_reply(self) -> str:
        return self.text

    @property
    def uniform(self) -> bool:
        return False


class HeadActuator(Actuator):
    """A second LM head for the rows on which the gate fired.

    Attributes:
        reach: Reply tokens on which it acts; None for all.
    """

    place: ClassVar[Place] = "logits"
    not_in_vllm: ClassVar[str | None] = None
    reach: int | None = None

    @property
    def head(self) -> HeadActuator:
        return self

    def apply(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """New raw logits ``[n, V]`` from the base head's raw ``logits`` ``[n, V]`` and its input
        ``hidden`` ``[n, d]``."""
        raise NotImplementedError

    def addition(self, hidden: Tensor) -> Tensor | None:
        """What :meth:`apply` adds to raw logits ``[n, V]``, where that does not depend on them;
        None where it does, or where it is not told."""
        return None

    def difference(self, weight: Tensor) -> Tensor:
        """Its matrix minus the base head's ``weight`` ``[V, d]``, of the same shape.

        Raises:
            SettingError: it is no matrix.
        """
        raise SettingError(
            f"{self.kind}: this head is not a matrix, so it has no difference to the base head's"
        )

    def check(self, hidden_size: int, vocab_size: int) -> None:
        raise NotImplementedError

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same head with its tensors on ``device`` in ``dtype``, as ``apply`` wants them."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {
            n: t.to(device=device, dtype=dtype) for n, t in own.items() if isinstance(t, Tensor)
        }
        return replace(self, **moved)


@ACTUATORS.add("low_rank_head")
@dataclass(frozen=True, eq=False)
class LowRankHead(HeadActuator):
    """Refusal head as a low-rank difference: ``W + beta * up @ down``; the base head is never
    written to.

    Args:
        down: ``[r, d]``.
        up: ``[V, r]``.
        beta: Fraction of the difference that is added, in [0, 1]; 1 is the whole refusal head.
    """

    down: Tensor
    up: Tensor
    beta: float = 1.0
    kind: ClassVar[str] = "low_rank_head"
    shapes: ClassVar[Mapping[str, str]] = {"down": "r d", "up": "V r"}

    def __post_init__(self) -> None:
        check_range("LowRankHead", "beta", self.beta, 0.0, 1.0)
        if self.down.ndim != 2 or self.up.ndim != 2 or self.down.shape[0] != self.up.shape[1]:
            raise SettingError(
                f"LowRankHead: down [r, d] and up [V, r] do not fit: {tuple(self.down.shape)}, "
                f"{tuple(self.up.shape)}"
            )

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def apply(self, logits: Tensor, hidden: Tensor) -> Tensor:
        return logits + self.addition(hidden)

    def addition(self, hidden: Tensor) -> Tensor:
        return self.beta * ((hidden @ self.down.T) @ self.up.T)

    def difference(self, weight: Tensor) -> Tensor:
        return self.beta * (self.up @ self.down)

    def widened(self, vocab_size: int) -> Self:
        more = vocab_size - self.up.shape[0]
        return (
            replace(self, up=torch.cat([self.up, self.up.new_zeros(more, self.rank)]))
            if more > 0
            else self
        )

    def check(self, hidden_size: int, vocab_size: int) -> None:
        _check_width("LowRankHead", self.down.shape[1], self.up.shape[0], hidden_size, vocab_size)


@ACTUATORS.add("full_head")
@dataclass(frozen=True, eq=False)
class FullHead(HeadActuator):
    """Refusal head as a full matrix, the paper's form: ``(1 - beta) * W h + beta * (W_ref h +
    b_ref)``.

    Args:
        weight: ``[V, d]``.
        bias: ``[V]``, zeros for heads without bias.
        beta: Interpolation between base head (0) and refusal head (1).
    """

    weight: Tensor
    bias: Tensor
    beta: float = 1.0
    kind: ClassVar[str] = "full_head"
    shapes: ClassVar[Mapping[str, str]] = {"weight": "V d", "bias": "V"}

    def __post_init__(self) -> None:
        check_range("FullHead", "beta", self.beta, 0.0, 1.0)
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise SettingError(
                f"FullHead: weight [V, d] and bias [V] do not fit: {tuple(self.weight.shape)}, "
                f"{tuple(self.bias.shape)}"
            )

    def apply(self, logits: Tensor, hidden: Tensor) -> Tensor:
        refusal = hidden @ self.weight.T + self.bias
        return refusal if self.beta == 1.0 else torch.lerp(logits, refusal, self.beta)

    def difference(self, weight: Tensor) -> Tensor:
        return self.beta * (self.weight - weight)

    def check(self, hidden_size: int, vocab_size: int) -> None:
        _check_width(
            "FullHead", self.weight.shape[1], self.weight.shape[0], hidden_size, vocab_size
        )


class PromptActuator(Actuator):
    """An edit of the request, which is then read anew."""

    place: ClassVar[Place] = "prompt"

    def edit(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        raise NotImplementedError


@ACTUATORS.add("system_prompt")
@dataclass(frozen=True, eq=False)
class SystemPrompt(PromptActuator):
    """Prompt edit: put ``text`` in front as, or joined to, the system message."""

    text: str
    kind: ClassVar[str] = "system_prompt"

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise SettingError("SystemPrompt: text is empty")

    def edit(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation with the system text in front."""
        if messages and messages[0].role == "system":
            return (Message("system", f"{self.text}\n{messages[0].content}"), *messages[1:])
        return (Message("system", self.text), *messages)


class BodyActuator(Actuator):
    """States or weights inside the model are moved while it reads the prompt anew and replies.

    Attributes:
        strength: The strength on requests that are given none.
    """

    place: ClassVar[Place] = "body"
    per_row: ClassVar[bool] = True
    strength: float

    def strength_on(self, fired: bool, given: float | None) -> float:
        return self.strength if given is None else given


@ACTUATORS.add("steering")
@dataclass(frozen=True, eq=False)
class Steering(BodyActuator):
    """Add ``strength * vectors[i]`` to the output of block ``layers[i]``.

    Two-sided where ``relief`` is not 0: requests that did not fire and whose stage-1 score is below
    ``relief_below`` get that strength instead (a negative one leads away from refusal); those in
    between are left alone. Relieved requests are read anew without the gate, so that neither a
    watch nor a late reading sees their replies.

    Args:
        layers: Layer numbers 1..num_layers - 1 (outputs of blocks).
        vectors: ``[len(layers), d]``.
        strength: Multiplier, in units of the vectors' own length.
        relief: Multiplier on requests that are surely safe.
        relief_below: Score in [0, 1] below which a request is surely safe.
        where: ``all`` positions, or ``reply``: from the prompt's last token on.
    """

    layers: tuple[int, ...]
    vectors: Tensor
    strength: float = 1.0
    relief: float = 0.0
    relief_below: float = 1.0
    where: Literal["all", "reply"] = "all"
    kind: ClassVar[str] = "steering"
    shapes: ClassVar[Mapping[str, str]] = {"vectors": "l d"}

    def __post_init__(self) -> None:
        check_choice("Steering", "where", self.where, ("all", "reply"))
        check_range("Steering", "relief_below", self.relief_below, 0.0, 1.0)
        for name in ("strength", "relief"):
            check_range("Steering", name, getattr(self, name), -MOST_STRENGTH, MOST_STRENGTH)
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        if len(set(self.layers)) != len(self.layers) or min(self.layers, default=1) < 0:
            raise SettingError(
                f"Steering: layers must be 0 or more, each once; got {shown(self.layers)}"
            )
        if self.vectors.ndim != 2 or len(self.layers) != self.vectors.shape[0]:
            raise SettingError(
                f"Steering: {len(self.layers)} layers but vectors of shape "
                f"{tuple(self.vectors.shape)}"
            )

    @property
    def uniform(self) -> bool:
        return self.where == "all" and not self.relief

    def relieves(self, scores: Tensor) -> Tensor | None:
        return scores < self.relief_below if self.relief else None

    def strength_on(self, fired: bool, given: float | None) -> float:
        return super().strength_on(fired, given) if fired else self.relief


def _check_width(owner: str, d: int, vocab: int, hidden_size: int, vocab_size: int) -> None:
    if (d, vocab) != (hidden_size, vocab_size):
        raise SettingError(
            f"{owner}: made for [V={vocab}, d={d}], but the model has [V={vocab_size}, "
            f"d={hidden_size}]"
        )
