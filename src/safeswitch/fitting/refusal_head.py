"""Training the refusal head with everything else frozen (SafeSwitch, arXiv 2502.01042, section on
the refusal head).

The paper tunes the whole LM head on refusals alone, prompt tokens included. Here the loss falls on
reply tokens only and most on a refusal's first ones, after which it carries itself; a KL term to
the base head on safe requests keeps the head usable there; training stops when validation stops
improving. By default the head is a low-rank difference ``up @ down`` whose rank is chosen on
validation (rank 1 first), and which moves only tokens that occur in refusals. The loss is a softmax
over the whole vocabulary, but the logits of the other tokens never change: the log of the sum of
their exponentials is kept for each position, once, and a step computes the few hundred logits that
change. The loss is exact all the same.

Letters: m reply tokens, d hidden size, V vocabulary, a tokens that the head moves, r rank. Knows
nothing of prompts or gates.
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
from safeswitch.core.types import MOST_TOKENS
from safeswitch.fitting.head_data import ReplyStates
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import FullHead, HeadActuator, LowRankHead

HEAD_KINDS: tuple[str, ...] = ("low_rank", "full")
_POSITIONS_AT_ONCE = 256
"""Reply positions whose logits over the whole vocabulary are in memory together."""


@dataclass(frozen=True)
class HeadSettings:
    """How a refusal head is trained.

    Args:
        kind: ``low_rank`` or ``full`` (the paper's).
        ranks: Ranks to try, smallest first; a larger one must beat the best so far by ``margin``.
        margin: Share by which a larger rank must lower the validation loss.
        learning_rate: Adam step size; None takes 5e-3 for ``low_rank`` and 3e-4 for ``full``.
        kl_weight: Weight of KL(base || head) on the safe replies' positions.
        epochs: Most passes over the data.
        patience: Passes without improvement before stopping.
        batch_tokens: Reply positions per step.
        opening: Tokens of a refusal that count as its opening.
        opening_weight: What each of these weighs, where a later token weighs 1.
        beta: Fraction of the difference in force afterwards, in [0, 1].
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
    opening: int = 6
    opening_weight: float = 5.0
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
        check_range("HeadSettings", "opening", self.opening, 0, MOST_TOKENS)
        check_range("HeadSettings", "opening_weight", self.opening_weight, 1.0, 1e6)
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
        loss: Validation loss, in nats per token: cross-entropy on refusals, their openings
            weighing more, plus weighted KL on safe replies.
        cross_entropy: Cross-entropy on refusals where every token weighs the same.
        kl: KL on safe replies, unweighted.
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
        return _train(_Full(base), _Parts.of(base, data, settings), settings, "full", track)
    tokens = torch.cat([data.refusals.targets, data.refusals_validation.targets]).unique()
    parts = _Parts.of(base, data, settings, tokens)
    best: HeadResult | None = None
    tried: dict[str, float] = {}
    for rank in sorted(settings.ranks):
        head = _LowRank(base, tokens, rank, settings.seed)
        result = _train(head, parts, settings, f"rank {rank}", track)
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


@dataclass(frozen=True, eq=False)
class _Positions:
    """Reply positions, with all of the loss that training does not change.

    Args:
        hidden: ``[m, d]``: inputs of the head.
        targets: ``[m]``: the next token, as its place among the tokens that the head moves.
        weights: ``[m]``: in the cross-entropy.
        raw: ``[m, a]``: the base head's raw logits of these tokens; None where the head moves all,
            whose logits are too many to keep.
        rest: ``[m]``: log of the summed exponentials of all other tokens' logits.
    """

    hidden: Tensor
    targets: Tensor
    weights: Tensor
    raw: Tensor | None
    rest: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, rows: Tensor, device: torch.device) -> _Positions:
        own = (self.hidden, self.targets, self.weights, self.raw, self.rest)
        return _Positions(*(x if x is None else x[rows].to(device) for x in own))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class _Parts:
    """The positions of :class:`HeadData` by its names."""

    base: _BaseHead
    refusals: _Positions
    refusals_validation: _Positions
    safe: _Positions
    safe_validation: _Positions

    @classmethod
    def of(
        cls, base: _BaseHead, data: HeadData, settings: HeadSettings, tokens: Tensor | None = None
    ) -> _Parts:
        """For a head that moves ``tokens`` ``[a]`` (ascending), None: all."""
        return cls(
            base, *(_positions(base, part, settings, tokens) for part in vars(data).values())
        )


def _positions(
    base: _BaseHead, states: ReplyStates, settings: HeadSettings, tokens: Tensor | None
) -> _Positions:
    opening = states.places < settings.opening
    weights = 1.0 + opening * (settings.opening_weight - 1.0)
    if tokens is None:
        rest = torch.full((len(states),), -torch.inf)
        return _Positions(states.hidden, states.targets, weights, None, rest)
    # of a safe reply the targets are not used, and may not be among the tokens
    targets = torch.searchsorted(tokens, states.targets).clamp(max=len(tokens) - 1)
    kept: list[Tensor] = []
    others: list[Tensor] = []
    for hidden in states.hidden.split(_POSITIONS_AT_ONCE):
        raw = base.raw(hidden.to(base.device))
        kept.append(raw[:, tokens].cpu())
        left = base.finish(raw).index_fill(1, tokens.to(base.device), -torch.inf)
        others.append(left.logsumexp(-1).cpu())
    return _Positions(states.hidden, targets, weights, torch.cat(kept), torch.cat(others))


class _LowRank(nn.Module):
    def __init__(self, base: _BaseHead, tokens: Tensor, rank: int, seed: int) -> None:
        super().__init__()
        self.vocab, width = base.shape
        self.tokens = tokens
        draw = torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(
            (torch.randn(rank, width, generator=draw) / width**0.5).to(base.device)
        )
        self.up = nn.Parameter(torch.zeros(len(tokens), rank, device=base.device))

    def forward(self, raw: Tensor, hidden: Tensor) -> Tensor:
        return raw + (hidden @ self.down.T) @ self.up.T

    def actuator(self, beta: float) -> HeadActuator:
        up = torch.zeros(self.vocab, self.up.shape[1])
        up[self.tokens] = self.up.detach().cpu()
        return LowRankHead(self.down.detach().cpu().clone(), up, beta)


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
    model: _LowRank | _Full, parts: _Parts, settings: HeadSettings, name: str, track: Track
) -> HeadResult:
    steps = math.ceil(len(parts.refusals) / settings.batch_tokens)
    with track(
        settings.epochs * steps, f"head, {name}, {settings.epochs} epochs at most"
    ) as advance:
        return _trained(model, parts, settings, name, advance)


def _trained(
    model: _LowRank | _Full,
    parts: _Parts,
    settings: HeadSettings,
    name: str,
    advance: Callable[[int], None],
) -> HeadResult:
    base, size = parts.base, settings.batch_tokens
    rate = settings.learning_rate or (5e-3 if isinstance(model, _LowRank) else 3e-4)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    draw = torch.Generator().manual_seed(settings.seed)
    best, best_state, waited = _Losses(math.inf, math.nan, math.nan), {}, 0
    for _ in range(settings.epochs):
        safe = _batches(parts.safe, size, draw, base.device)
        for refusal in _batches(parts.refusals, size, draw, base.device):
            other = next(safe, None)
            if other is None:
                safe = _batches(parts.safe, size, draw, base.device)
                other = next(safe)
            entropy = _cross_entropy(model, base, refusal)
            weighted = (entropy * refusal.weights).sum() / refusal.weights.sum()
            loss = weighted + settings.kl_weight * _kl(model, base, other).mean()
            if not torch.isfinite(loss):
                raise FitError(
                    f"refusal head ({name}): the loss is {loss.item()}; lower the learning rate "
                    f"({rate})"
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            advance(1)
        found = _validate(model, parts, settings)
        if found.total < best.total - 1e-4:
            best, waited = found, 0
            best_state = {n: p.detach().clone() for n, p in model.state_dict().items()}
        else:
            waited += 1
            if waited >= settings.patience:
                break
    if not best_state:
        raise FitError(f"refusal head ({name}): the validation loss was never finite")
    model.load_state_dict(best_state)
    count = sum(p.numel() for p in model.parameters())
    head = model.actuator(settings.beta)
    return HeadResult(head, best.total, best.entropy, best.kl, count, {name: best.total})


def _batches(
    positions: _Positions, size: int, draw: torch.Generator, device: torch.device
) -> Iterator[_Positions]:
    for rows in torch.randperm(len(positions), generator=draw).split(size):
        yield positions.at(rows, device)


def _log_probabilities(base: _BaseHead, raw: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities ``[m, a]`` of the tokens of ``raw`` and ``[m]`` of all others together."""
    logits = base.finish(raw)
    total = torch.logaddexp(logits.logsumexp(-1), rest)
    return logits - total[:, None], rest - total


def _raw(base: _BaseHead, positions: _Positions) -> Tensor:
    return base.raw(positions.hidden) if positions.raw is None else positions.raw


def _cross_entropy(model: nn.Module, base: _BaseHead, positions: _Positions) -> Tensor:
    """Of the next token, ``[m]``."""
    raw = model(_raw(base, positions), positions.hidden)
    found, _ = _log_probabilities(base, raw, positions.rest)
    return -found.gather(1, positions.targets[:, None])[:, 0]


def _kl(model: nn.Module, base: _BaseHead, positions: _Positions) -> Tensor:
    """KL(base || head), ``[m]``."""
    raw = _raw(base, positions)
    reference, reference_rest = _log_probabilities(base, raw, positions.rest)
    found, rest = _log_probabilities(base, model(raw, positions.hidden), positions.rest)
    moved = functional.kl_div(found, reference, log_target=True, reduction="none").sum(-1)
    if positions.raw is None:  # there are no others
        return moved
    return moved + reference_rest.exp() * (reference_rest - rest)


@dataclass(frozen=True)
class _Losses:
    """On the validation part, in nats per token; see :class:`HeadResult`."""

    total: float
    entropy: float
    kl: float


@torch.no_grad()
def _validate(model: nn.Module, parts: _Parts, settings: HeadSettings) -> _Losses:
    base, size = parts.base, settings.batch_tokens

    def over(positions: _Positions, measure: Callable[..., Tensor]) -> Tensor:
        batches = torch.arange(len(positions)).split(size)
        return torch.cat([measure(model, base, positions.at(b, base.device)) for b in batches])

    entropy = over(parts.refusals_validation, _cross_entropy).cpu()
    kl = float(over(parts.safe_validation, _kl).mean())
    weights = parts.refusals_validation.weights
    weighted = float((entropy * weights).sum() / weights.sum())
    return _Losses(weighted + settings.kl_weight * kl, float(entropy.mean()), kl)
