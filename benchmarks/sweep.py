"""Time of the batched sweep against the plain loop that trains one prober after the other.

    python benchmarks/sweep.py [--quick] [--layers 4] [--ks 11] [--width 128] [--rows 800] [--threads 1]

Both sides run in this process, in turn, on the same states with the same first weights, batch
order, dropout, epochs and stopping rule. The loop is what a reader of the paper would write: one
``nn.Module``, ``torch.optim.AdamW``, autograd. Recipe ``default`` stops early, so its probers
differ in epochs; the third row has a fixed number of them. The largest difference between the
scores of both sides is printed beside the times. CPU seconds are those of this process: on a
machine that others use, their ratio is the one to read (with one thread).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safeswitch.activations.states import Activations
from safeswitch.core.types import Position, ReadPoint
from safeswitch.probers.batched import first_weights
from safeswitch.probers.mlp import MLPProber
from safeswitch.probers.points import train_points
from safeswitch.probers.recipes import RECIPES, Recipe
from safeswitch.probers.split import balanced_weights
from safeswitch.probers.standardise import fit_standardiser

HIDDEN = 64
Rows = tuple[Activations, Tensor]


class PlainProber(nn.Module):
    """``Linear - ReLU - Linear`` as the paper's code has it, softmax inside forward under its
    recipe."""

    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        self.first = nn.Linear(width, HIDDEN)
        self.second = nn.Linear(HIDDEN, recipe.outputs)
        self.softmax = recipe.double_softmax

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        hidden = torch.relu(self.first(x))
        out = self.second(hidden if keep is None else hidden * keep)
        return torch.softmax(out, -1) if self.softmax else out[:, 0]


def plain_loss(out: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    if out.dim() == 2:
        return F.cross_entropy(out, labels.long())
    return (F.binary_cross_entropy_with_logits(out, labels, reduction="none") * weights).mean()


def train_plain(
    x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor, recipe: Recipe, seed: int
) -> Tensor:
    """Train one prober; returns its scores on ``held_x``."""
    generator = torch.Generator().manual_seed(seed)
    start = first_weights(1, x.shape[1], HIDDEN, recipe.outputs, generator)
    model = PlainProber(x.shape[1], recipe)
    with torch.no_grad():
        for layer, w, b in ((model.first, start.w1, start.b1), (model.second, start.w2, start.b2)):
            layer.weight.copy_(w[0].T)
            layer.bias.copy_(b[0, 0])
    if recipe.standardise:
        scaling = fit_standardiser(x)
        x, held_x = scaling.apply(x), scaling.apply(held_x)
    weights = balanced_weights(y > 0) if recipe.balance else torch.ones(len(y))
    held_weights = balanced_weights(held_y > 0) if recipe.balance else torch.ones(len(held_y))
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    best, lowest, age = copy.deepcopy(model.state_dict()), float("inf"), 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(x), generator=generator)
        for at in range(0, len(x), recipe.batch):
            rows = order[at : at + recipe.batch]
            keep = None
            if recipe.dropout:
                keep = (torch.rand((len(rows), HIDDEN), generator=generator) >= recipe.dropout) / (
                    1 - recipe.dropout
                )
            optimiser.zero_grad()
            plain_loss(model(x[rows], keep), y[rows], weights[rows]).backward()
            optimiser.step()
        if recipe.patience:
            with torch.no_grad():
                loss = float(plain_loss(model(held_x), held_y, held_weights))
            age += 1
            if loss < lowest:
                best, lowest, age = copy.deepcopy(model.state_dict()), loss, 0
            if age >= recipe.patience:
                break
    if recipe.patience:
        model.load_state_dict(best)
    with torch.no_grad():
        out = model(held_x)
    return out[:, 1] if out.dim() == 2 else torch.sigmoid(out)


def one_by_one(fit: Rows, held: Rows, recipe: Recipe) -> Tensor:
    """Scores ``[P, n]`` of the loop."""
    y, held_y = fit[1].float(), held[1].float()
    return torch.stack(
        [train_plain(fit[0].at(p), y, held[0].at(p), held_y, recipe, 0) for p in fit[0].points]
    )


def batched(fit: Rows, held: Rows, recipe: Recipe) -> Tensor:
    """Scores ``[P, n]`` of the batched training."""
    points = fit[0].points
    trained = train_points(*fit, points, recipe, HIDDEN, validation=held, seed=0, owner="benchmark")
    return torch.stack([MLPProber(p).take(trained, i).score(held[0]) for i, p in enumerate(points)])


def made_states(layers: int, ks: int, width: int, rows: int, seed: int) -> Rows:
    """Random states; the classes differ along 8 features, more so in deeper layers."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(rows, generator=generator) > 0.5
    states = {}
    for layer in range(layers):
        for k in range(ks):
            x = torch.randn(rows, width, generator=generator)
            x[:, :8] += torch.where(labels, 0.2, -0.2)[:, None] * (layer + 1)
            states[ReadPoint(layer, Position("pilot", k))] = x
    return Activations(states), labels


def timed(run: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
    """Wall seconds, CPU seconds of this process, result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def compare(name: str, recipe: Recipe, fit: Rows, held: Rows, rounds: int) -> None:
    """Alternate both sides ``rounds`` times and print the medians."""
    batched(fit, held, recipe.override(epochs=1))
    one_by_one(fit, held, recipe.override(epochs=1))
    rows = []
    for _ in range(rounds):
        wall, cpu, plain_scores = timed(lambda: one_by_one(fit, held, recipe))
        batched_wall, batched_cpu, batched_scores = timed(lambda: batched(fit, held, recipe))
        rows.append((wall, batched_wall, wall / batched_wall, cpu, batched_cpu, cpu / batched_cpu))
    figures = [statistics.median(column) for column in zip(*rows, strict=True)]
    apart = float((plain_scores - batched_scores).abs().max())
    print(f"{name:<16}" + "".join(f"{f:>10.2f}" for f in figures) + f"{apart:>10.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two epochs, one round")
    for name, value in (
        ("layers", 4),
        ("ks", 11),
        ("width", 128),
        ("rows", 800),
        ("rounds", 2),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--paper-epochs", type=int, default=2, help="of the paper's 20; the ratio is per epoch"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fit = made_states(args.layers, args.ks, args.width, args.rows, seed=0)
    held = made_states(args.layers, args.ks, args.width, args.rows // 4, seed=1)
    count = args.layers * args.ks
    print(
        f"{count} probers, {args.rows} rows, width {args.width}, {args.threads} thread(s), torch {torch.__version__}"
    )
    print("goal: the sweep at least 10x faster than one by one")
    heads = ("loop s", "sweep s", "ratio", "loop cpu", "sweep cpu", "cpu ratio", "apart")
    print(f"{'recipe':<16}" + "".join(f"{h:>10}" for h in heads))
    paper = RECIPES["paper"].override(epochs=args.paper_epochs)
    fixed = RECIPES["default"].override(patience=0, epochs=20)
    for name, recipe in (
        ("paper", paper),
        ("default", RECIPES["default"]),
        ("default, 20 ep.", fixed),
    ):
        compare(
            name,
            recipe.override(epochs=2) if args.quick else recipe,
            fit,
            held,
            1 if args.quick else args.rounds,
        )


if __name__ == "__main__":
    main()
