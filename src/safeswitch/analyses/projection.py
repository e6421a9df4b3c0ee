"""States in two dimensions, before the reply and within it, untouched and switched (SafeSwitch,
arXiv 2502.01042, its PCA figures).

Shapes: n requests, d hidden size.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.decomposition import PCA

from safeswitch.activations.record import prompt_sequences, record
from safeswitch.analyses.base import ANALYSES, FinishedRun
from safeswitch.core.errors import SafeSwitchError, check_choice
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Example, Position, ReadPoint
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.switch.switch import Switch

HOW: tuple[str, ...] = ("pca", "umap")
MOMENTS: tuple[str, ...] = ("prompt end", "reply, untouched", "reply, switched")


def has_umap() -> bool:
    """Whether the package umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


@ANALYSES.add("projection")
def projection_of(run: FinishedRun) -> JsonObject:
    """Activations in two dimensions, at the deepest layer that the gate reads."""
    deepest = max(run.switch.gate.layers)
    return projection(
        run.engine, run.switch, run.examples, layer=deepest, how=run.how, seed=run.seed
    )


def projection(
    engine: TransformersEngine,
    switch: Switch,
    examples: Sequence[Example],
    *,
    layer: int,
    token: int = 8,
    how: str = "pca",
    seed: int = 0,
) -> JsonObject:
    """Each request's state at the prompt's end, and after ``token`` reply tokens of the untouched
    and of the switched run.

    The plane is fitted on all states together, so that the three moments can be compared.

    Args:
        engine: The model.
        switch: The switch of the switched run.
        examples: Labelled requests.
        layer: Layer to read.
        token: Reply tokens fed.
        how: ``pca`` or ``umap`` (needs umap-learn; its axes have no meaning, and distances between
            groups little).
        seed: Of UMAP.

    Returns:
        ``how``, ``layer``, ``token``, ``explained`` (fraction of the variance on each axis, PCA
        only) and ``points``: one a request and moment, with ``id``, ``label``, ``moment``,
        ``fired``, ``x`` and ``y``.

    Raises:
        SafeSwitchError: UMAP is asked for and not installed.
    """
    check_choice("projection", "how", how, HOW)
    if how == "umap" and not has_umap():
        raise SafeSwitchError('UMAP needs umap-learn: pip install "safeswitch[umap]"')
    lm = engine.lm
    prompts, lengths, _ = prompt_sequences(lm, examples)
    end, later = ReadPoint(lm.layer(layer)), ReadPoint(lm.layer(layer), Position("pilot", token))
    states = [record(lm, prompts, lengths, [end], dtype=torch.float32).at(end)]
    fired = [False] * len(examples)
    for guard in (None, switch):
        replies = engine.generate(examples, guard, max_new_tokens=token, do_sample=False)
        fired = [r.decision.fired for r in replies]
        rows = [[*row, *reply.token_ids] for row, reply in zip(prompts, replies, strict=True)]
        states.append(record(lm, rows, lengths, [later], dtype=torch.float32).at(later))
    flat, explained = _flatten(torch.cat(states).numpy().astype(np.float64), how, seed)
    points: list[JsonObject] = []
    for moment, places in zip(MOMENTS, np.split(flat, len(MOMENTS)), strict=True):
        points += _points(examples, fired, moment, places)
    return {
        "how": how,
        "layer": end.layer,
        "token": token,
        "explained": explained,
        "points": points,
    }


def _points(
    examples: Sequence[Example], fired: Sequence[bool], moment: str, places: np.ndarray
) -> list[JsonObject]:
    """Where n requests lie at one moment, ``places`` ``[n, 2]``."""
    found: list[JsonObject] = []
    for example, flag, (x, y) in zip(examples, fired, places, strict=True):
        named = {"id": example.id, "label": example.label, "moment": moment, "fired": flag}
        found.append({**named, "x": float(x), "y": float(y)})
    return found


def _flatten(states: np.ndarray, how: str, seed: int) -> tuple[np.ndarray, list[float] | None]:
    """``[n, 2]``, and the fraction of variance that each axis explains."""
    if how == "umap":
        umap = importlib.import_module("umap")
        return np.asarray(
            umap.UMAP(n_components=2, random_state=seed, n_jobs=1).fit_transform(states)
        ), None
    model = PCA(n_components=2, svd_solver="full")
    return np.asarray(model.fit_transform(states)), [
        float(x) for x in model.explained_variance_ratio_
    ]
