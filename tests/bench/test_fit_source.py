"""Methods fitted in a run tell how stage 1 does on sources that were left out, as ``safeswitch
fit`` tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeswitch.bench.bench import BenchSettings, run_bench
from safeswitch.bench.candidates import fitting_on, prepare
from safeswitch.bench.record_tables import left_out
from safeswitch.core.errors import FitError
from safeswitch.core.types import Example
from safeswitch.data.writers import write_examples
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.refusal_head import HeadSettings
from safeswitch.fitting.settings import FitSettings
from safeswitch.nano import bench, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.report.page import write_report
from safeswitch.switch.switch import Switch

HARM, LOOKALIKE = bench.PREFIX + "jailbroken", bench.PREFIX + "lookalike"
SETTINGS = FitSettings(
    readers=("layers",), stages="stage1", budget=0.1, head=HeadSettings(ranks=(1,), epochs=1)
)


@pytest.mark.slow
def test_a_run_that_fits_carries_the_figures_of_left_out_sources_into_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine.load(weights_path(), batch_size=64)
    rows = [*load_suite("plain_unsafe", 16), *load_suite("lookalike", 60)]
    write_examples(
        [replace(e, source=("one", "two")[i % 2]) for i, e in enumerate(rows)],
        tmp_path / "fit.jsonl",
    )
    asked: list[set[str]] = []

    def report(
        engine: object, examples: Sequence[Example], settings: FitSettings
    ) -> dict[str, Any]:
        asked.append({e.source for e in examples})
        assert len(examples) == 76
        estimate = {"value": 0.75, "low": 0.5, "high": 1.0}
        found = {"auroc": estimate, "tpr_at_1_fpr": estimate, "positives": 8, "negatives": 30}
        return {
            "source": {
                reader: {"one": found, "two": found} for reader in ("stage1", "text baseline")
            }
        }

    monkeypatch.setattr("safeswitch.bench.candidates.left_out_report", report)
    fitting, told = fitting_on(
        engine, [str(tmp_path / "fit.jsonl")], SETTINGS, None, lambda text: None, leave_out=True
    )
    log = run_bench(
        engine,
        BenchSettings("own", (HARM, LOOKALIKE), limit=4, fit=told),
        lambda log: prepare(engine, ("base", "head", "safeswitch"), fitting, log),
        tmp_path / "run",
        after=(write_report,),
    )
    assert asked == [{"one", "two"}]
    table = [
        r
        for r in left_out(log)
        if (r["method"], r["reader"], r["metric"]) == ("safeswitch", "stage1", "AUROC")
    ]
    assert [(r["left out"], r["reader"], r["name"], r["value"]) for r in table] == [
        ("source", "stage1", "one", 0.75),
        ("source", "stage1", "two", 0.75),
    ]
    kept = Switch.from_pretrained(log.switch_folder("safeswitch")).record["left_out"]
    assert kept == log.manifest["methods"]["safeswitch"]["record"]["left_out"]
    assert "Stage 1 on a source that it never saw" in (tmp_path / "run" / "report.html").read_text(
        encoding="utf-8"
    )


def test_without_data_nothing_is_fitted() -> None:
    engine = TransformersEngine.load(weights_path())
    fitting, _ = fitting_on(engine, (), SETTINGS, None, lambda text: None, leave_out=False)
    assert fitting.left_out is None
    with pytest.raises(FitError, match="give --fit-data"):
        fitting.data()
