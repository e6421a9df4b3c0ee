"""What a recalibration did to a switch, in words, from its entry in the switch's record. Knows
nothing of how it was done."""

from __future__ import annotations

from safeswitch.core.json_types import JsonMapping
from safeswitch.core.strict import one_line

RECORD = "recalibrations"
"""Where a switch's record keeps what was changed, oldest first."""
REFIT = "refit_last"
"""The ``kind`` of an entry that tells of a new last layer; others tell of a threshold."""


def sentences(found: JsonMapping) -> list[str]:
    """What a recalibration did, in words, from its entry in a switch's record."""
    lines = _of_layer(found) if found.get("kind") == REFIT else _of_threshold(found)
    if found["reviewers"]:
        counts = (
            f"{one_line(name)} {sum(own.values())}" for name, own in found["reviewers"].items()
        )
        lines.append(f"verdicts by {', '.join(counts)} (hash {found['reviews_hash']})")
    return lines


def _of_layer(found: JsonMapping) -> list[str]:
    rows, said = found["rows"], found["verdicts"]
    auroc, caught, right = found["auroc"], found["caught"], found["right"]
    lines = [
        f"{found['stage']}: last layer fitted anew ({found['weights']} numbers, pull "
        f"{found['ridge']:g} towards the shipped ones), threshold {found['before']:.4f} -> "
        f"{found['after']:.4f} (switch {found['parent']}; {found['requests']} requests over "
        f"{found['days']:.1f} days)",
        f"fitted on {rows['safe']} safe and {rows['unsafe']} unsafe calibration rows, "
        f"{rows['false']} false alarms and {rows['right']} rightly flagged; figures after are of "
        "rows left out (cross-fitted)",
        f"AUROC on the calibration rows: {_estimate(auroc['before'])} -> "
        f"{_estimate(auroc['after'])}",
        f"unsafe calibration rows above the threshold: {_rate(caught['before'])} -> "
        f"{_rate(caught['after'])}",
        f"false alarms a day at {found['settings']['per_day']:g} requests: "
        f"{_figure(found['alarms_before'])} -> {_figure(found['alarms_after'])}",
        f"verdicts on {found['flagged']} flagged texts: {said['false_alarm']} false alarms, "
        f"{said['right']} right, {said['unsure']} unsure, {said['open']} without one",
        f"still flagged of {right['n']} reviewed as right: {_rate(right)}",
    ]
    if found["after"] < found["wanted"]:
        lines.append(
            f"held: the budget asks for {found['wanted']:.4f}, at which significantly fewer unsafe "
            "calibration rows would be caught"
        )
    lines += [f"{count} reviewed texts left out: {why}" for why, count in found["left"].items()]
    return lines


def _estimate(found: JsonMapping) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _rate(found: JsonMapping) -> str:
    return f"{found['rate']:.1%} ({found['low']:.1%} to {found['high']:.1%})"


def _of_threshold(found: JsonMapping) -> list[str]:
    before, after = found["alarms_before"], found["alarms_after"]
    per_day = found["settings"]["per_day"]
    said = found["verdicts"]
    lines = [
        f"{found['stage']}: threshold {found['before']:.4f} -> {found['after']:.4f} (switch "
        f"{found['parent']}; {found['requests']} requests over {found['days']:.1f} days)",
        f"false alarms a day at {per_day:g} requests: {_figure(before)} -> {_figure(after)}",
        f"verdicts on {found['flagged']} flagged texts: {said['false_alarm']} false alarms, "
        f"{said['right']} right, {said['unsure']} unsure, {said['open']} without one",
        _right(found["right"]),
        _validation(found["caught"]),
    ]
    if found["held"]:
        most = found["settings"]["max_shift"]
        lines.append(
            f"held: the budget asks for {found['wanted']:.4f}; a threshold moves by at most "
            f"{most:g} in log-odds from where the fit set it"
        )
    if found["settings"]["passed_is_benign"]:
        lines.append("requests that were not flagged were taken for benign, as the caller said")
    if found["elsewhere"]:
        lines.append(
            f"{found['elsewhere']} texts were flagged by another stage, which this leaves as it is"
        )
    return lines


def _figure(found: JsonMapping) -> str:
    return f"{found['value']:.3g} ({found['low']:.3g} to {found['high']:.3g})"


def _right(kept: JsonMapping | None) -> str:
    if kept is None:
        return "lost among reviewed: not known, none was reviewed as rightly flagged"
    return (
        f"still flagged of {kept['n']} reviewed as right: {kept['rate']:.0%} ({kept['low']:.0%} to "
        f"{kept['high']:.0%}; where the nearest to the threshold were reviewed first, all of them "
        "lose less)"
    )


def _validation(caught: JsonMapping | None) -> str:
    if caught is None:
        return "caught of the fit's unsafe validation requests: not recorded in this switch"
    (low, high), (low_after, high_after) = caught["before"], caught["after"]
    return (
        f"caught of the fit's unsafe validation requests at this stage: {low:.1%}-{high:.1%} -> "
        f"{low_after:.1%}-{high_after:.1%}"
    )
