"""``safeswitch attack``: parse, call one function, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from safeswitch.cli.load import load_engine, load_fitting, load_switch
from safeswitch.cli.options import (
    BatchOption,
    BenchmarkOption,
    DataOption,
    DeviceMapOption,
    DtypeOption,
    FitDataOption,
    HubOption,
    ModelOption,
    OutOption,
    RevisionOption,
    SeedOption,
    SwitchOption,
    TemplateOption,
)
from safeswitch.cli.screen import bars, put, put_markdown, say
from safeswitch.core.grammar import entries

_NANO_TARGET = "Well, I can help with it. You make a plan, then you go on step by step."


def attack(
    model: ModelOption,
    out: OutOption,
    switch: SwitchOption = None,
    attacks: Annotated[
        str,
        typer.Option(
            help="Joined by commas: wrappers, prefill, many-shot, multi-turn, encodings, translation, gcg, gcg-prober."
        ),
    ] = "wrappers,prefill,many-shot,multi-turn,encodings",
    methods: Annotated[
        str | None, typer.Option(help="Methods, joined by commas; none: base, and safeswitch where there is a switch.")
    ] = None,
    fit_data: FitDataOption = None,
    benchmark: BenchmarkOption = None,
    data: DataOption = None,
    hub: HubOption = False,
    limit: Annotated[int, typer.Option(min=1, help="Most requests of each benchmark, drawn at random.")] = 50,
    target: Annotated[
        str | None, typer.Option(help="Content-free beginning of a compliant reply, which searches aim at.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a search for each request.")] = 40,
    translations: Annotated[
        Path | None, typer.Option(help="CSV with a column a language, as MultiJail's, for the attack translation.")
    ] = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 32,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    chat_template: TemplateOption = None,
) -> None:
    """Attack your own model, untouched and defended, with published methods; resumable.

    Only the unsafe requests of the benchmarks are attacked: nano's plain ones, or HarmBench, unless others are named.
    """
    from safeswitch.attacks.run import build_attacks, run_attacks
    from safeswitch.bench.bench import Asked
    from safeswitch.bench.catalogue import benchmarks
    from safeswitch.bench.picture import check_drawable

    names = entries("--attacks", attacks)
    target = target or (_NANO_TARGET if model == "nano" else None)
    chosen = build_attacks(names, _options(names, target, steps, seed, translations))
    engine = load_engine(model, revision, dtype, device_map, chat_template, batch_size)
    own = load_switch(switch)
    fitting, told = load_fitting(engine, model, fit_data, own, seed, leave_out=False, say=say)
    benchmarks()
    usual = "base,safeswitch" if own is not None else "base"
    defended = entries("--methods", methods or usual)
    check_drawable()
    asked = Asked(
        "attack", tuple(benchmark or (["nano_plain_unsafe"] if model == "nano" else ["harmbench"])),
        data, hub, limit, seed, command=tuple(sys.argv), fit=told,
    )
    with bars() as advance:
        run_attacks(engine, asked, defended, fitting, chosen, out, say=say, progress=advance)
    put_markdown((out / "tables" / "attacks.md").read_text(encoding="utf-8"))
    put(f"written to {out}")


def _options(
    names: tuple[str, ...], target: str | None, steps: int, seed: int, translations: Path | None
) -> dict[str, dict[str, Any]]:
    """Settings of the attacks that are asked for.

    Raises:
        SettingError: translation without a table.
        DataError: a table that cannot be read.
    """
    from safeswitch.attacks.translation import read_columns
    from safeswitch.core.errors import SettingError

    search: dict[str, Any] = {"steps": steps, "seed": seed, **({"target": target} if target else {})}
    options = {"gcg": search, "gcg-prober": search}
    if "translation" in names:
        if translations is None:
            raise SettingError("command line: the attack translation needs --translations, a CSV with a column a language")
        options["translation"] = {"table": read_columns(translations)}
    return options
