"""Analyses: projections against scikit-learn on recorded states, strips against the engine's own
decisions, tables by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from safeswitch.activations.record import prompt_sequences, record
from safeswitch.analyses import projection as project
from safeswitch.analyses.quality import prober_quality
from safeswitch.analyses.run import analyse
from safeswitch.analyses.strip import score_strip
from safeswitch.bench.bench import BenchSettings, run_bench
from safeswitch.bench.candidates import check_methods, prepare
from safeswitch.bench.gate_tables import error_table
from safeswitch.bench.log import LoggedRows, RunLog
from safeswitch.bench.tables import style_table
from safeswitch.core.errors import DataError, FingerprintError, SafeSwitchError
from safeswitch.core.types import Example, Message, Position, ReadPoint
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.bench import nano_fitting, nano_settings
from safeswitch.nano.suites import load_suite
from safeswitch.probers.added import MeansProber, OutputsProber
from safeswitch.probers.base import Prober
from safeswitch.probers.text import NgramProber
from safeswitch.probers.window import WindowProber
from safeswitch.statistics.intervals import clustered
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch
from tests.tiny import tiny_lm


@cache
def engine() -> TransformersEngine:
    return TransformersEngine.load(weights_path(), batch_size=64)


@cache
def switch() -> Switch:
    return Switch.from_pretrained(switch_path())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two methods on three suites."""
    out = tmp_path_factory.mktemp("run")
    fitting, told = nano_fitting(nano_settings(), own=switch())
    check_methods(("base", "safeswitch"))
    suites = ("nano_plain_unsafe", "nano_jailbroken", "nano_lookalike")
    run_bench(
        engine(),
        BenchSettings("own", suites, limit=30, fit=told),
        lambda log: prepare(engine(), ("base", "safeswitch"), fitting, log),
        out,
        after=(),
    )
    return out


def test_the_plane_is_that_of_a_pca_over_all_three_moments() -> None:
    asked = [*load_suite("plain_unsafe", 6), *load_suite("lookalike", 6)]
    found = project.projection(engine(), switch(), asked, layer=4, token=3)
    lm = engine().lm
    prompts, lengths, _ = prompt_sequences(lm, asked)
    states = [record(lm, prompts, lengths, [ReadPoint(4)]).at(ReadPoint(4))]
    for guard in (None, switch()):
        replies = engine().generate(asked, guard, max_new_tokens=3, do_sample=False)
        rows = [[*p, *r.token_ids] for p, r in zip(prompts, replies, strict=True)]
        point = ReadPoint(4, Position("pilot", 3))
        states.append(record(lm, rows, lengths, [point]).at(point))
    model = PCA(2, svd_solver="full").fit(torch.cat(states).double().numpy())
    flat = np.array([[p["x"], p["y"]] for p in found["points"]])
    assert np.allclose(
        np.abs(flat), np.abs(model.transform(torch.cat(states).double().numpy())), atol=1e-3
    )
    assert found["explained"] == pytest.approx(model.explained_variance_ratio_.tolist(), abs=1e-4)
    assert [p["moment"] for p in found["points"]] == [m for m in project.MOMENTS for _ in asked]


@pytest.mark.skipif(project.has_umap(), reason="umap-learn is installed")
def test_umap_says_how_it_is_installed_where_it_is_not() -> None:
    with pytest.raises(SafeSwitchError, match=r"pip install .safeswitch\[umap\]"):
        project.projection(engine(), switch(), [], layer=1, how="umap")


@pytest.mark.skipif(
    not project.has_umap(), reason="umap-learn is not installed (pip install 'safeswitch[umap]')"
)
@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
def test_umap_keeps_neighbours_together_and_draws_the_same_plane_for_a_seed() -> None:
    rng = np.random.default_rng(0)
    states = np.concatenate([rng.normal(centre, 1.0, (40, 16)) for centre in (-4.0, 4.0)])
    flat, explained = project._flatten(states, "umap", 0)
    again, _ = project._flatten(states, "umap", 0)
    assert (flat.shape, explained) == ((80, 2), None)
    assert np.array_equal(flat, again)
    far = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + 1e9 * np.eye(80)
    assert np.mean((far.argmin(1) < 40) == (np.arange(80) < 40)) == 1.0


def test_a_strip_holds_what_the_gate_saw_in_its_run() -> None:
    for example in (*load_suite("jailbroken", 2), *load_suite("lookalike", 2)):
        strip = score_strip(engine(), switch().gate, example, max_new_tokens=16)
        (reply,) = engine().generate([example], switch(), max_new_tokens=16, do_sample=False)
        seen = reply.decision.scores
        end = strip.prompt_length - 1
        assert strip.scores["stage1"][end] == pytest.approx(seen["stage1"], abs=1e-5)
        if "stage2" in seen:
            assert strip.scores["stage2"][end + switch().gate.pilot] == pytest.approx(
                seen["stage2"], abs=1e-5
            )
        assert strip.thresholds == switch().gate.thresholds()
        assert all(len(row) == len(strip.tokens) for row in strip.scores.values())
        assert len(strip.tokens) == reply.prompt_tokens + len(
            engine().generate([example], max_new_tokens=16)[0].token_ids
        )


def test_windows_and_texts_are_read_up_to_each_token() -> None:
    lm, point = tiny_lm(), ReadPoint(2, Position("window", 4))
    asked = [
        Example(str(i), (Message("user", "bad plan" if i % 2 else "good day"),)) for i in range(12)
    ]
    sequences, lengths, texts = prompt_sequences(lm, asked)
    activations = record(lm, sequences, lengths, [point], texts=texts)
    labels = torch.arange(12) % 2 == 1
    window, words = (
        WindowProber(point).fit(activations, labels),
        NgramProber().fit(activations, labels),
    )
    strip = score_strip(
        TransformersEngine(lm), Gate(Stage(window, 0.5)), asked[1], max_new_tokens=2
    )
    assert strip.scores["stage1"][strip.prompt_length - 1] == pytest.approx(
        float(window.score(activations)[1]), abs=1e-5
    )
    told = score_strip(TransformersEngine(lm), Gate(Stage(words, 0.5)), asked[1], max_new_tokens=2)
    read = [
        str(lm.tokenizer.decode(sequences[1][: i + 1], skip_special_tokens=True))
        for i in range(lengths[1])
    ]
    expected = words.score(replace(activations, states={}, masks={}, texts=tuple(read)))
    assert told.scores["stage1"][: lengths[1]] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    "prober",
    [OutputsProber(blocks=(1, 3)), MeansProber(blocks=(2,), tokens=4)],
    ids=["outputs", "means"],
)
def test_a_strip_reads_outputs_of_blocks_and_means_of_tokens_too(prober: Prober) -> None:
    lm = tiny_lm()
    asked = [
        Example(str(i), (Message("user", "bad plan" if i % 2 else "good day"),)) for i in range(12)
    ]
    activations = record(lm, *prompt_sequences(lm, asked)[:2], prober.points)
    prober.fit(activations, torch.arange(12) % 2 == 1)
    strip = score_strip(
        TransformersEngine(lm), Gate(Stage(prober, 0.5)), asked[1], max_new_tokens=2
    )
    end = strip.prompt_length - 1
    assert strip.scores["stage1"][end] == pytest.approx(
        float(prober.score(activations)[1]), abs=1e-5
    )


def test_quality_is_told_for_every_layer_and_pilot_token_with_honest_halves() -> None:
    asked = [*load_suite("plain_unsafe", 30), *load_suite("lookalike", 30)]
    rows = prober_quality(engine(), asked, [None] * 60, pilots=(0, 2))
    assert [(r["layer"], r["pilot"]) for r in rows] == [
        (layer, k) for layer in range(6) for k in (0, 2)
    ]
    assert {r["told"] for r in rows} == {"unsafe"}
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows)
    assert 20 <= rows[0]["n"] <= 40
    by = {(r["layer"], r["pilot"]): r["value"] for r in rows}
    assert by[4, 0] > 0.9 > by[0, 0]
    with pytest.raises(DataError, match="safe and unsafe"):
        prober_quality(engine(), asked[:30], [None] * 30, pilots=(0,))


def test_errors_and_styles_are_counted_as_by_hand(run: Path) -> None:
    log = RunLog.open(run)
    rows = [r for b in log.benchmarks for r in log.rows("safeswitch", b)]
    errors = error_table(LoggedRows(log))
    assert {row["method"] for row in errors} == {"safeswitch"}
    for row in errors:
        label = "unsafe" if row["metric"] == "missed" else "safe"
        own = [
            r for r in rows if r.example.category == row["category"] and r.example.label == label
        ]
        wrong = [r.decision["fired"] == (label == "safe") for r in own]
        bounds = clustered(wrong, [r.example.group for r in own])
        assert (row["n"], row["value"]) == (len(own), sum(wrong) / len(own))
        assert (row["low"], row["high"]) == (bounds.low, bounds.high)
    assert sum(r["n"] for r in errors if r["metric"] == "missed") == 60
    styles = {(row["method"], row["metric"]): row for row in style_table(LoggedRows(log))}
    refusals = [r for r in rows if r.example.label == "unsafe" and r.judgements["nano"].refused]
    words = [len(str(r.reply).split()) for r in refusals]
    assert styles["safeswitch", "words"]["value"] == pytest.approx(np.mean(words))
    assert styles["safeswitch", "fewer than 20 words"]["value"] == sum(n < 20 for n in words) / len(
        words
    )
    assert styles["safeswitch", "explained"]["n"] == len(refusals)


def test_a_run_is_analysed_with_its_own_model_and_gate(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeswitch.analyses import quality as module

    asked: list[Any] = []
    monkeypatch.setattr(module, "prober_quality", lambda *a, **k: asked.append((a, k)) or [])
    told = analyse(engine(), run, strips=3, limit=50)
    assert json.loads((run / "analyses.json").read_text()) == told
    assert told["requests"] == 50
    assert [s["kind"] for s in told["strips"]][:2] == ["unsafe, fired", "safe, passed"]
    (_, examples, complied), _ = asked[0]
    said = {f"{b}/{r.example.id}": r.judgements["nano"].complied for b in RunLog.open(run).benchmarks
            for r in RunLog.open(run).rows("base", b)}  # fmt: skip
    assert complied == [said[e.id] for e in examples]
    assert {c for c, e in zip(complied, examples, strict=True) if e.label == "unsafe"} == {
        True,
        False,
    }
    with pytest.raises(FingerprintError, match="was made with"):
        analyse(TransformersEngine(tiny_lm()), run)
    with pytest.raises(DataError, match="reads no states"):
        analyse(engine(), run, method="base")
    with pytest.raises(DataError, match="no method 'x'"):
        analyse(engine(), run, method="x")
