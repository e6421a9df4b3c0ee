"""Builds the base model from nothing: corpus, tokenizer, training, weights and loss log
(``safeswitch nano build``)."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from safeswitch.core.lock import folder_writer
from safeswitch.nano.corpus import conversations
from safeswitch.nano.tokenizer import train_tokenizer
from safeswitch.nano.train import Recipe, train

RECIPE = Recipe()
TOKENIZER_CONVERSATIONS = 20_000


def make_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the first conversations of the corpus."""
    texts = (
        m.content for turns in islice(conversations(seed), TOKENIZER_CONVERSATIONS) for m in turns
    )
    return train_tokenizer(texts)


def first_losses(count: int = 5, seed: int = 0) -> list[float]:
    """The losses of the recipe's first steps, the same on every machine up to rounding."""
    return train(replace(RECIPE, seed=seed), make_tokenizer(seed), stop=count)[1]


def build(
    out: str | Path,
    *,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    steps: int | None = None,
) -> Path:
    """Write corpus-trained weights, tokenizer and ``losses.json`` to a folder.

    Args:
        out: Folder to write; made when missing. ``checkpoint.pt`` in it is the state of an
            unfinished run.
        seed: Seed of corpus, batches and weights.
        resume: Go on from ``checkpoint.pt``; otherwise it is removed first.
        progress: Print the loss every 50 steps.
        steps: Optimiser steps, when not the recipe's.

    Raises:
        ArtifactError: the folder holds an unfinished run of another recipe, or is being written by
            another process.
    """
    folder = Path(out)
    with folder_writer(folder):
        _build(folder, seed, resume, progress, steps)
    return folder


def _build(folder: Path, seed: int, resume: bool, progress: bool, steps: int | None) -> None:
    """:func:`build` in a folder that is ours."""
    checkpoint = folder / "checkpoint.pt"
    if not resume:
        checkpoint.unlink(missing_ok=True)
    recipe = replace(RECIPE, seed=seed, steps=steps or RECIPE.steps)
    tokenizer = make_tokenizer(seed)
    started = time.time()
    model, losses = train(recipe, tokenizer, checkpoint, progress)
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    _run_in_fp32(folder / "config.json")
    tokenizer.save_pretrained(folder)
    log = {
        "recipe": asdict(recipe),
        "seconds": round(time.time() - started),
        "losses": [round(x, 5) for x in losses],
    }
    (folder / "losses.json").write_text(json.dumps(log) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)


def _run_in_fp32(path: Path) -> None:
    """The file holds bf16 values, half the size; the model is to run in fp32 all the same."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
