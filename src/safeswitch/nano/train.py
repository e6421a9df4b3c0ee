"""Trains the base model from nothing: batches, loss, schedule, atomic checkpoints. Knows nothing of
harm."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from safeswitch.core.artifact import write_atomic
from safeswitch.core.errors import ArtifactError
from safeswitch.nano.corpus import WARM, conversations
from safeswitch.nano.optimizer import MixedOptimizer
from safeswitch.nano.tokenizer import CONTEXT, VOCABULARY, encode


@dataclass(frozen=True)
class Recipe:
    """Every number of the training run.

    Args:
        steps: Optimiser steps.
        batch_tokens: Tokens of a batch, padding included.
        chunk: Conversations that are sorted by length together, to keep padding low.
        prompt_weight: Loss weight of tokens outside the last reply (inside: 1).
    """

    steps: int = 3000
    batch_tokens: int = 4096
    chunk: int = 2048
    prompt_weight: float = 0.03
    muon_lr: float = 0.02
    adam_lr: float = 4e-3
    warmup: int = 60
    hidden: int = 160
    layers: int = 5
    heads: int = 5
    intermediate: int = 448
    seed: int = 0

    def scale(self, step: int) -> float:
        """Learning-rate factor: linear warm-up, flat to 30 %, then linear to 2 %."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        flat = 0.3 * self.steps
        return 1.0 if step < flat else 1.0 - 0.98 * (step - flat) / max(1.0, self.steps - flat)


@dataclass(frozen=True)
class Batch:
    """Right-padded conversations: ``ids`` and ``weights`` ``[b, t]``; weights of padding are 0."""

    ids: Tensor
    weights: Tensor


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama with an untied head and seeded weights, in fp32."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        intermediate_size=recipe.intermediate,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Endless batches of conversations of like length, the same for the same seed."""
    stream = conversations(recipe.seed, WARM)
    rng = random.Random(f"nano-batches-{recipe.seed}")
    while True:
        rows = sorted(
            encode(tokenizer, list(islice(stream, recipe.chunk))), key=lambda row: len(row[0])
        )
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > recipe.batch_tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            yield _collate(group, recipe.prompt_weight)


def _collate(group: list[tuple[list[int], list[bool]]], prompt_weight: float) -> Batch:
    length = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), length, dtype=torch.long)
    weights = torch.zeros(len(group), length)
    for i, (row, own) in enumerate(group):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.where(torch.tensor(own), 1.0, prompt_weight)
    return Batch(ids, weights)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Weighted cross-entropy of the next token, a scalar, on a batch ``[b, t]``; right padding
    needs no mask under causal attention."""
    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
    each = functional.cross_entropy(
        logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (each * weights).sum() / weights.sum()


def train(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path | None = None,
    progress: bool = False,
    stop: int | None = None,
) -> tuple[LlamaForCausalLM, list[float]]:
    """Train to ``recipe.steps``; returns the model (fp32) and the loss of each step.

    ``stop`` ends the run early without a change of schedule. With ``checkpoint`` the run is saved
    there every 100 steps and taken up again when the file exists.
    """
    model = new_model(recipe, tokenizer)
    optimizer = MixedOptimizer(model, recipe.muon_lr, recipe.adam_lr)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses = _resume(checkpoint, recipe, optimizer)
    started = time.time()
    for step, batch in enumerate(islice(batches(recipe, tokenizer), stop or recipe.steps)):
        if step < len(losses):
            continue
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step(recipe.scale(step))
        losses.append(float(loss.detach()))
        if progress and step % 50 == 0:
            recent = losses[-50:]
            print(
                f"step {step} loss {sum(recent) / len(recent):.4f} {time.time() - started:.0f} s",
                flush=True,
            )
        if checkpoint is not None and (step % 100 == 99 or step == (stop or recipe.steps) - 1):
            state = {
                "recipe": asdict(recipe),
                "optimizer": optimizer.state_dict(),
                "losses": losses,
            }
            write_atomic(checkpoint, partial(torch.save, state))
    return model, losses


def _resume(path: Path, recipe: Recipe, optimizer: MixedOptimizer) -> list[float]:
    """Restore a checkpoint; returns its losses.

    Raises:
        ArtifactError: a damaged file, or one of another recipe.
    """
    try:
        state = torch.load(path, weights_only=True)
        found, losses = state["recipe"], list(state["losses"])
        if found == asdict(recipe):
            optimizer.load_state_dict(state["optimizer"])
    except (
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        EOFError,
        UnpicklingError,
    ) as error:
        raise ArtifactError(
            f"{path} is damaged: {error}; remove it, or start anew with --no-resume"
        ) from error
    if found != asdict(recipe):
        other = {k: v for k, v in found.items() if asdict(recipe).get(k) != v}
        raise ArtifactError(
            f"{path} is of another run, with {other}; give that again, or start anew with "
            "--no-resume"
        )
    return losses
