"""Training the refusal head with everything else frozen (SafeSwitch, arXiv 2502.01042, section on
the refusal head).

The paper tunes the whole LM head on refusals alone, prompt tokens included. Here the loss falls on
reply tokens only, a KL term to the base head on safe requests keeps the head usable there, training
stops when validation stops improving, and by default the head is a low-rank difference ``up @
down`` whose rank is chosen on validation (rank 1 first).

Letters: m reply tokens, d hidden size, V vocabulary, r rank. Knows nothing of prompts or gates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from safeswitch.core.errors import FitError, ModelError, SettingError, check_choice, check_range
from safeswitch.core.track import Track, untracked
from safeswitch.fitting.head_data import ReplyStates
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import FullHead, HeadActuator, LowRankHead

HEAD_KINDS: tuple[str, ...] = ("low_rank", "full")


@dataclass(frozen=True)
class HeadSettings:
    """How a refusal head is trained.

    Args:
        kind: ``low_rank`` or ``full`` (the paper's).
        ranks: Ranks to try, smallest first; a larger one must beat the best so far by ``margin``.
        margin: Share by which a larger rank must lower the validation loss.
        learning_rate: Adam step size; None takes 1e-2 for ``low_rank`` and 3e-4 for ``full``.
        kl_weight: Weight of KL(base || head) on the safe replies' positions.
        epochs: Most passes over the data.
        patience: Passes without improvement before stopping.
        batch_tokens: Reply positions per step.
        beta: Share of the difference in force afterwards, in [0, 1].
        seed: Of initial values and of the order of batches.
    """

    kind: Literal["low_rank", "full"] = "low_rank"
    ranks: tuple[int, ...] = (1, 2, 4)
    margin: float = 0.05
    learning_rate: float | None = None
    kl_weight: float = 1.0
    epochs: int = 40
    patience: int = 4
    batch_tokens: int = 512
    beta: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("HeadSettings", "kind", self.kind, HEAD_KINDS)
        if not self.ranks or min(self.ranks) < 1:
            raise SettingError(
                f"HeadSettings: ranks must be whole numbers of 1 or more; got {self.ranks}"
            )
        check_range("HeadSettings", "beta", self.beta, 0.0, 1.0)
        check_range("HeadSettings", "margin", self.margin, 0.0, 1.0)
        check_range("HeadSettings", "kl_weight", self.kl_weight, 0.0, 1e6)
        if self.learning_rate is not None:
            check_range("HeadSettings", "learning_rate", self.learning_rate, 1e-8, 10.0)
        if self.epochs < 1 or self.patience < 1 or self.batch_tokens < 1:
            raise SettingError("HeadSettings: epochs, patience and batch_tokens must be 1 or more")


@dataclass(frozen=True, eq=False)
class HeadData:
    """Training and validation states of refusals (unsafe requests) and of ordinary replies (safe
    requests)."""

    refusals: ReplyStates
    refusals_validation: ReplyStates
    safe: ReplyStates
    safe_validation: ReplyStates


@dataclass(frozen=True, eq=False)
class HeadResult:
    """A trained head and how it came about.

    Args:
        head: The actuator.
        loss: Validation loss: cross-entropy on refusals plus weighted KL on safe replies, in nats
            per token.
        cross_entropy: Its first part.
        kl: Its second part, unweighted.
        trained_parameters: Numbers that were trained.
        tried: Validation loss by candidate (``rank 1``, ``full``).
    """

    head: HeadActuator
    loss: float
    cross_entropy: float
    kl: float
    trained_parameters: int
    tried: dict[str, float]


def train_refusal_head(
    lm: LanguageModel,
    data: HeadData,
    settings: HeadSettings | None = None,
    *,
    track: Track = untracked,
) -> HeadResult:
    """Train the head that ``settings`` describe; the model and its head are not touched.

    ``track`` is told of the steps of each candidate, of which there are fewer where validation
    stops improving.

    Raises:
        FitError: the loss is not finite.
        ModelError: what the model does before or after its head is not known here.
    """
    settings = settings or HeadSettings()
    base = _BaseHead(lm)
    data = _as_head_inputs(lm, data)
    if settings.kind == "full":
        return _train(_Full(base), base, data, settings, "full", track)
    best: HeadResult | None = None
    tried: dict[str, float] = {}
    for rank in sorted(settings.ranks):
        result = _train(
            _LowRank(base, rank, settings.seed), base, data, settings, f"rank {rank}", track
        )
        tried |= result.tried
        if best is None or result.loss < best.loss * (1 - settings.margin):
            best = result
        else:
            break
    assert best is not None
    return replace(best, tried=tried)


class _BaseHead:
    """The frozen head: raw logits, and what the model does to them afterwards (soft cap, scale)."""

    def __init__(self, lm: LanguageModel) -> None:
        self.head, self.device, self.weight_dtype = lm.parts.head, lm.head_device, lm.head_dtype
        self.shape = (lm.vocab_size, lm.hidden_size)
        self.finish = _finish(lm)

    def raw(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            return self.head(hidden.to(self.weight_dtype)).float()  # type: ignore[no-any-return]


def _as_head_inputs(lm: LanguageModel, data: HeadData) -> HeadData:
    """The recorded final-norm states times what the model multiplies them by before its head."""
    scale = lm.traits.head_scale
    if scale is None:
        raise ModelError(
            f"refusal head: {lm.model_id} does more than scale between its final norm and its LM "
            "head"
        )
    if scale == 1.0:
        return data
    return HeadData(
        *(replace(states, hidden=scale * states.hidden) for states in vars(data).values())
    )


def _finish(lm: LanguageModel) -> Callable[[Tensor], Tensor]:
    """What the model does to its head's output, compared on a few tokens with its own logits.

    Models do not agree on what ``logits_scaling`` means: divided by after the head (Granite),
    multiplied by after it, or divided by before it (MiniCPM3), which leaves nothing for afterwards.

    Raises:
        ModelError: none of these gives the model's logits.
    """
    config = lm.model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    times, more = (
        float(getattr(config, n, None) or 1.0) for n in ("logit_scale", "lm_head_multiplier")
    )
    ambiguous = float(getattr(config, "logits_scaling", None) or 1.0)
    raw, logits = _few_logits(lm)
    tolerance = (
        1e-4 if lm.model.dtype in (torch.float32, torch.float64) else 3e-2
    ) * logits.abs().max()
    for scale in (times * more / ambiguous, times * more * ambiguous, times * more):
        finish = partial(_finished, scale, cap)
        if bool((finish(raw) - logits).abs().max() <= tolerance):
            return finish
    raise ModelError(
        f"refusal head: {lm.model_id} does something unknown to its head's output; no head can be "
        "trained for it"
    )


def _finished(scale: float, cap: float | None, raw: Tensor) -> Tensor:
    logits = raw * scale
    return torch.tanh(logits / cap) * cap if cap else logits


@torch.no_grad()
def _few_logits(lm: LanguageModel) -> tuple[Tensor, Tensor]:
    """The head's output and the model's logits ``[V]`` after a few tokens."""
    seen: list[Tensor] = []
    ids = (torch.arange(4) + 3).remainder(lm.vocab_size)[None].to(lm.device)
    with lm.lock:
        handle = lm.parts.head.register_forward_hook(
            lambda module, args, output: seen.append(output[0, -1].float().clone())
        )
        try:
            logits = lm.model(input_ids=ids, use_cache=False).logits[0, -1].float()
        finally:
            handle.remove()
    return seen[-1], logits.to(seen[-1].device)


class _LowRank(nn.Module):
    def __init__(self, base: _BaseHead, rank: int, seed: int) -> None:
        super().__init__()
        vocab, width = base.shape
        draw = torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(
            (torch.randn(rank, width, generator=draw) / width**0.5).to(base.device)
        )
        self.up = nn.Parameter(torch.zeros(vocab, rank, device=base.device))

    def forward(self, raw: Tensor, hidden: Tensor) -> Tensor:
        return raw + (hidden @ self.down.T) @ self.up.T

    def actuator(self, beta: float) -> HeadActuator:
        return LowRankHead(self.down.detach().cpu().clone(), self.up.detach().cpu().clone(), beta)


class _Full(nn.Module):
    def __init__(self, base: _BaseHead) -> None:
        super().__init__()
        width = base.shape[1]
        zero, eye = torch.zeros(1, width, device=base.device), torch.eye(width, device=base.device)
        bias = base.raw(zero)[0]
        self.weight = nn.Parameter((base.raw(eye) - bias).T.contiguous())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, raw: Tensor, hidden: Tensor) -> Tensor:
        return hidden @ self.weight.T + self.bias

    def actuator(self, beta: float) -> HeadActuator:
        return FullHead(self.weight.detach().cpu().clone(), self.bias.detach().cpu().clone(), beta)


def _train(
    model: _LowRank | _Full,
    base: _BaseHead,
    data: HeadData,
    settings: HeadSettings,
    name: str,
    track: Track,
) -> HeadResult:
    steps = math.ceil(len(data.refusals) / settings.batch_tokens)
    with track(
        settings.epochs * steps, f"head, {name}, {settings.epochs} epochs at most"
    ) as advance:
        return _trained(model, base, data, settings, name, advance)


def _trained(
    model: _LowRank | _Full,
    base: _BaseHead,
    data: HeadData,
    settings: HeadSettings,
    name: str,
    advance: Callable[[int], None],
) -> HeadResult:
    rate = settings.learning_rate or (1e-2 if isinstance(model, _LowRank) else 3e-4)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    draw = torch.Generator().manual_seed(settings.seed)
    best, best_state, waited = float("inf"), {}, 0
    parts = (float("nan"), float("nan"))
    for _ in range(settings.epochs):
        safe = _batches(data.safe, settings.batch_tokens, draw)
        for refusal in _batches(data.refusals, settings.batch_tokens, draw):
            other = next(safe, None)
            if other is None:
                safe = _batches(data.safe, settings.batch_tokens, draw)
                other = next(safe)
            loss = _cross_entropy(model, base, *refusal) + settings.kl_weight * _kl(
                model, base, other[0]
            )
            if not torch.isfinite(loss):
                raise FitError(
                    f"refusal head ({name}): the loss is {loss.item()}; lower the learning rate "
                    f"({rate})"
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            advance(1)
        entropy, divergence = _validate(model, base, data, settings.batch_tokens)
        value = entropy + settings.kl_weight * divergence
        if value < best - 1e-4:
            best, waited, parts = value, 0, (entropy, divergence)
            best_state = {n: p.detach().clone() for n, p in model.state_dict().items()}
        else:
            waited += 1
            if waited >= settings.patience:
                break
    if not best_state:
        raise FitError(f"refusal head ({name}): the validation loss was never finite")
    model.load_state_dict(best_state)
    count = sum(p.numel() for p in model.parameters())
    return HeadResult(model.actuator(settings.beta), best, *parts, count, {name: best})


def _batches(
    states: ReplyStates, size: int, draw: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.randperm(len(states), generator=draw).split(size):
        yield states.hidden[rows], states.targets[rows]


def _cross_entropy(model: nn.Module, base: _BaseHead, hidden: Tensor, targets: Tensor) -> Tensor:
    hidden, targets = hidden.to(base.device), targets.to(base.device)
    return functional.cross_entropy(base.finish(model(base.raw(hidden), hidden)), targets)


def _kl(model: nn.Module, base: _BaseHead, hidden: Tensor) -> Tensor:
    """KL(base || head), mean over positions."""
    hidden = hidden.to(base.device)
    raw = base.raw(hidden)
    reference = functional.log_softmax(base.finish(raw), -1)
    found = functional.log_softmax(base.finish(model(raw, hidden)), -1)
    return functional.kl_div(found, reference, log_target=True, reduction="batchmean")


@torch.no_grad()
def _validate(model: nn.Module, base: _BaseHead, data: HeadData, size: int) -> tuple[float, float]:
    """Mean cross-entropy on refusals and KL on safe replies of the validation part."""
    entropy = divergence = 0.0
    for rows in torch.arange(len(data.refusals_validation)).split(size):
        batch = data.refusals_validation.hidden[rows], data.refusals_validation.targets[rows]
        entropy += float(_cross_entropy(model, base, *batch)) * len(rows)
    for rows in torch.arange(len(data.safe_validation)).split(size):
        divergence += float(_kl(model, base, data.safe_validation.hidden[rows])) * len(rows)
    return entropy / len(data.refusals_validation), divergence / len(data.safe_validation)
