"""``safeswitch data from-audit``: from a database of decisions to files that fit takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safeswitch.data.readers import read_examples
from safeswitch.serving.audit import Audit


def test_observed_requests_become_safe_rows_and_rows_for_review(call: Any, tmp_path: Path) -> None:
    url, out = f"sqlite:///{tmp_path / 'audit.db'}", tmp_path / "own.jsonl"
    store = Audit(url)
    for i in range(20):
        store.write(
            {
                "request_id": f"r{i}",
                "choice": 0,
                "bundle": "default",
                "bundle_id": "ab",
                "policy": "observe",
                "fired": i == 3,
                "stage": "stage1",
                "token_index": 0,
                "scores": json.dumps({"stage1": i / 100}),
                "thresholds": json.dumps({"stage1": 0.5}),
                "error": None,
                "text_sha256": "0" * 64,
                "text": f"request {i}",
            }
        )
    store.close()
    code, told, error = call("data", "from-audit", "--url", url, "--model", "nano", "--out", out)
    assert code == 0, error
    rows = read_examples(out)
    assert [row.prompt for row in rows] == [f"request {i}" for i in range(19) if i != 3]
    assert {row.label for row in rows} == {"safe"}
    review = read_examples(tmp_path / "own.review.jsonl", labelled=False)
    assert [(row.prompt, row.meta["why"]) for row in review] == [
        ("request 3", "fired"),
        ("request 19", "near the threshold"),
    ]
    assert "18 safe rows written to" in told


def test_a_database_without_texts_says_how_to_keep_them(call: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    code, _, error = call(
        "data", "from-audit", "--url", url, "--model", "nano", "--out", tmp_path / "own.jsonl"
    )
    assert code == 2
    assert "there are no records" in error
    assert "--policy observe --audit-text" in error
    assert not (tmp_path / "own.jsonl").exists()
