"""Frozen vocabulary shared by every folder: messages, examples, read points, decisions.

Knows nothing of torch, tokenizers or files.

Layer numbers follow ``output_hidden_states`` of transformers: 0 is the embedding, ``i`` the output
of block ``i``, and ``num_layers`` (or -1) the state *after* the final norm, which is the input of
the LM head. So the first block has number 1; ``i.attn`` and ``i.mlp`` are what its two halves *add*
to the residual stream: the attention, or the mixer of tokens in its place, and the MLP or the
experts. A norm between a half and the stream (Gemma 2 and 3, OLMo 2) is part of the half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from safeswitch.core.errors import DataError, SettingError, check_choice, check_unicode
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.pictures import Picture, read_parts

Role = Literal["system", "user", "assistant"]
Label = Literal["safe", "unsafe", ""]
Part = Literal["attn", "mlp"]
PositionKind = Literal["prompt_end", "pilot", "answer", "window", "mean", "appended", "nll"]

ROLES: tuple[str, ...] = ("system", "user", "assistant")
LABELS: tuple[str, ...] = ("safe", "unsafe")
PARTS: tuple[Part, ...] = ("attn", "mlp")
"""Halves of a block, in the order in which a model runs them."""
POSITION_KINDS: tuple[str, ...] = (
    "prompt_end",
    "pilot",
    "answer",
    "window",
    "mean",
    "appended",
    "nll",
)
REREAD: tuple[PositionKind, ...] = ("appended", "nll")
"""Kinds of position that are read in a pass of their own, behind appended tokens
(:mod:`safeswitch.activations.reread`)."""
SPANS: tuple[PositionKind, ...] = ("window", "mean")
"""Kinds of position that need the states of several prompt tokens."""
RUNNING: tuple[PositionKind, ...] = ("pilot", "answer")
"""Kinds of position in the running reply."""
MOST_TOKENS = 2**20
"""Longest index of a position: more tokens than any model is run on."""
_DIGITS = 9


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: Whose.
        content: Its text.
        images: Its images, for models that take them.
    """

    role: Role
    content: str
    images: tuple[Picture, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"message role must be one of {', '.join(ROLES)}; got {self.role!r}")
        if not isinstance(self.content, str):
            raise DataError(f"message content must be text; got {type(self.content).__name__}")
        check_unicode("message content", self.content)

    @classmethod
    def of(cls, role: Any, content: Any) -> Message:
        """A turn whose content is text, or a list of parts (see
        :func:`safeswitch.core.pictures.read_parts`)."""
        return (
            cls(role, *read_parts(content))
            if isinstance(content, list | tuple)
            else cls(role, content)
        )

    def around(self, before: str = "", after: str = "") -> Message:
        """The turn with text before and after its own; images stay where they stand in it."""
        moved = tuple(replace(picture, at=picture.at + len(before)) for picture in self.images)
        return replace(self, content=f"{before}{self.content}{after}", images=moved)

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it but white space."""
        return not (self.content.strip() or self.images)

    def to_content(self) -> str | list[dict[str, str]]:
        """As plain JSON: text, or a list of parts where there are images."""
        if not self.images:
            return self.content
        parts: list[dict[str, str]] = []
        start = 0
        for picture in sorted(self.images, key=lambda p: p.at):
            if picture.at > start:
                parts.append({"type": "text", "text": self.content[start : picture.at]})
                start = picture.at
            parts.append(picture.to_part())
        return (
            [*parts, {"type": "text", "text": self.content[start:]}]
            if start < len(self.content)
            else parts
        )


@dataclass(frozen=True)
class Example:
    """One request with what is known about it.

    Args:
        id: Unique within its data set.
        messages: The conversation; the last turn is the user's.
        label: What the request deserves (``unsafe``: should not be fulfilled), not what a model
            replied; empty when that is not known (enough for generating, not for fitting).
        category: Harm category or task name.
        source: Data set or generator; what leave-one-source-out leaves out.
        group: Examples with the same group stay on one side of every split.
        wrapper: Name of the jailbreak template around the request, empty when there is none.
        reply: A target reply (a refusal for head training, an answer for tasks).
        answers: Accepted answers of a checkable task.
        meta: Anything else, as flat text; ``contrast`` is the harm that a safe request was written
            to look like.
        prefill: Start of the reply that the model is made to go on from; the engines' replies do
            not repeat it.
        place: File and line that it was read from, for messages; no part of what the example is.
    """

    id: str
    messages: tuple[Message, ...]
    label: Label = ""
    category: str = ""
    source: str = ""
    group: str = ""
    wrapper: str = ""
    reply: str | None = None
    answers: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    prefill: str = ""
    place: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.label not in (*LABELS, ""):
            raise DataError(
                f"example {self.id!r}: label must be one of {', '.join(LABELS)}; got {self.label!r}"
            )
        if not self.messages:
            raise DataError(f"example {self.id!r}: has no messages")
        if self.messages[-1].role != "user":
            raise DataError(f"example {self.id!r}: the last message must be the user's")
        if self.messages[-1].empty:
            raise DataError(f"example {self.id!r}: the user's message is empty")
        named = ("id", "category", "source", "group", "wrapper", "reply", "prefill")
        texts = [(name, getattr(self, name) or "") for name in named]
        texts += [("answers", answer) for answer in self.answers]
        texts += [("meta", text) for pair in self.meta.items() for text in pair]
        for name, text in texts:
            check_unicode(f"example {self.id!r}: {name}", text)

    @property
    def called(self) -> str:
        """The example as messages name it: its id, and where it stands."""
        return f"{self.id!r} ({self.place})" if self.place else repr(self.id)

    @property
    def prompt(self) -> str:
        """The last user turn."""
        return self.messages[-1].content

    @property
    def unsafe(self) -> bool:
        """Whether the request should not be fulfilled.

        Raises:
            DataError: it has no label.
        """
        if not self.label:
            raise DataError(f"example {self.id!r} has no label; give {' or '.join(LABELS)}")
        return self.label == "unsafe"

    @property
    def ordinary(self) -> bool:
        """Safe, and not written to look like a harm (a look-alike names that harm in
        ``meta["contrast"]``): what thresholds are set on, for it stands for traffic.

        Raises:
            DataError: it has no label.
        """
        return not self.unsafe and self.meta.get("contrast", "") in ("", "false")


@dataclass(frozen=True)
class Tokens:
    """A prompt that goes to the model as it is, without a chat template.

    Args:
        ids: Its tokens.
        text: What they stand for, for readers of text.
    """

    ids: tuple[int, ...]
    text: str

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError("the prompt is empty; give at least one token")


Prompt = str | Sequence[Message] | Sequence[JsonMapping] | Example | Tokens


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """Turn any accepted form of a prompt into messages; a plain string is one user turn.

    A last turn of the assistant is the start of its reply, which the model continues.

    Raises:
        DataError: an empty prompt, or a turn without role and content.
    """
    if isinstance(prompt, Example):
        return (
            (*prompt.messages, Message("assistant", prompt.prefill))
            if prompt.prefill
            else prompt.messages
        )
    if isinstance(prompt, Tokens):
        return (Message("user", prompt.text),)
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(
                "the prompt is empty; give at least one character that is not white space"
            )
        return (Message("user", prompt),)
    messages: list[Message] = []
    for i, turn in enumerate(prompt):
        if isinstance(turn, Message):
            messages.append(turn)
        elif isinstance(turn, Mapping) and "role" in turn and "content" in turn:
            messages.append(Message.of(turn["role"], turn["content"]))
        else:
            raise DataError(f"turn {i} of the prompt needs 'role' and 'content'; got {turn!r}")
    if not messages:
        raise DataError("the prompt has no messages")
    if messages[-1].role == "user" and messages[-1].empty:
        raise DataError("the last user message is empty")
    return tuple(messages)


@dataclass(frozen=True, order=True)
class Position:
    """Where in a sequence a state is read.

    Args:
        kind: ``prompt_end`` is the last prompt token (its state predicts the first reply token);
            ``pilot`` the state after ``index`` reply tokens have been fed (``index`` 0 equals
            ``prompt_end``); ``answer`` the state after ``index`` tokens of the answer of a
            reasoning model have been fed, ``index`` 0 being the last token of the mark that ends
            its thinking (a reply without thinking is all answer: there it equals ``pilot``);
            ``window`` the last ``index`` prompt tokens, each on its own (0: all of them); ``mean``
            the mean of their states. Two are read in a pass of their own, after the tokens that a
            prober appends: ``appended`` is the state of the last of these, ``nll`` no state but the
            mean negative log-likelihood of the last ``index`` of them, in nats.
        index: Pilot or answer token count k, number of prompt tokens of a window or a mean, or of
            appended ones.
    """

    kind: PositionKind
    index: int = 0

    def __post_init__(self) -> None:
        check_choice("Position", "kind", self.kind, POSITION_KINDS)
        if self.kind == "prompt_end" and self.index:
            raise SettingError(f"Position: prompt_end takes no index; got {self.index}")
        if not 0 <= self.index <= MOST_TOKENS:
            raise SettingError(f"Position: index must lie in 0..{MOST_TOKENS}; got {self.index}")

    def __str__(self) -> str:
        return self.kind if self.kind == "prompt_end" else f"{self.kind}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read the form that ``str`` writes: ``prompt_end``, ``pilot:3``, ``window:16``.

        Examples:
            >>> Position.parse("pilot:3")
            Position(kind='pilot', index=3)
            >>> Position.parse("prompt_end") == Position("prompt_end")
            True

        Raises:
            SettingError: another kind, or an index outside its range.
        """
        kind, colon, index = text.partition(":")
        if colon and not (index.isascii() and index.isdecimal() and len(index) <= _DIGITS):
            raise SettingError(
                f"Position: index must be a whole number in 0..{MOST_TOKENS}; got {text!r:.80}"
            )
        return cls(kind, int(index or 0))  # type: ignore[arg-type]


PROMPT_END = Position("prompt_end")


@dataclass(frozen=True, order=True)
class Output:
    """What one half of a block adds to the residual stream.

    Args:
        block: Number of the block, the first being 1.
        part: Which half.
    """

    block: int
    part: Part

    def __post_init__(self) -> None:
        check_choice("Output", "part", self.part, PARTS)
        if self.block < 1:
            raise SettingError(f"Output: the first block has number 1; got {self}")

    def __str__(self) -> str:
        return f"{self.block}.{self.part}"


Site = int | Output
"""Where in a model a state is read: the residual stream at a layer number, or an output of a
block."""


@dataclass(frozen=True, order=True)
class ReadPoint:
    """A layer at a position, or an output of a block at a position.

    Args:
        layer: Resolved layer number (0..num_layers); see the module text for the numbering. Of an
            output, the number of its block.
        position: Where in the sequence.
        part: Which half of the block, for what it adds; empty for the residual stream.
    """

    layer: int
    position: Position = PROMPT_END
    part: Literal["", "attn", "mlp"] = ""

    def __post_init__(self) -> None:
        if self.part:
            Output(self.layer, self.part)  # refuses what cannot be
        if self.part and self.position.kind == "nll":
            raise SettingError(f"ReadPoint: nll is read of no part of a block; got {self}")

    @property
    def site(self) -> Site:
        """Where in the model."""
        return Output(self.layer, self.part) if self.part else self.layer

    def __str__(self) -> str:
        return (
            f"{self.layer}.{self.part}@{self.position}"
            if self.part
            else f"{self.layer}@{self.position}"
        )

    @classmethod
    def parse(cls, text: str) -> ReadPoint:
        """Read the form that ``str`` writes: ``4@pilot:3``, ``18.attn@prompt_end``.

        Examples:
            >>> ReadPoint.parse("4@pilot:3")
            ReadPoint(layer=4, position=Position(kind='pilot', index=3), part='')
            >>> point = ReadPoint.parse("18.attn@prompt_end")
            >>> point.site, str(point)
            (Output(block=18, part='attn'), '18.attn@prompt_end')

        Raises:
            SettingError: another form, another part, or an output of block 0.
        """
        site, _, position = text.partition("@")
        layer, dot, part = site.partition(".")
        if not (layer.isascii() and layer.isdecimal() and len(layer) <= _DIGITS):
            raise SettingError(
                "ReadPoint: expected 'layer@position' or 'block.part@position' with a whole number "
                f"in front; got {text!r:.80}"
            )
        if dot:
            check_choice("ReadPoint", f"the part in {text[:80]!r}", part[:80], PARTS)
        where = Position.parse(position or "prompt_end")
        return cls(int(layer), where, part)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Decision:
    """What the gate decided on one request, and on what grounds.

    Args:
        fired: Whether the actuator took over.
        stage: The stage that decided: ``none`` (no gate), ``always``, ``stage1``, ``stage2``,
            ``watch``, ``late``, ``error``.
        scores: Score in [0, 1] by stage name, for the stages that ran.
        thresholds: Threshold in force by stage name (``product`` under the product rule).
        rule: Gate rule in force.
        token_index: Reply tokens that had been decoded when the decision fell (0: at the prompt's
            end).
        actuator: Name of the action in force for the request; ``none`` when nothing was changed.
        latency_s: Wall seconds that reading and scoring took, shared evenly by the rows of the
            batch.
        error: Why a prober could not run, when it could not.
        category: Likeliest kind of harm (:mod:`safeswitch.core.harms`) in a request that fired;
            empty for others, and where the gate has no reader of kinds.
        categories: Probability in [0, 1] by kind, where ``category`` is known.
        severity: What the request deserves: ``refuse``, ``careful`` or ``allow``; empty where the
            gate has no reader of kinds.
        act: What a policy had done with the request (:mod:`safeswitch.switch.rules`); empty without
            one, and where nothing was flagged.
    """

    fired: bool
    stage: str
    scores: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    rule: str = "and"
    token_index: int = 0
    actuator: str = "none"
    latency_s: float = 0.0
    error: str | None = None
    category: str = ""
    categories: Mapping[str, float] = field(default_factory=dict)
    severity: str = ""
    act: str = ""

    @property
    def refuses(self) -> bool:
        """Whether the request has fired and no policy has something milder done with it."""
        return self.fired and self.act in ("", "refuse")

    def to_dict(self) -> JsonObject:
        """Plain JSON types."""
        row = asdict(self)
        for name in ("scores", "thresholds", "categories"):
            row[name] = dict(getattr(self, name))
        return row


@dataclass(frozen=True)
class Reply:
    """One generated reply.

    Args:
        text: What the user may see: never pilot text of a switched request.
        token_ids: The reply's tokens, end-of-sequence token included when it was produced; empty
            where a server does not show them.
        finish_reason: ``stop`` (end token or stop string) or ``length``.
        decision: The gate's record.
        prompt_tokens: Length of the templated prompt.
        generated: Tokens that the model generated for it, those that were thrown away among them
            (of a fixed text it generates none); None where the engine does not say, and then as
            many as the reply has.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    decision: Decision
    prompt_tokens: int
    generated: int | None = None
