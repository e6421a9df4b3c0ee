"""Fitting without its text baseline, which no switch holds and which takes most of a tiny model's
fitting time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _no_text_baseline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safeswitch.fitting.gate._text_baseline", lambda *args, **kwargs: {})
        yield
