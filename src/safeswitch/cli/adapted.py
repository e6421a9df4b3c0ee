"""``safeswitch adapted``: does a switch hold on a model that was changed after it was fitted?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.load import model_folder
from safeswitch.cli.options import BatchOption, switch_folder
from safeswitch.cli.screen import put_json


def adapted(
    before: Annotated[
        str,
        typer.Option(help="The model that the switch was fitted on: folder, hub id or 'nano'."),
    ],
    after: Annotated[str, typer.Option(help="The adapted model.")],
    switch: Annotated[str, typer.Option(help="Switch folder or hub id; 'nano': its own.")],
    data: Annotated[
        list[Path],
        typer.Option(help="Labelled requests that the switch was not fitted on; repeat for more."),
    ],
    budget: Annotated[
        float | None,
        typer.Option(help="False positive rate (FPR) of stage 1. None: the budget of the fit."),
    ] = None,
    batch_size: BatchOption = 32,
) -> None:
    """Say whether to keep, recalibrate or refit a switch after its model was changed.

    A model is changed by fine-tuning, merging or quantising. Prints the figures as JSON.
    """
    from safeswitch.data.readers import read_examples
    from safeswitch.engines.transformers.engine import TransformersEngine
    from safeswitch.fitting.adapted import compare, standing
    from safeswitch.fitting.fit import does_not_refuse
    from safeswitch.fitting.recalibrate import fitted_budget
    from safeswitch.switch.switch import Switch

    examples = []
    for path in data:
        examples += read_examples(path)
    bundle = Switch.from_pretrained(switch_folder(switch))
    spent = fitted_budget(bundle) if budget is None else budget
    found = []
    for name in (before, after):
        engine = TransformersEngine.load(model_folder(name), batch_size=batch_size)
        engine.allow_other_model = True
        found.append(standing(engine, bundle, examples, complied=does_not_refuse, budget=spent))
    put_json(asdict(compare(found[0], found[1], spent)), indent=2)
