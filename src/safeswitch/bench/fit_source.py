"""Fitting methods on files, as ``safeswitch fit`` does, the same parts for all methods. Knows
nothing of suites."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from safeswitch.bench.candidates import Fitting, Parts
from safeswitch.core.errors import FitError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.types import Example
from safeswitch.data.splits import fit_split
from safeswitch.fitting.files import Say, fitting_requests, read_sources
from safeswitch.fitting.left_out import left_out_report
from safeswitch.fitting.settings import FitSettings
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.switch import Switch


def fitting_on(
    engine: ReadingEngine,
    sources: Sequence[str],
    settings: FitSettings,
    own: Switch | None,
    say: Say,
    *,
    leave_out: bool,
) -> tuple[Fitting, JsonObject]:
    """How methods are fitted on ``sources``, and the same for a run's identity.

    With ``leave_out`` the record of a SafeSwitch that is fitted here says how stage 1 does on
    sources and jailbreak templates left out. Without sources nothing can be fitted; methods that
    need no fitting, and a given switch, run all the same.
    """

    @cache
    def requests() -> list[Example]:
        if not sources:
            raise FitError(
                "this method has to be fitted, and there is nothing to fit it on; give --fit-data"
            )
        return fitting_requests(
            engine, read_sources(sources, label=None, limit=None), settings, say
        )

    def data() -> Parts:
        return fit_split(requests(), settings.seed)

    def left_out() -> JsonMapping:
        return left_out_report(engine, requests(), settings)

    record = {
        "sources": {source: _digest(source) for source in sources},
        "settings": settings.to_dict(),
        "switch": own.fingerprint if own is not None else None,
    }
    return Fitting(data, settings, own=own, left_out=left_out if leave_out else None), record


def _digest(source: str) -> str | None:
    path = Path(source)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
