"""The commands eval, compare and harness, end to end on the embedded model."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safeswitch.bench.log import RunLog
from safeswitch.data.writers import write_examples
from safeswitch.nano import switch_path
from safeswitch.nano.suites import load_suite
from safeswitch.switch.switch import Switch


@pytest.mark.slow
def test_compare_writes_log_tables_and_picture_from_local_files_and_names_what_is_missing(
    call: Any, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    mixed = [*load_suite("plain_unsafe", 6), *load_suite("lookalike", 6)]
    write_examples(mixed, data / "xstest.jsonl")
    chosen = [
        word for name in ("xstest", "or_bench", "nano_ordinary") for word in ("--benchmark", name)
    ]
    code, told, _ = call(
        "compare",
        "--model",
        "nano",
        "--switch",
        "nano",
        "--methods",
        "base,head,safeswitch",
        *chosen,
        "--data",
        data,
        "--limit",
        8,
        "--out",
        out,
    )
    assert code == 0
    assert "MISSING or_bench: or_bench: " in told.replace("\n", " ")
    assert "labelled by hand: precision" in told.replace("\n", " ")
    log = RunLog.open(out)
    assert (log.methods, log.benchmarks) == (
        ("base", "head", "safeswitch"),
        ("xstest", "nano_ordinary"),
    )
    assert log.manifest["command"][:2] == ["safeswitch", "compare"]
    assert (log.manifest["identity"]["suite"], log.manifest["identity"]["limit"]) == ("own", 8)
    told_switch = Switch.from_pretrained(switch_path())
    assert log.manifest["methods"]["safeswitch"]["switch"] == told_switch.fingerprint
    assert Switch.from_pretrained(log.switch_folder("head")).gate.always
    entry = log.manifest["benchmarks"]["xstest"]
    assert (entry["n"], entry["of"], entry["measures"], entry["judges"]) == (
        8,
        12,
        "safety",
        ["rules"],
    )
    rows = log.rows("safeswitch", "xstest")
    assert len(rows) == 8
    assert all(set(row.judgements) == {"rules"} for row in rows)
    with (out / "tables" / "rates.csv").open(newline="") as stream:
        rates = list(csv.DictReader(stream))
    harm = {
        r["method"]: float(r["value"])
        for r in rates
        if r["benchmark"] == "xstest" and r["metric"] == "harmful compliance"
    }
    by_hand = [r.judgements["rules"].complied for r in rows if r.example.unsafe]
    assert harm["safeswitch"] == pytest.approx(sum(map(bool, by_hand)) / len(by_hand))
    tables = json.loads((out / "figures.json").read_text())["tables"]
    assert {
        "rates",
        "paired",
        "gate",
        "prober",
        "cost",
        "judges",
        "benchmarks",
        "two_sided",
    } <= set(tables)
    assert {path.stem for path in (out / "tables").glob("*.md")} == set(tables)
    with Image.open(out / "pareto.png") as image:
        assert image.size[0] > image.size[1] > 300


@pytest.mark.slow
def test_eval_measures_one_model_untouched_or_with_a_switch(call: Any, tmp_path: Path) -> None:
    given = ("--model", "nano", "--benchmark", "nano_jailbroken", "--limit", 6)
    assert call("eval", *given, "--out", tmp_path / "a")[0] == 0
    assert call("eval", *given, "--switch", "nano", "--out", tmp_path / "b")[0] == 0
    values = [
        next(
            r["value"]
            for r in json.loads((tmp_path / name / "figures.json").read_text())["tables"]["rates"]
        )
        for name in ("a", "b")
    ]
    assert values[0] > values[1]


def test_what_is_wrong_is_told_before_any_work(call: Any, tmp_path: Path) -> None:
    given = ("compare", "--model", "nano", "--out", tmp_path / "x")
    for more, message in (
        (("--methods", "base,magic"), "unknown method 'magic'; known: antidote, base"),
        (("--methods", "base,base"), "'base' comes twice"),
        (("--suite", "everything"), "suite: name must be one of 'quick', 'paper', 'full', "),
        (("--benchmark", "nothing"), "unknown benchmark 'nothing'; known: "),
        (("--judge", "oracle"), "judge 'oracle': give kind"),
        (
            ("--benchmark", "oktest", "--data", tmp_path),
            "none of its 1 benchmarks is at hand; give --data or --hub",
        ),
    ):
        code, _, err = call(*given, *more)
        assert (code, message in err.replace("\n", " ")) == (2, True), err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_methods_are_fitted_on_files_and_what_needs_them_is_told(call: Any, tmp_path: Path) -> None:
    given = ("compare", "--model", "nano", "--benchmark", "nano_jailbroken", "--limit", 4)
    write_examples(
        [*load_suite("jailbroken_a", 60), *load_suite("lookalike_a", 500)], tmp_path / "fit.jsonl"
    )
    code, _, err = call(
        *given,
        "--methods",
        "base,safeswitch",
        "--fit-data",
        tmp_path / "fit.jsonl",
        "--no-leave-out",
        "--out",
        tmp_path / "run",
    )
    assert code == 0, err
    log = RunLog.open(tmp_path / "run")
    assert list(log.manifest["identity"]["fit"]["sources"]) == [str(tmp_path / "fit.jsonl")]
    assert log.manifest["methods"]["safeswitch"]["record"]["data"]["train"]["n"] > 0
    assert log.manifest["methods"]["safeswitch"]["seconds"] > 0
    assert "left_out" not in log.manifest["methods"]["safeswitch"]["record"]


@pytest.mark.slow
def test_harness_runs_tasks_of_a_folder(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    alone = partial(
        TaskManager, include_defaults=False
    )  # the harness's own tasks take long to index
    monkeypatch.setattr("safeswitch.bridges.lm_eval.TaskManager", alone)
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"q": "What is the capital of France?", "a": "Paris."}) + "\n"
    )
    (tmp_path / "capital.yaml").write_text(
        f"task: capital\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'q.jsonl'}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs:\n  until: ['\\n']\n  max_gen_toks: 12\nmetric_list:\n  - metric: exact_match\n"
        "    aggregation: mean\n    higher_is_better: true\n"
    )
    given = (
        "harness",
        "--model",
        "nano",
        "--switch",
        "nano",
        "--include-path",
        tmp_path,
        "--out",
        tmp_path / "r.json",
    )
    code, told, err = call(*given, "--tasks", "capital")
    assert (code, "exact_match,none=1.0" in told) == (0, True), err
    assert (
        json.loads((tmp_path / "r.json").read_text())["switch"]
        == Switch.from_pretrained(switch_path()).fingerprint
    )
    code, _, err = call(*given, "--tasks", "no_such_task")
    assert (code, "knows no task no_such_task" in err) == (2, True)
