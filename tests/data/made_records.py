"""Records of an audit as a server writes them, made by hand."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SWITCH = "0123456789abcdef"
BARS = {"stage1": 0.5, "stage2": 0.1}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def record(text: str, scores: dict[str, float], fired: bool, **changes: Any) -> dict[str, Any]:
    """A record of switch ``SWITCH`` under the thresholds ``BARS``, made one hour after another."""
    made = {
        "at": 3600.0,
        "request_id": f"r-{text}",
        "choice": 0,
        "bundle": "default",
        "bundle_id": SWITCH,
        "policy": "observe",
        "fired": fired,
        "stage": list(scores)[-1],
        "token_index": 0,
        "scores": json.dumps(scores),
        "thresholds": json.dumps(BARS),
        "error": None,
        "text_sha256": sha(text),
        "text": text,
    }
    return made | changes
