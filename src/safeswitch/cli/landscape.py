"""``safeswitch landscape``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from safeswitch.cli.config import write_config
from safeswitch.cli.load import load_engine, load_switch
from safeswitch.cli.options import ModelOptions, SeedOption, TokensOption, one_of
from safeswitch.cli.screen import bar, put
from safeswitch.core.errors import SettingError
from safeswitch.core.grammar import entries

if TYPE_CHECKING:
    from safeswitch.analyses.landscape.survey import Plan
    from safeswitch.core.types import Example

_NANO_SUITES = ("plain_unsafe", "jailbroken", "lookalike", "ordinary")


@dataclass(frozen=True, kw_only=True)
class GuardedModelOptions(ModelOptions):
    """A model, and the switch whose gate and head are surveyed with it."""

    switch: Annotated[
        str,
        typer.Option(
            "--switch", help="Switch folder or hub id; 'nano' is the embedded model's own."
        ),
    ]


@dataclass(frozen=True)
class SurveyOptions:
    """How the weights are moved."""

    panel: ClassVar[str] = "Survey"

    parts: Annotated[
        str,
        typer.Option(help="Weights that are moved, joined by commas: model, head, probers."),
    ] = "model,head,probers"
    reach: Annotated[
        float, typer.Option(help="Farthest distance, in units of the weights' own size.")
    ] = 0.5
    points: Annotated[int, typer.Option(help="Points of a curve, odd.")] = 21
    directions: Annotated[int, typer.Option(min=1, help="Curves for each part.")] = 3
    map_points: Annotated[
        int, typer.Option(min=0, help="Points of a map along each side, odd; 0: no maps.")
    ] = 9
    normalise: Annotated[
        str, typer.Option(help="layer or filter.", autocompletion=one_of("layer", "filter"))
    ] = "layer"
    max_new_tokens: TokensOption = 32
    seed: SeedOption = 0

    def plan(self) -> Plan:
        """The plan that the options make.

        Raises:
            SettingError: a value outside its limits.
        """
        from safeswitch.analyses.landscape.survey import Plan

        return Plan(
            entries("--parts", self.parts),
            self.reach,
            self.points,
            self.directions,
            self.map_points,
            self.normalise,  # type: ignore[arg-type]
            self.max_new_tokens,
            self.seed,
        )


@dataclass(frozen=True)
class SurveyedOptions:
    """What is surveyed, and where the result goes."""

    panel: ClassVar[str] = "Requests"

    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for landscape.json; if a run's, its report shows it."),
    ]
    data: Annotated[
        str | None,
        typer.Option(
            "--in",
            help="JSONL or CSV file of labelled requests, or hub data set. None: nano's own.",
        ),
    ] = None
    limit: Annotated[int, typer.Option(min=1, help="Most unsafe and most safe requests.")] = 40

    def examples(self, seed: int) -> list[Example]:
        """The requests: nano's own where no source is given."""
        if self.data is None:
            return _nano_requests(self.limit, seed)
        return _requests(self.data, self.limit)


def landscape(
    context: typer.Context,
    model: GuardedModelOptions,
    requests: SurveyedOptions,
    survey: SurveyOptions,
) -> None:
    """Move the weights along random directions and see how safety holds; gives VISAGE scores."""
    from safeswitch.analyses.landscape.survey import FILE, Surveyor
    from safeswitch.analyses.landscape.survey import survey as run_survey
    from safeswitch.bench.judges.base import make_judge
    from safeswitch.bench.judges.rules import RulesJudge
    from safeswitch.nano.bench import NanoJudge

    if requests.data is None and model.model != "nano":
        raise SettingError(
            "command line: landscape needs --in with requests, for other models than nano"
        )
    plan = survey.plan()
    examples = requests.examples(survey.seed)
    engine = load_engine(model, batch_size=64)
    own = load_switch(model.switch)
    judge = make_judge(NanoJudge.name if requests.data is None else RulesJudge.name)
    places = Surveyor(engine, own, examples, judge, plan).places()
    with bar(places, "surveying") as advance:
        found = run_survey(
            engine, own, examples, judge, requests.out, plan, step=lambda: advance(1)
        )
    write_config(context, requests.out)
    for curve in found["curves"]:
        gate = "with the gate" if curve["gate"] else "without"
        put(
            f"VISAGE {curve['part']}, {gate}, direction {curve['direction']}: {curve['visage']:.1f}"
        )
    put(requests.out / FILE)


def _nano_requests(limit: int, seed: int) -> list[Example]:
    """Nano's own requests, half of ``limit`` from each of two unsafe and two safe suites."""
    from safeswitch.nano.suites import load_suite

    examples = []
    for name in _NANO_SUITES:
        examples += load_suite(name, (limit + 1) // 2, seed)
    return examples


def _requests(source: str, limit: int) -> list[Example]:
    """The first ``limit`` unsafe requests of a source, then its first safe ones."""
    from safeswitch.data.readers import read_examples

    examples = read_examples(source)
    chosen = []
    for label in ("unsafe", "safe"):
        chosen += [example for example in examples if example.label == label][:limit]
    return chosen
