"""A switch in figures, for the page. Knows nothing of HTTP."""

from __future__ import annotations

from safeswitch.core.json_types import JsonObject
from safeswitch.switch.recalibrated import RECORD, sentences
from safeswitch.switch.switch import Switch


def card_of(switch: Switch) -> JsonObject:
    """What the switch reads, the thresholds in force, what it does, and the figures on record."""
    gate, base = switch.gate, switch.base
    stages: list[JsonObject] = []
    for name in ("stage1", "stage2", "watch", "late"):
        stage = getattr(gate, name)
        if stage is not None:
            reads = [str(point) for point in stage.prober.points] or ["text"]
            stages.append({"name": name, "kind": stage.prober.kind, "reads": reads})
    calibration = switch.record.get("calibration") or {}
    guarantee = (calibration.get("threshold") or {}).get("guarantee")
    return {
        "bundle_id": switch.fingerprint,
        "model_id": base.model_id if base is not None else None,
        "model_fingerprint": base.fingerprint if base is not None else None,
        "rule": gate.rule,
        "fail": gate.fail,
        "pilot": gate.pilot,
        "watch_every": gate.watch_every,
        "watch_until": gate.watch_until,
        "actuator": switch.actuator.kind,
        "thresholds": gate.thresholds(),
        "stages": stages,
        "guarantee": guarantee,
        "measured_on": calibration.get("metrics_on"),
        "measured": _figures(switch.record.get("metrics") or {}),
        "recalibrations": [
            {"date": entry.get("date", ""), "said": sentences(entry)}
            for entry in switch.record.get(RECORD, ())
        ],
    }


def _figures(metrics: JsonObject) -> list[JsonObject]:
    """The figures that have an interval."""
    found: list[JsonObject] = []
    for name, entry in metrics.items():
        if isinstance(entry, dict) and {"value", "low", "high"} <= set(entry):
            numbers = {key: entry[key] for key in ("value", "low", "high")}
            found.append({"name": name, **numbers})
    return found
