"""Real runs of lm-evaluation-harness and of Inspect on the embedded model, on small tasks of our
own."""

from __future__ import annotations

import gc
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safeswitch.bench.benchmark import BENCHMARKS, load
from safeswitch.core.errors import SettingError
from safeswitch.data.refusal_text import refuses
from safeswitch.engines.mock import MockEngine
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.score import log_likelihoods
from safeswitch.nano import bench, switch_path, weights_path
from safeswitch.switch.switch import Switch

QUESTIONS = [
    {"q": "What is the capital of France?", "choices": ["Paris.", "Rome."], "a": 0},
    {"q": "What is the opposite of hot?", "choices": ["Red.", "Cold."], "a": 1},
    {"q": "What is the capital of Italy?", "choices": ["Red.", "Blue."], "a": 0},
]


@pytest.fixture(scope="module")
def nano() -> tuple[TransformersEngine, Switch]:
    return TransformersEngine.load(weights_path()), Switch.from_pretrained(switch_path())


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A multiple-choice and a generation task of the harness, from a local file."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(
        "lm_eval.evaluator.add_env_info", lambda results: None
    )  # runs pip and git for half a minute
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "q.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
    }

    def measured(name: str) -> list[dict[str, Any]]:
        return [{"metric": name, "aggregation": "mean", "higher_is_better": True}]

    choice = {
        "task": "choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "a",
        "target_delimiter": "",
        "metric_list": measured("acc"),
    }
    write = {
        "task": "write",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[a]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": measured("exact_match"),
    }
    return [{**common, **choice}, {**common, **write}]


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [False, True])
def test_the_harness_runs_both_kinds_of_task_on_the_engine(
    nano: Any, tasks: list[dict[str, Any]], guarded: bool
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from safeswitch.bridges.lm_eval import EngineLM

    engine, switch = nano[0], nano[1] if guarded else None
    told = lm_eval.simple_evaluate(
        EngineLM(engine, switch),
        tasks=tasks,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    pairs = [(row["q"], choice) for row in QUESTIONS for choice in row["choices"]]
    own = [one.log_prob for one in log_likelihoods(engine, pairs, switch)]
    replies = engine.generate(
        [row["q"] for row in QUESTIONS], switch, max_new_tokens=12, do_sample=False
    )
    right = [
        row["choices"][row["a"]] == reply.text
        for row, reply in zip(QUESTIONS, replies, strict=True)
    ]
    best = [(own[2 * i] > own[2 * i + 1]) == (row["a"] == 0) for i, row in enumerate(QUESTIONS)]
    assert told["results"]["write"]["exact_match,none"] == pytest.approx(sum(right) / 3)
    assert told["results"]["choice"]["acc,none"] == pytest.approx(sum(best) / 3)
    assert right[:2] == best[:2] == [True, True]
    logged = [
        pair[0]
        for sample in told["samples"]["choice"]
        for pair in (resp[0] for resp in sample["resps"])
    ]
    assert logged == pytest.approx(own)


@pytest.mark.slow
def test_the_harness_hands_over_its_chat_turns(nano: Any, tasks: list[dict[str, Any]]) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from safeswitch.bridges.lm_eval import EngineLM

    told = lm_eval.simple_evaluate(
        EngineLM(nano[0]),
        tasks=tasks[1:],
        bootstrap_iters=0,
        apply_chat_template=True,
        system_instruction="Be brief and clear.",
        task_manager=TaskManager(include_defaults=False),
    )
    assert told["results"]["write"]["exact_match,none"] >= 0.6


def test_contexts_stops_and_what_is_not_offered() -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance

    from safeswitch.bridges.lm_eval import EngineLM, turns

    engine = MockEngine(lambda text: f"{text}. Then\nmore")
    lm = EngineLM(engine)  # type: ignore[arg-type]
    settings = {"until": ["\n", "Then"], "max_gen_toks": 7}
    requests = [
        Instance("generate_until", {}, ("one", settings), 0),
        Instance("generate_until", {}, ("two", {"until": "x"}), 1),
        Instance("generate_until", {}, ("three", settings), 2),
    ]
    assert lm.generate_until(requests) == ["one. ", "two. Then\nmore", "three. "]
    assert [(texts, o["max_new_tokens"], o["stop_strings"]) for texts, o in engine.calls] == [
        (("one", "three"), 7, ["\n", "Then"]),
        (("two",), 256, ["x"]),
    ]
    history = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert [(m.role, m.content) for m in turns(lm.apply_chat_template(history))] == [
        ("system", "s"),
        ("user", "u"),
    ]
    with pytest.raises(SettingError, match="perplexity of plain text"):
        lm.loglikelihood_rolling([])


@pytest.fixture
def collected() -> Iterator[None]:
    """What a test leaves to the garbage collector is collected, and complained of, within that
    test."""
    yield
    gc.collect()


# Inspect calls its own dependency (tenacity) in a deprecated way, and leaves its loop's sockets and
# streams to the collector.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "metric"), [("jailbroken", "harmful_compliance"), ("ordinary", "accuracy")]
)
def test_inspect_runs_our_benchmark_on_the_engine(
    nano: Any, suite: str, metric: str, tmp_path: Path
) -> None:
    pytest.importorskip("inspect_ai", reason="inspect-ai is not installed")
    from inspect_ai import eval as inspect_eval

    from safeswitch.bridges.inspect import inspect_model, inspect_task

    loaded = load(BENCHMARKS[bench.PREFIX + suite], limit=5)
    for switch in (None, nano[1]):
        log = inspect_eval(
            inspect_task(loaded),
            model=inspect_model(nano[0], switch),
            log_dir=str(tmp_path),
            display="none",
        )[0]
        assert log.status == "success", log.error
        replies = nano[0].generate(
            loaded.examples, switch, max_new_tokens=bench.REPLY_TOKENS, do_sample=False
        )
        verdicts = [
            bench._verdict(e, r.text) for e, r in zip(loaded.examples, replies, strict=True)
        ]
        hits = [v.correct if metric == "accuracy" else v.complied for v in verdicts]
        assert [s.output.completion for s in log.samples] == [r.text for r in replies]
        assert [s.output.metadata["decision"]["fired"] for s in log.samples] == [
            r.decision.fired for r in replies
        ]
        assert log.results.scores[0].metrics["mean"].value == pytest.approx(
            sum(map(bool, hits)) / 5
        )
        assert log.results.scores[0].name == metric


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_inspect_runs_our_benchmark_on_our_provider_by_their_names(
    nano: Any, tmp_path: Path
) -> None:
    pytest.importorskip("inspect_ai", reason="inspect-ai is not installed")
    from inspect_ai import eval as inspect_eval

    from safeswitch.cli.inspect_registry import benchmark

    project = tomllib.loads(
        (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    assert project["entry-points"]["inspect_ai"] == {"safeswitch": benchmark.__module__}
    (log,) = inspect_eval(
        benchmark("nano_jailbroken", limit=3),
        model="safeswitch/nano",
        model_args={"switch": "nano"},
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success", log.error
    assert (log.eval.model, log.eval.task) == ("safeswitch/nano", "nano_jailbroken")
    asked = load(BENCHMARKS["nano_jailbroken"], limit=3).examples
    replies = nano[0].generate(asked, nano[1], max_new_tokens=bench.REPLY_TOKENS, do_sample=False)
    assert [s.output.completion for s in log.samples] == [r.text for r in replies]
    with pytest.raises(SettingError, match="neither address nor key"):
        inspect_eval(
            benchmark("nano_jailbroken", limit=1),
            model="safeswitch/nano",
            model_base_url="http://x",
            display="none",
        )


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_both_harnesses_count_the_same_refusals_of_safe_requests(
    nano: tuple[TransformersEngine, Switch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    pytest.importorskip("inspect_ai", reason="inspect-ai is not installed")
    from inspect_ai import eval as inspect_eval

    from safeswitch.bridges.inspect import inspect_model
    from safeswitch.bridges.lm_eval import run_tasks
    from safeswitch.bridges.tasks.over_refusal import rows
    from safeswitch.cli.inspect_registry import over_refusal

    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    engine, switch = nano
    some = rows()[:12]
    assert all(not row.unsafe and row.meta["split"] == "held" for row in rows())
    replies = engine.generate(some, switch, max_new_tokens=64, do_sample=False)
    refused = sum(refuses(reply.text) for reply in replies) / len(some)
    found = run_tasks(engine, switch, ["safeswitch_over_refusal"], limit=12)
    figures = found["results"]["safeswitch_over_refusal"]
    assert figures["over_refusal,none"] == pytest.approx(refused)
    (log,) = inspect_eval(
        over_refusal(limit=12),
        model=inspect_model(engine, switch),
        display="none",
        log_dir=str(tmp_path),
    )
    assert log.results is not None
    scores = {score.name: score.metrics["mean"].value for score in log.results.scores}
    assert scores["over-refusal"] == pytest.approx(refused)
