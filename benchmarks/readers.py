"""How well do readers of hidden states find unsafe requests in data sets that they never saw?

    python benchmarks/readers.py extract --model FOLDER --data FOLDER --out STATES [--add FILE ...] [--cap 400]
    python benchmarks/readers.py embed --embedder FOLDER --out STATES
    python benchmarks/readers.py table --out STATES [--budget 0.02] [--json FILE] [--only NAME ...]

``extract`` reads every ``*.jsonl`` file of the data folder (each file is one set) and the files of
``--add`` (fitted on, never tested), runs the model once over each request, and keeps float16 states
by request and layer: the last prompt token's, the mean over the last user turn's tokens, and the
last token's attention and MLP outputs. It goes on where it was stopped. ``embed`` adds sentence
embeddings of the same texts.

``table`` leaves one set out at a time: fit on the others without their near-duplicates of its rows,
threshold at ``--budget`` on benign rows of the others that are kept out of the fit. Said of each
reader: AUROC over all sets (each the same weight) and on ``xstest``, the mean share caught over the
unsafe sets, the mean and the worst share of false triggers over the benign ones, and the share
caught where the threshold is set afterwards so that the mean share of false triggers is 1 or 2 %
(what a perfect calibration would give). No row of any set goes into what is written but figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from safeswitch.activations.reader import Reader
from safeswitch.activations.states import Activations
from safeswitch.core.types import PARTS, Example, Message, Output, ReadPoint
from safeswitch.data.readers import read_examples
from safeswitch.data.splits import STARTER
from safeswitch.data.text import normalise
from safeswitch.models.batching import length_batches
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.added import OutputsProber, StepsProber
from safeswitch.probers.base import Prober
from safeswitch.probers.calibrate import conformal_threshold
from safeswitch.probers.mlp import MLPProber
from safeswitch.probers.split import source_weights

Array = NDArray[Any]
Fit = Callable[["Rows", Array, int], Array]
"""Rows, weights ``[n, c]`` of c fits (0: not fitted on) and a seed to scores ``[n, c]`` of all
rows."""
SHARD = 256
CALIBRATION = 0.3
"""Share of the benign rows that only the threshold sees."""
STEPS = 50
"""Most iterations of a logistic regression; more change no figure by a point."""
KINDS = ("last", "mean", "attention", "mlp")


# -- extraction
# ---------------------------------------------------------------------------------------------------------


def digest(text: str) -> int:
    """A number that depends on the text alone."""
    return int(hashlib.sha1(text.encode()).hexdigest()[:12], 16)


def choose(examples: Sequence[Example], cap: int) -> list[Example]:
    """At most ``cap`` examples, dealt out in turn over label, category and language, in an order
    that is drawn once."""
    piles: dict[tuple[str, str, str], list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: digest(e.id)):
        piles[example.label, example.category, example.meta.get("lang", "")].append(example)
    dealt: list[tuple[int, int, Example]] = []
    for key, pile in piles.items():
        dealt += [(place, digest(str(key)), example) for place, example in enumerate(pile)]
    return [example for *_, example in sorted(dealt, key=lambda d: d[:2])[:cap]]


@dataclass
class Frame:
    """What the chat template puts around a user's only turn: token counts in front of and behind
    it."""

    before: int
    after: int

    @classmethod
    def of(cls, lm: LanguageModel) -> Frame:
        one, other = lm.encode(["Hello there", "9 x?"])
        pairs = list(zip(one, other, strict=False))
        back = list(zip(one[::-1], other[::-1], strict=False))
        return cls(_equal(pairs), _equal(back))


def _equal(pairs: Sequence[tuple[int, int]]) -> int:
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


class Extractor:
    """One forward pass over a batch, of which only what is asked for leaves each layer.

    Args:
        lm: A model whose blocks' outputs can be read (:mod:`safeswitch.models.outputs`).
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.frame = lm, Frame.of(lm)
        self._layers = range(lm.num_layers + 1)
        self._outputs = {part: [Output(b, part) for b in self._layers[1:]] for part in PARTS}

    def run(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> dict[str, Tensor]:
        """States by kind, ``[b, layers, d]``, of left-padded rows whose user turns begin at
        ``starts``."""
        ids, mask = self.lm.pad(rows)
        width = ids.shape[1]
        columns = torch.arange(width)[None]
        first = torch.tensor(
            [width - len(row) + start for row, start in zip(rows, starts, strict=True)]
        )
        turn = (columns >= first[:, None]) & (columns < width - self.frame.after)
        share = (turn / turn.sum(1, keepdim=True).clamp_min(1)).float()

        def keep(hidden: Tensor) -> Tensor:
            mean = torch.einsum("bt,btd->bd", share.to(hidden), hidden)
            return torch.stack((hidden[:, -1], mean), 1)

        outputs = [output for part in PARTS for output in self._outputs[part]]
        with (
            torch.no_grad(),
            Reader(self.lm, self._layers, keep) as reader,
            Reader(self.lm, outputs) as halves,
        ):
            self.lm.run_backbone(ids, mask)
        stacked = torch.stack([reader.states[layer] for layer in self._layers], 2)
        result = {"last": stacked[:, 0], "mean": stacked[:, 1]}
        for kind, part in zip(("attention", "mlp"), PARTS, strict=True):
            result[kind] = torch.stack([halves.states[output] for output in self._outputs[part]], 1)
        return result


def turn_start(lm: LanguageModel, example: Example, row: Sequence[int], frame: Frame) -> int:
    """Where the last user turn begins in ``row``: behind what comes in front of it when it is
    replaced."""
    if len(example.messages) == 1:
        return frame.before
    others = [(*example.messages[:-1], Message("user", text)) for text in ("Hello there", "9 x?")]
    one, other = lm.encode(others)
    return min(_equal(list(zip(one, other, strict=False))), len(row) - frame.after - 1)


def to_extract(data: Path, added: Sequence[Path], cap: int) -> list[tuple[str, Example]]:
    """Set name and example; the names of added files begin with ``+``. Every set's first rows come
    first."""
    found: list[tuple[int, str, Example]] = []
    for path in sorted(data.glob("*.jsonl")):
        chosen = choose(read_examples(path), cap)
        found += [(place, path.stem, example) for place, example in enumerate(chosen)]
    for path in added:
        chosen = choose(read_examples(path), 10**9)
        found += [
            (place, f"+{path.stem.lstrip('+')}", example) for place, example in enumerate(chosen)
        ]
    return [
        (name, example)
        for _, name, example in sorted(found, key=lambda f: (f[0] // 64, f[1], f[0]))
    ]


def save(value: Any, path: Path) -> None:
    """Write a file whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def extract(args: argparse.Namespace) -> None:
    """Write the shards that are not there yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    lm = LanguageModel.load(args.model, dtype=torch.float32)
    extractor = Extractor(lm)
    done = {
        key for path in args.out.glob("shard-*.pt") for key in torch.load(path, mmap=True)["keys"]
    }
    rows = [(f"{name}/{e.id}", name, e) for name, e in to_extract(args.data, args.add, args.cap)]
    rows = [row for row in rows if row[0] not in done]
    print(f"{len(rows)} requests to run, {len(done)} there already", flush=True)
    for at in range(0, len(rows), SHARD):
        began, part = time.perf_counter(), rows[at : at + SHARD]
        tokens = extract_shard(
            extractor, part, args.out / f"shard-{len(done) + at:06d}.pt", args.batch_tokens
        )
        rate = tokens / (time.perf_counter() - began)
        print(f"{at + len(part)} of {len(rows)}, {rate:.0f} tokens/s", flush=True)


def extract_shard(
    extractor: Extractor, part: Sequence[tuple[str, str, Example]], path: Path, batch_tokens: int
) -> int:
    """Run a shard's requests and write it; returns its tokens."""
    lm = extractor.lm
    examples = [example for *_, example in part]
    ids = lm.encode(examples)
    starts = [turn_start(lm, e, row, extractor.frame) for e, row in zip(examples, ids, strict=True)]
    states: dict[str, Tensor] = {}
    lengths = [len(row) for row in ids]
    for batch in length_batches(
        lengths, lm.traits, pass_tokens=lm.pass_tokens, batch_tokens=batch_tokens
    ):
        for kind, found in extractor.run(
            [ids[i] for i in batch], [starts[i] for i in batch]
        ).items():
            if kind not in states:
                states[kind] = torch.zeros(len(part), *found.shape[1:], dtype=torch.float16)
            states[kind][torch.tensor(batch)] = found.half().cpu()
    told = [
        {
            "set": name,
            "unsafe": e.unsafe,
            "text": lm.prompt_text(row),
            "original": e.meta.get("reference", ""),
        }
        for (_, name, e), row in zip(part, ids, strict=True)
    ]
    save({"keys": [key for key, *_ in part], "rows": told, "states": states}, path)
    return sum(map(len, ids))


def embed(args: argparse.Namespace) -> None:
    """Write mean-pooled sentence embeddings of every extracted text that has none yet."""
    path = args.out / "embeddings.pt"
    known: dict[str, Tensor] = torch.load(path) if path.exists() else {}
    texts = sorted(
        {row["text"] for shard in shards(args.out) for row in shard["rows"]} - set(known), key=len
    )
    tokenizer = AutoTokenizer.from_pretrained(args.embedder)
    model = AutoModel.from_pretrained(args.embedder).eval()
    for at in range(0, len(texts), 32):
        part = texts[at : at + 32]
        fed = tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=256)
        with torch.no_grad():
            hidden = model(**fed).last_hidden_state
        real = fed["attention_mask"][:, :, None].float()
        known |= dict(zip(part, ((hidden * real).sum(1) / real.sum(1)).unbind(), strict=True))
    save(known, path)
    print(f"{len(texts)} texts embedded, {len(known)} in all")


# -- what is fitted on
# --------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """n extracted requests.

    Args:
        names: Set of each; sets that begin with ``+`` are fitted on and never left out.
        unsafe: bool ``[n]``.
        texts: Normalised.
        originals: Normalised text of which a row is a translation, or empty.
        states: Kind to ``[n, layers, d]`` float16.
        embeddings: ``[n, e]``, or None.
    """

    names: Array
    unsafe: Array
    texts: list[str]
    originals: list[str]
    states: Mapping[str, Tensor]
    embeddings: Tensor | None

    @property
    def sets(self) -> list[str]:
        return [name for name in sorted(set(self.names.tolist())) if not name.startswith("+")]

    @property
    def added(self) -> Array:
        return np.char.startswith(self.names.astype(str), "+")

    def select(self, kept: Array) -> Rows:
        """The rows where ``kept`` (bool ``[n]``) is true."""
        places = np.flatnonzero(kept)
        where = torch.as_tensor(places)
        return Rows(
            self.names[places],
            self.unsafe[places],
            [self.texts[i] for i in places],
            [self.originals[i] for i in places],
            {kind: found[where] for kind, found in self.states.items()},
            None if self.embeddings is None else self.embeddings[where],
        )

    def part(self, kind: str, layers: Sequence[int]) -> list[Tensor]:
        return [self.states[kind][:, layer].float() for layer in layers]

    def steps(self, layers: Sequence[int]) -> list[Tensor]:
        """What block ``i + 1`` added to the last token's state, for each ``i`` of ``layers``."""
        last = self.states["last"]
        return [last[:, layer + 1].float() - last[:, layer].float() for layer in layers]


def first_rows(rows: Rows, cap: int) -> Array:
    """bool ``[n]``: the first ``cap`` rows of every set that is left out in turn, and all added
    rows."""
    kept = rows.added.copy()
    for name in rows.sets:
        kept[np.flatnonzero(rows.names == name)[:cap]] = True
    return kept


def shards(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("shard-*.pt")):
        yield torch.load(path, mmap=True)


def load(folder: Path) -> Rows:
    """Everything that ``extract`` and ``embed`` have left in ``folder``."""
    found = list(shards(folder))
    if not found:
        raise SystemExit(f"{folder} holds no shards; run extract first")
    told = [row for shard in found for row in shard["rows"]]
    path = folder / "embeddings.pt"
    embedded = torch.load(path) if path.exists() else {}
    texts = [row["text"] for row in told]
    return Rows(
        names=np.array([row["set"] for row in told]),
        unsafe=np.array([row["unsafe"] for row in told]),
        texts=[normalise(text) for text in texts],
        originals=[normalise(row["original"]) if row["original"] else "" for row in told],
        states={kind: torch.cat([shard["states"][kind] for shard in found]) for kind in KINDS},
        embeddings=torch.stack([embedded[t] for t in texts])
        if set(texts) <= set(embedded)
        else None,
    )


def near_duplicates(rows: Rows) -> Array:
    """bool ``[n, n]``: rows of different sets that say nearly the same.

    Two texts are near when they share 60 % of their character 5-grams (Jaccard), when 90 % of those
    of the shorter one (15 or more) stand in the longer, when they share half of the shorter one's
    word 4-grams (4 or more), or when one is the other's translation.
    """
    grams = [
        CountVectorizer(
            analyzer=kind, token_pattern=r"\S+", ngram_range=(n, n), binary=True, dtype=np.float32
        )
        for kind, n in (("char", 5), ("word", 4))
    ]
    chars, words = (one.fit_transform(rows.texts) for one in grams)
    char_sizes, word_sizes = (np.asarray(m.sum(1)).ravel() for m in (chars, words))
    blocks = []
    for at in range(0, len(rows.texts), 500):
        here = slice(at, at + 500)
        shared = (chars[here] @ chars.T).toarray()
        either = char_sizes[here, None] + char_sizes[None] - shared
        least = np.minimum(char_sizes[here, None], char_sizes[None])
        near = (shared >= 0.6 * np.maximum(either, 1)) | ((shared >= 0.9 * least) & (least >= 15))
        shared_words = (words[here] @ words.T).toarray()
        least_words = np.minimum(word_sizes[here, None], word_sizes[None])
        near |= (shared_words >= 0.5 * least_words) & (least_words >= 4)
        blocks.append(near)
    found = np.concatenate(blocks)
    where = defaultdict(list)
    for i, text in enumerate(rows.texts):
        where[text].append(i)
    for i, original in enumerate(rows.originals):
        for j in where[original] if original else ():
            found[i, j] = found[j, i] = True
    return np.asarray(found & (rows.names[:, None] != rows.names[None]))


def sample_weights(rows: Rows, used: Array) -> Array:
    """Weights ``[n]``, 0 outside ``used``, that add up to 1: the product's, added files being the
    starter set."""
    weights = np.zeros(len(used))
    sources = [f"{STARTER}/{name}" if name.startswith("+") else name for name in rows.names[used]]
    found = source_weights(torch.as_tensor(rows.unsafe[used]), sources).numpy()
    weights[used] = found / found.sum()
    return weights


def logistic(
    features: Tensor, unsafe: Array, weights: Array, l2: float, *, scaled: bool = True
) -> Array:
    """Log-odds ``[n, c]`` of all rows after c logistic regressions with L2, solved together by
    L-BFGS.

    Each column centres and scales the features on its own fit rows.

    Args:
        features: ``[n, d]`` float32.
        unsafe: bool ``[n]``.
        weights: ``[n, c]``, 0 where a row is not fitted on; each column adds up to 1.
        l2: Strength of the penalty, against a mean loss; where features are scaled, their squares
            add up to 1 on average.
        scaled: Whether features are scaled.
    """
    fitted = torch.as_tensor(weights > 0).float()
    counts = fitted.sum(0)
    centre = features.T @ fitted / counts
    spread = (
        (features.square().T @ fitted / counts - centre.square())
        .clamp_min(1e-8)
        .sqrt()
        .clamp_min(1e-4)
    )
    spread = spread * features.shape[1] ** 0.5 if scaled else torch.ones_like(spread)
    w = torch.as_tensor(weights).float()
    y = torch.as_tensor(unsafe).float()[:, None]
    theta = torch.zeros(features.shape[1], weights.shape[1], requires_grad=True)
    offset = torch.zeros(weights.shape[1], requires_grad=True)

    def logits() -> Tensor:
        scaled = theta / spread
        return features @ scaled - (centre * scaled).sum(0) + offset

    solver = torch.optim.LBFGS(
        [theta, offset],
        max_iter=STEPS,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
    )

    def step() -> Tensor:
        solver.zero_grad()
        found = logits()
        loss = (
            w * (nn.functional.softplus(found) - y * found)
        ).sum() + 0.5 * l2 * theta.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(step)
    with torch.no_grad():
        return np.asarray(logits().numpy())


# -- readers
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How scores come about; a slow one is not fitted once for each pair of sets."""

    run: Fit
    slow: bool = False


def of_blocks(blocks: Callable[[Rows], list[Tensor]], l2: float) -> Fit:
    """A logistic regression on several blocks of features together."""

    def fit(rows: Rows, weights: Array, _seed: int) -> Array:
        return logistic(torch.cat(blocks(rows), 1), rows.unsafe, weights, l2)

    return fit


def of_added(blocks: Callable[[Rows], list[Tensor]], l2: float) -> Fit:
    """A logistic regression on the added rows alone: every column holds the same scores, 0 where
    none are added."""

    def fit(rows: Rows, weights: Array, _seed: int) -> Array:
        if not rows.added.any():
            return np.zeros(weights.shape, dtype=np.float32)
        alone = sample_weights(rows, rows.added)[:, None]
        scores = logistic(torch.cat(blocks(rows), 1), rows.unsafe, alone, l2)
        return np.repeat(scores, weights.shape[1], 1)

    return fit


def paper(rows: Rows, weights: Array, seed: int) -> Array:
    """A perceptron on the last token's state of the last layer, trained as the paper's code
    does."""
    point = ReadPoint(rows.states["last"].shape[1] - 1)
    states = Activations({point: rows.states["last"][:, point.layer].float()})
    columns = []
    for column in weights.T:
        chosen = torch.as_tensor(np.flatnonzero(column))
        prober = MLPProber(point, recipe="paper")
        prober.fit(states.select(chosen), torch.as_tensor(rows.unsafe)[chosen], seed=seed)
        columns.append(prober.score(states).numpy())
    return np.stack(columns, 1)


def fitted(make: Callable[..., Prober]) -> Fit:
    """What ``--readers steps`` and ``--readers outputs`` fit, on the same blocks as above."""

    def fit(rows: Rows, weights: Array, seed: int) -> Array:
        prober = make(blocks=[layer + 1 for layer in upper(rows)])
        column = {"": "last", "attn": "attention", "mlp": "mlp"}
        states: dict[ReadPoint, Tensor] = {}
        for point in prober.points:
            place = point.layer - 1 if point.part else point.layer
            states[point] = rows.states[column[point.part]][:, place].float()
        activations = Activations(states, sources=tuple(rows.names.tolist()))
        scores = []
        for used in weights.T:
            chosen = torch.as_tensor(np.flatnonzero(used))
            prober.fit(activations.select(chosen), torch.as_tensor(rows.unsafe)[chosen], seed=seed)
            scores.append(torch.logit(prober.score(activations).double(), eps=1e-9).numpy())
        return np.stack(scores, 1)

    return fit


def ngrams(rows: Rows, weights: Array, _seed: int) -> Array:
    """Hashed words and word pairs."""
    counts = HashingVectorizer(ngram_range=(1, 2), n_features=2**12, dtype=np.float32).transform(
        rows.texts
    )
    return logistic(torch.as_tensor(counts.toarray()), rows.unsafe, weights, 3e-4, scaled=False)


def both(one: Fit, other: Fit, share: float) -> Fit:
    """The log-odds of one reader, and ``share`` of another's added."""

    def fit(rows: Rows, weights: Array, seed: int) -> Array:
        return np.asarray(one(rows, weights, seed) + share * other(rows, weights, seed))

    return fit


def embeddings(rows: Rows) -> list[Tensor]:
    if rows.embeddings is None:
        raise SystemExit("there are texts without an embedding; run embed first")
    return [rows.embeddings]


def depth(rows: Rows, share: float) -> int:
    """The layer at this share of the model's depth."""
    return round(share * (rows.states["last"].shape[1] - 1))


def upper(rows: Rows) -> list[int]:
    """Every second block of the upper two thirds, the last one left out: its output is not that of
    the final norm."""
    return list(range(depth(rows, 1 / 3), rows.states["mlp"].shape[1] - 1, 2))


def spread_layers(rows: Rows) -> list[int]:
    return [depth(rows, share) for share in (1 / 3, 0.6, 0.8)]


def modules(rows: Rows) -> list[Tensor]:
    """Attention and MLP outputs at the last token."""
    return rows.part("attention", upper(rows)) + rows.part("mlp", upper(rows))


_embedded, _modules = of_blocks(embeddings, 2e-5), of_blocks(modules, 5e-6)
_modules_added = of_added(modules, 5e-5)
_modules_twice = both(_modules, _modules_added, 2.0)

READERS: Mapping[str, Reading] = {
    "word n-grams": Reading(ngrams),
    "sentence embedding": Reading(_embedded),
    "paper (last token, last layer, MLP)": Reading(paper, slow=True),
    "last token, one layer": Reading(
        of_blocks(lambda rows: rows.part("last", [depth(rows, 0.6)]), 5e-5)
    ),
    "last token and mean, two layers": Reading(
        of_blocks(
            lambda r: r.part("last", spread_layers(r)[1:]) + r.part("mean", spread_layers(r)[1:]),
            2e-5,
        )
    ),
    "last token, upper layers": Reading(
        of_blocks(lambda rows: rows.part("last", upper(rows)), 5e-6)
    ),
    "steps of upper blocks": Reading(of_blocks(lambda rows: rows.steps(upper(rows)), 5e-6)),
    "steps as fitted by --readers steps": Reading(fitted(StepsProber), slow=True),
    "attention and MLP outputs": Reading(_modules),
    "outputs as fitted by --readers outputs": Reading(fitted(OutputsProber), slow=True),
    "attention and MLP outputs, token means": Reading(
        of_blocks(lambda rows: modules(rows) + rows.part("mean", spread_layers(rows)), 5e-6)
    ),
    "attention and MLP outputs, added rows alone": Reading(_modules_added),
    "attention and MLP outputs, added rows twice": Reading(_modules_twice),
    "attention and MLP outputs, embedding's score added": Reading(both(_modules, _embedded, 0.6)),
    "attention and MLP outputs, added rows twice, embedding's score added": Reading(
        both(_modules_twice, _embedded, 1.0)
    ),
}


# -- judging
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Which rows each fit may see.

    Args:
        sets: Names of the left-out sets, one a fit in ``by_rows`` and in ``left_out``.
        by_rows: Weights ``[n, c]``; a share of the benign rows of the others is kept out for the
            threshold.
        held: bool ``[n, c]``, those rows.
        left_out: Weights ``[n, c]``; all rows of the others are fitted on.
        pairs: The left-out set and a second, benign one, whose rows are kept out for the threshold
            of the first.
        two_out: Weights ``[n, len(pairs)]``.
        near: bool ``[n, n]``, near-duplicates across sets.
    """

    sets: list[str]
    by_rows: Array
    held: Array
    left_out: Array
    pairs: list[tuple[str, str]]
    two_out: Array
    near: Array

    @classmethod
    def of(cls, rows: Rows, near: Array, seed: int) -> Plan:
        drawn = np.array(
            [digest(f"{seed} {text}") % 1000 < 1000 * CALIBRATION for text in rows.texts]
        )
        drawn &= ~rows.unsafe & ~rows.added
        allowed = {
            name: (rows.names != name) & ~near[:, rows.names == name].any(1) for name in rows.sets
        }
        benign = [name for name in rows.sets if (~rows.unsafe & (rows.names == name)).any()]
        pairs = [(name, other) for name in rows.sets for other in benign if other != name]
        return cls(
            rows.sets,
            np.stack([sample_weights(rows, here & ~drawn) for here in allowed.values()], 1),
            np.stack([here & drawn for here in allowed.values()], 1),
            np.stack([sample_weights(rows, here) for here in allowed.values()], 1),
            pairs,
            np.stack([sample_weights(rows, allowed[a] & allowed[b]) for a, b in pairs], 1),
            near,
        )

    def unseen(self, rows: Rows, pair: tuple[str, str]) -> Array:
        """The benign rows of a pair's second set that neither of its fits has met."""
        name, other = pair
        near = self.near[:, rows.names == name].any(1)
        return np.asarray((rows.names == other) & ~rows.unsafe & ~near)


@dataclass(frozen=True)
class Fired:
    """Mean share caught, mean and worst share of false triggers, in [0, 1], and both by set."""

    caught: float
    triggered: float
    worst: float
    worst_set: str
    by_set: dict[str, dict[str, float]]

    @classmethod
    def of(cls, rows: Rows, fired: Array) -> Fired:
        caught, triggered = shares(rows, fired, True), shares(rows, fired, False)
        worst = max(triggered, key=lambda name: triggered[name])
        by_set = {"caught": caught, "triggered": triggered}
        return cls(mean(caught), mean(triggered), triggered[worst], worst, by_set)


@dataclass(frozen=True)
class Figures:
    """What ``table`` says of one reader with one seed; ``by_sets`` is None where the reader is too
    slow for it."""

    auroc: float
    xstest: float
    caught_at_1: float
    caught_at_2: float
    by_rows: Fired
    by_sets: Fired | None


def shares(rows: Rows, fired: Array, unsafe: bool) -> dict[str, float]:
    """Share of fired rows by set, for the rows of one label."""
    found = {}
    for name in rows.sets:
        here = (rows.names == name) & (rows.unsafe == unsafe)
        if here.any():
            found[name] = float(fired[here].mean())
    return found


def mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


def lowest(thresholds: Array, fits: Callable[[float], bool]) -> float:
    """The smallest of the sorted ``thresholds`` that ``fits``, where all above it do; the last one
    if none does."""
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if fits(float(thresholds[middle])):
            high = middle
        else:
            low = middle + 1
    return float(thresholds[low])


def caught_at(rows: Rows, scores: Array, share: float) -> float:
    """Mean share caught at the lowest threshold that keeps the mean share of false triggers at
    ``share`` or less."""
    tried = np.sort(scores[~rows.unsafe & ~rows.added])
    threshold = lowest(tried, lambda t: mean(shares(rows, scores > t, False)) <= share)
    return mean(shares(rows, scores > threshold, True))


def set_threshold(benign: Sequence[Array], budget: float) -> float:
    """The lowest threshold at which the mean share over sets that fires is ``budget`` or less.

    Args:
        benign: Scores of each set's benign rows, from fits that have met neither the set nor what
            is tested.
        budget: Mean share.
    """
    tried = np.sort(np.concatenate(list(benign)))
    return lowest(tried, lambda t: float(np.mean([(part > t).mean() for part in benign])) <= budget)


def own(rows: Rows, values: Array, sets: Sequence[str]) -> Array:
    """Of values ``[n, c]``, each row's from the fit that leaves its set out; 0 for added rows."""
    result = np.zeros(len(rows.names), dtype=values.dtype)
    for j, name in enumerate(sets):
        here = rows.names == name
        result[here] = values[here, j]
    return result


def by_rows(rows: Rows, plan: Plan, scores: Array, budget: float) -> Fired:
    """Each threshold from benign rows of the sets that were fitted on."""
    kept = [torch.as_tensor(scores[plan.held[:, j], j]) for j in range(len(plan.sets))]
    thresholds = np.array([conformal_threshold(benign, budget).value for benign in kept])
    return Fired.of(rows, own(rows, scores > thresholds, plan.sets))


def by_sets(rows: Rows, plan: Plan, scores: Array, two_out: Array, budget: float) -> Fired:
    """Each threshold from benign sets that were not fitted on."""
    thresholds = []
    for name in plan.sets:
        places = [j for j, pair in enumerate(plan.pairs) if pair[0] == name]
        benign = [two_out[plan.unseen(rows, plan.pairs[j]), j] for j in places]
        thresholds.append(set_threshold([part for part in benign if len(part)], budget))
    return Fired.of(rows, own(rows, scores > np.array(thresholds), plan.sets))


def judge(rows: Rows, plan: Plan, fit: Reading, budget: float, seed: int) -> Figures:
    """Fit a reader as often as the plan wants, and measure it."""
    count = len(plan.sets)
    parts = [plan.by_rows] if fit.slow else [plan.by_rows, plan.left_out, plan.two_out]
    scores = fit.run(rows, np.concatenate(parts, 1), seed)
    first = scores[:, :count]
    best = first if fit.slow else scores[:, count : 2 * count]
    said = own(rows, best, plan.sets)
    tested = ~rows.added
    weights = np.zeros(len(rows.names))
    for name in rows.sets:
        for label in (True, False):
            here = (rows.names == name) & (rows.unsafe == label)
            weights[here] = 1 / max(1, here.sum())
    contrast = rows.names == "xstest"
    return Figures(
        auroc=float(
            roc_auc_score(rows.unsafe[tested], said[tested], sample_weight=weights[tested])
        ),
        xstest=float(roc_auc_score(rows.unsafe[contrast], said[contrast]))
        if contrast.any()
        else float("nan"),
        caught_at_1=caught_at(rows, said, 0.01),
        caught_at_2=caught_at(rows, said, 0.02),
        by_rows=by_rows(rows, plan, first, budget),
        by_sets=None if fit.slow else by_sets(rows, plan, best, scores[:, 2 * count :], budget),
    )


HEAD = """| reader | AUROC | XSTest | caught at a true 1 % / 2 % | rows held out: caught / false / worst | sets held out |
|---|---|---|---|---|---|"""


def line(name: str, figures: Sequence[Figures]) -> str:
    """One line of the table: means over the seeds."""

    def over(pick: Callable[[Figures], float]) -> float:
        return float(np.mean([pick(one) for one in figures]))

    def fired(found: Sequence[Fired | None]) -> str:
        known = [one for one in found if one is not None]
        if not known:
            return "–"
        shown = [
            np.mean([getattr(one, key) for one in known])
            for key in ("caught", "triggered", "worst")
        ]
        return f"{shown[0]:.1%} / {shown[1]:.1%} / {shown[2]:.1%} {known[0].worst_set}"

    return (
        f"| {name} | {over(lambda f: f.auroc):.3f} | {over(lambda f: f.xstest):.3f} "
        f"| {over(lambda f: f.caught_at_1):.1%} / {over(lambda f: f.caught_at_2):.1%} "
        f"| {fired([f.by_rows for f in figures])} | {fired([f.by_sets for f in figures])} |"
    )


def table(args: argparse.Namespace) -> None:
    """Fit and judge every reader; print the table, and write it as JSON where asked."""
    rows = load(args.out)
    if args.without_added:
        rows = rows.select(~rows.added)
    if args.cap is not None:
        rows = rows.select(first_rows(rows, args.cap))
    near = near_duplicates(rows)
    print(
        f"{len(rows.names)} requests, {int(rows.added.sum())} of them added; {len(rows.sets)} sets\n\n{HEAD}"
    )
    result: dict[str, Any] = {}
    for name, fit in READERS.items():
        if args.only and name not in args.only:
            continue
        found = []
        for seed in range(args.seeds):
            found.append(judge(rows, Plan.of(rows, near, seed), fit, args.budget, seed))
        print(line(name, found), flush=True)
        result[name] = [asdict(one) for one in found]
        if args.json:
            args.json.write_text(
                json.dumps({"budget": args.budget, "readers": result}, indent=1) + "\n"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("extract")
    one.add_argument("--model", required=True, help="model folder")
    one.add_argument("--data", type=Path, required=True, help="folder of *.jsonl files")
    one.add_argument(
        "--add", type=Path, nargs="*", default=[], help="files that are fitted on and never tested"
    )
    one.add_argument("--cap", type=int, default=400, help="most rows of a set")
    one.add_argument("--batch-tokens", type=int, default=2048)
    one.set_defaults(run=extract)
    two = commands.add_parser("embed")
    two.add_argument("--embedder", required=True, help="folder of a sentence-embedding model")
    two.set_defaults(run=embed)
    three = commands.add_parser("table")
    three.add_argument("--budget", type=float, default=0.02)
    three.add_argument("--seeds", type=int, default=3)
    three.add_argument("--json", type=Path)
    three.add_argument("--only", nargs="*", help="names of readers")
    three.add_argument("--cap", type=int, help="most rows of a set that is left out in turn")
    three.add_argument("--without-added", action="store_true", help="fit without the added files")
    three.set_defaults(run=table)
    for command in (one, two, three):
        command.add_argument("--out", type=Path, required=True, help="folder of the states")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
