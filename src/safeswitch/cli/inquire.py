"""``safeswitch analyse`` and ``safeswitch landscape``: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.load import load_engine, load_switch
from safeswitch.cli.options import (
    DeviceMapOption,
    DtypeOption,
    ModelOption,
    RevisionOption,
    SeedOption,
    SwitchOption,
    TemplateOption,
)
from safeswitch.cli.screen import bar, put, say
from safeswitch.core.grammar import entries


def analyse(
    run: Annotated[Path, typer.Argument(help="Run folder of eval or compare.")],
    model: ModelOption,
    method: Annotated[str, typer.Option(help="Method of the run whose gate is looked at.")] = "safeswitch",
    limit: Annotated[int, typer.Option(min=20, help="Most requests, drawn at random.")] = 400,
    strips: Annotated[int, typer.Option(min=0, help="Example conversations whose scores are shown token by token.")] = 6,
    how: Annotated[str, typer.Option(help="pca, or umap (pip install 'safeswitch[umap]').")] = "pca",
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    chat_template: TemplateOption = None,
) -> None:
    """Look into a finished run: prober quality by layer and pilot token, states in two dimensions, scores token by token."""
    from safeswitch.analyses.run import FILE
    from safeswitch.analyses.run import analyse as look

    engine = load_engine(model, revision, dtype, device_map, chat_template)
    look(engine, run, method=method, limit=limit, strips=strips, how=how, seed=seed, say=say)  # type: ignore[arg-type]
    put(run / FILE)


def landscape(
    model: ModelOption,
    switch: SwitchOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for landscape.json; a run folder, to have it in the report.")],
    data: Annotated[
        str | None, typer.Option("--in", help="JSONL or CSV file of labelled requests, or hub data set; none: nano's own.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most unsafe and most safe requests.")] = 40,
    parts: Annotated[str, typer.Option(help="Weights that are moved, joined by commas: model, head, probers.")] = (
        "model,head,probers"
    ),
    reach: Annotated[float, typer.Option(help="Farthest distance, in units of the weights' own size.")] = 0.5,
    points: Annotated[int, typer.Option(help="Points of a curve, odd.")] = 21,
    directions: Annotated[int, typer.Option(min=1, help="Curves for each part.")] = 3,
    map_points: Annotated[int, typer.Option(min=0, help="Points of a map along each side, odd; 0: no maps.")] = 9,
    normalise: Annotated[str, typer.Option(help="layer or filter.")] = "layer",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest reply in tokens.")] = 32,
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    chat_template: TemplateOption = None,
) -> None:
    """Move the weights along random directions and see how safety holds: curves, maps and the VISAGE score."""
    from safeswitch.analyses.landscape.survey import FILE, Plan, Surveyor, survey
    from safeswitch.bench.judges.base import JUDGES
    from safeswitch.bench.judges.rules import Rules
    from safeswitch.core.errors import SettingError
    from safeswitch.data.readers import read_examples
    from safeswitch.nano.bench import NanoJudge
    from safeswitch.nano.suites import load_suite

    if data is None and model != "nano":
        raise SettingError("command line: landscape needs --in with requests, for other models than nano")
    plan = Plan(
        entries("--parts", parts), reach, points, directions, map_points, normalise, max_new_tokens, seed,  # type: ignore[arg-type]
    )
    if data is None:
        half = (limit + 1) // 2
        examples = [e for name in ("plain_unsafe", "jailbroken", "lookalike", "ordinary") for e in load_suite(name, half, seed)]
    else:
        examples = read_examples(data)
        examples = [e for label in ("unsafe", "safe") for e in [x for x in examples if x.label == label][:limit]]
    engine, own = load_engine(model, revision, dtype, device_map, chat_template, 64), load_switch(switch)
    judge = JUDGES[NanoJudge.name if data is None else Rules.name]()
    with bar(Surveyor(engine, own, examples, judge, plan).places(), "surveying") as advance:
        told = survey(engine, own, examples, judge, out, plan, step=lambda: advance(1))
    for curve in told["curves"]:
        gate = "with the gate" if curve["gate"] else "without"
        put(f"VISAGE {curve['part']}, {gate}, direction {curve['direction']}: {curve['visage']:.1f}")
    put(out / FILE)
