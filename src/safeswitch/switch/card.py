"""The model card of a bundle, written from the bundle itself. Of files it knows only whether the
base model is a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from safeswitch.core.strict import one_line
from safeswitch.switch.recalibrated import RECORD, sentences

if TYPE_CHECKING:
    from safeswitch.switch.switch import Switch

_MOST_SOURCES = 40
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def model_card(switch: Switch) -> str:
    """Markdown with the hub's front matter: base model, what is read, thresholds, measured figures,
    limits."""
    base, gate = switch.base, switch.gate
    lines = ["---", "library_name: safeswitch", "tags: [safety, refusal, probing, safeswitch]"]
    if base is not None and _HUB_ID.fullmatch(base.model_id) and not Path(base.model_id).is_dir():
        lines.append(f"base_model: {base.model_id}")
    lines += ["---", "", "# SafeSwitch bundle", ""]
    if base is not None:
        lines.append(
            f"Fitted on `{base.model_id}` (fingerprint `{base.fingerprint}`); refused on any other "
            "weights."
        )
    lines += ["", "| part | what |", "|---|---|", f"| rule | {gate.rule}, fails {gate.fail} |"]
    for name, stage in (
        ("stage1", gate.stage1),
        ("stage2", gate.stage2),
        ("watch", gate.watch),
        ("late", gate.late),
    ):
        if stage is not None:
            points = ", ".join(str(p) for p in stage.prober.points) or "text"
            until = gate.watch_until or "the end"
            when = (
                f" and every {gate.watch_every} reply tokens, up to {until}"
                if name == "watch"
                else ""
            )
            when += (
                f" every {gate.late_every} reply tokens and at the end, behind appended tokens"
                if name == "late"
                else ""
            )
            lines.append(
                f"| {name} | {stage.prober.kind}, reads {points}{when}, threshold "
                f"{stage.threshold:.4f} |"
            )
    if gate.rule == "product":
        lines.append(f"| product threshold | {gate.product_threshold:.4f} |")
    if gate.harms is not None:
        lines.append(f"| kinds of harm | {', '.join(gate.harms.names)} |")
    lines.append(f"| actuator | {switch.actuator.kind} |")
    lines += _fitted_on(switch)
    lines += _measured(switch)
    lines += _by_source(switch)
    lines += _harms(switch)
    lines += _left_out(switch)
    lines += _recalibrated(switch)
    lines += [
        "",
        "## Limits",
        "",
        "A prober is a tripwire against black-box requests, not a wall: whoever can optimise "
        "against the model's own activations can evade it. Thresholds hold for traffic like the "
        "calibration data; watch for drift.",
        "",
    ]
    return "\n".join(lines)


def _recalibrated(switch: Switch) -> list[str]:
    """What verdicts on real traffic have changed since the fit."""
    lines = []
    for number, found in enumerate(switch.record.get(RECORD) or (), 1):
        lines += ["", f"## Recalibration {number} {one_line(found['date'])}".rstrip(), ""]
        lines += [f"- {sentence}" for sentence in sentences(found)]
    return lines


def _by_source(switch: Switch) -> list[str]:
    """False triggers on each benign source while it was left out, where these set the threshold."""
    threshold = (switch.record.get("calibration") or {}).get("threshold") or {}
    if "sources" not in threshold:
        return []
    lines = [
        "",
        "## Benign sources that set stage 1's threshold",
        "",
        "Each was left out of the fit that scored it. The mean over the sources is "
        f"{threshold['mean']:.2%}, its budget {threshold['budget']:.2%}.",
        "",
        "| source | safe requests | above the threshold |",
        "|---|---|---|",
    ]
    for name, own in threshold["sources"].items():
        lines.append(f"| {name} | {own['n']} | {own['rate']:.1%} |")
    return lines


def _harms(switch: Switch) -> list[str]:
    """How well the kinds of harm are told apart, and which have too little data for it."""
    notes = switch.record.get("harms") or {}
    if "left out" in notes:
        return ["", "## Kinds of harm", "", f"Not read: {notes['left out']}."]
    if not notes:
        return []
    lines = [
        "",
        "## Kinds of harm",
        "",
        "Read once the gate has fired; they never change whether it does. AUROC of each kind "
        "against all other requests that it was calibrated on.",
        "",
        "| kind | rows fitted on | calibrated on | AUROC |",
        "|---|---|---|---|",
    ]
    for name, own in notes["kinds"].items():
        lines.append(f"| {name} | {own['fit']} | {own['calibration']} | {own['auroc']:.3f} |")
    few = [f"{name} ({fit} and {held})" for name, (fit, held) in notes["in other"].items()]
    if few:
        lines += [
            "",
            f"With fewer than {notes['fewest']} rows to fit on or to calibrate on, and so read as "
            f"`other`: {', '.join(few)}.",
        ]
    return lines


def _fitted_on(switch: Switch) -> list[str]:
    """The requests that the switch was fitted on, by source; nothing for a bundle that does not
    tell."""
    sources = switch.record.get("sources") or {}
    if not sources:
        return []
    shipped = [name for name in sources if name.startswith("starter/")]
    starter = (
        " The sources `starter/...` are the starter set that ships with safeswitch."
        if shipped
        else ""
    )
    total = sum(counts["unsafe"] + counts["safe"] for counts in sources.values())
    lines = [
        "",
        "## Fitted on",
        "",
        f"{total} requests.{starter}",
        "",
        "| source | unsafe | safe |",
        "|---|---|---|",
    ]
    largest = sorted(sources, key=lambda name: -sum(sources[name].values()))
    for name in sorted(largest[:_MOST_SOURCES]):
        shown = one_line(name).replace("|", "\\|") or "(none)"
        lines.append(f"| {shown} | {sources[name]['unsafe']} | {sources[name]['safe']} |")
    if len(largest) > _MOST_SOURCES:
        lines.append(f"| {len(largest) - _MOST_SOURCES} smaller ones | | |")
    return lines


def _measured_on(switch: Switch) -> str:
    if (switch.record.get("calibration") or {}).get("metrics_on") == "calibration":
        return (
            "On the calibration part, whose ordinary requests set the thresholds and nothing else. "
            "Stage 1 is measured with its look-alikes, stage 2, for which none is answered, without."
        )
    return (
        "On the validation part, which also chose layers, gate rule and when to stop: flattering "
        "figures."
    )


def _measured(switch: Switch) -> list[str]:
    metrics = switch.record.get("metrics") or {}
    if not metrics:
        return []
    lines = ["", "## Measured", "", _measured_on(switch)]
    lines += ["", "| figure | value | 95 % interval |", "|---|---|---|"]
    for name, entry in metrics.items():
        if isinstance(entry, dict) and {"value", "low", "high"} <= set(entry):
            lines.append(
                f"| {name} | {entry['value']:.3f} | {entry['low']:.3f} – {entry['high']:.3f} |"
            )
    return lines


def _left_out(switch: Switch) -> list[str]:
    """Stage 1 on each source and jailbreak template while it was left out of fitting, beside the
    text baseline."""
    lines = []
    for grouping, report in (switch.record.get("left_out") or {}).items():
        lines += [
            "",
            f"## Stage 1 on each {grouping} that it was not fitted on",
            "",
            f"AUROC with 95 % interval; each {grouping} was left out of the fit that it tests. The "
            "headline is the mean.",
            "",
            f"| {grouping} | unsafe / safe | stage 1 | TPR at 1 % FPR | text baseline |",
            "|---|---|---|---|---|",
        ]
        for group, found in report["stage1"].items():
            text = report["text baseline"][group]["auroc"]["value"]
            auroc = found["auroc"]
            lines.append(
                f"| {group} | {found['positives']} / {found['negatives']} | {auroc['value']:.3f} "
                f"({auroc['low']:.3f}–{auroc['high']:.3f}) | {found['tpr_at_1_fpr']['value']:.3f} "
                f"| {text:.3f} |"
            )
    return lines
