"""Nano, the embedded model under test: a tiny chat model for offline studies, its corpus, suites
and judge."""

from __future__ import annotations

from pathlib import Path


def weights_path() -> Path:
    """Folder of the shipped weights, ready for ``AutoModelForCausalLM.from_pretrained``."""
    return Path(__file__).parent / "weights"


def switch_path() -> Path:
    """Folder of the switch that was fitted on those weights (``safeswitch nano switch``)."""
    return Path(__file__).parent / "switch"
