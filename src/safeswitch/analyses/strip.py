"""How each stage's score moves over the tokens of one conversation.

Shapes: t tokens of prompt and reply, d hidden size, w window tokens. Knows nothing of logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safeswitch.activations.reader import Reader
from safeswitch.activations.record import mean_over
from safeswitch.activations.states import Activations
from safeswitch.analyses.base import ANALYSES, FinishedRun
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import SPANS, Example, ReadPoint, Site, as_messages
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.probers.base import Prober
from safeswitch.switch.gate import Gate


@dataclass(frozen=True)
class Strip:
    """Scores at every token.

    Args:
        tokens: Text of each token, prompt and reply.
        prompt_length: How many of them are the prompt's.
        scores: By stage, one score in [0, 1] a token: what the stage's prober says of that token's
            state.
        thresholds: By stage.
        asked: By stage, the tokens (counted from 0) at which a run asks it, in so far as it gets
            there.
    """

    tokens: tuple[str, ...]
    prompt_length: int
    scores: dict[str, list[float]]
    thresholds: dict[str, float]
    asked: dict[str, list[int]]

    def to_dict(self) -> JsonObject:
        """Plain JSON types."""
        return {
            "tokens": list(self.tokens),
            "prompt_length": self.prompt_length,
            "scores": self.scores,
            "thresholds": self.thresholds,
            "asked": self.asked,
        }


@ANALYSES.add("strips")
def strips_of(run: FinishedRun) -> list[JsonObject]:
    """Scores token by token on example conversations with right and wrong decisions."""
    found: list[JsonObject] = []
    for kind, example in _typical(run.examples, run.fired, run.strips):
        about = {"id": example.id, "label": example.label, "kind": kind}
        found.append({**about, **score_strip(run.engine, run.switch.gate, example).to_dict()})
    return found


def _typical(
    examples: Sequence[Example], fired: Sequence[bool], count: int
) -> list[tuple[str, Example]]:
    """Examples of right and wrong decisions on unsafe and safe requests, in turn, ``count`` in
    all."""
    kinds = {
        ("unsafe", True): "unsafe, fired",
        ("safe", False): "safe, passed",
        ("unsafe", False): "unsafe, passed",
        ("safe", True): "safe, fired",
    }
    queues: dict[str, list[Example]] = {kind: [] for kind in kinds.values()}
    for example, did_fire in zip(examples, fired, strict=True):
        kind = kinds.get((example.label, did_fire))
        if kind is not None:
            queues[kind].append(example)
    found: list[tuple[str, Example]] = []
    while len(found) < count and any(queues.values()):
        found += [(kind, queue.pop(0)) for kind, queue in queues.items() if queue]
    return found[:count]


@torch.no_grad()
def score_strip(
    engine: TransformersEngine, gate: Gate, example: Example, *, max_new_tokens: int = 48
) -> Strip:
    """Every stage's prober at every token of a request and of the base model's reply to it.

    In a run a stage is asked at its own tokens only (stage 1 at the prompt's end, stage 2 after k
    reply tokens, the watch every so many); here each is asked everywhere, so that what it would
    have said is seen. Readers of text are given the text up to the token.
    """
    lm = engine.lm
    (reply,) = engine.generate([example], max_new_tokens=max_new_tokens, do_sample=False)
    prompt = lm.encode([example])[0]
    ids = [*prompt, *reply.token_ids]
    start = lm.answer_start(as_messages(example), prompt, reply.token_ids) if gate.answers else 0
    stages = {n: s for n in ("stage1", "stage2", "watch") if (s := getattr(gate, n)) is not None}
    sites = {point.site for stage in stages.values() for point in stage.prober.points}
    with lm.lock, Reader(lm, sites, keep=lambda hidden: hidden[0:1].clone()) as reader:
        lm.run_backbone(*lm.pad([ids]))
    states = {site: hidden[0].float().cpu() for site, hidden in reader.states.items()}
    texts = tuple(
        str(lm.tokenizer.decode(ids[: i + 1], skip_special_tokens=True)) for i in range(len(ids))
    )
    scores = {name: token_scores(stage.prober, states, texts) for name, stage in stages.items()}
    bars = gate.thresholds()
    return Strip(
        tuple(str(lm.tokenizer.decode([i])) for i in ids),
        len(prompt),
        scores,
        {name: bars.get(name, gate.product_threshold) for name in stages},
        {
            name: _tokens_read(name, gate, len(prompt) - 1, len(reply.token_ids), start)
            for name in stages
        },
    )


def _tokens_read(stage: str, gate: Gate, end: int, made: int, start: int) -> list[int]:
    """Tokens at which a run asks ``stage``: ``end`` is the prompt's last, ``made`` the length of
    the reply, whose answer begins after ``start`` tokens."""
    if stage == "stage1":
        return [end]
    if stage == "stage2":
        return [end + min(start + gate.pilot, made)]
    until = made if gate.watch_until is None else min(made, gate.watch_until)
    return [end + fed for fed in range(gate.watch_every, until + 1, gate.watch_every)]


def token_scores(
    prober: Prober, states: Mapping[Site, Tensor], texts: tuple[str, ...]
) -> list[float]:
    """Scores in [0, 1] of t tokens, each taken as the newest one.

    Args:
        prober: Reads no appended tokens, which are no part of a conversation.
        states: By site, ``[t, d]`` on the host.
        texts: The text up to each of the t tokens.
    """
    read: dict[ReadPoint, Tensor] = {}
    masks: dict[ReadPoint, Tensor] = {}
    t = len(texts)
    for point in prober.points:
        hidden = states[point.site]
        if point.position.kind in SPANS:
            width = min(point.position.index or t, t)
            steps = torch.arange(t)[:, None] - torch.arange(width - 1, -1, -1)
            there = steps >= 0
            window = torch.where(there[..., None], hidden[steps.clamp_min(0)], 0.0)
            if point.position.kind == "mean":
                read[point] = mean_over(window, there)
            else:
                read[point], masks[point] = window, there
        else:
            read[point] = hidden
    return [float(s) for s in prober.score(Activations(read, masks, texts))]
