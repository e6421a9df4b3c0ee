"""``safeswitch``: one verb per step. Parses, calls one function, prints."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from contextlib import ExitStack
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from safeswitch._version import __version__
from safeswitch.cli.adapted import adapted
from safeswitch.cli.attack import attack
from safeswitch.cli.bench import compare, evaluate, harness
from safeswitch.cli.data import data_app
from safeswitch.cli.export import export
from safeswitch.cli.inquire import analyse, landscape
from safeswitch.cli.load import load_collector, load_engine, load_switch
from safeswitch.cli.operate import audit_app, keys_app
from safeswitch.cli.options import (
    BatchOption,
    DeviceMapOption,
    DtypeOption,
    HideThinkingOption,
    JsonOption,
    LeaveOutOption,
    ModelOption,
    OtherModelOption,
    RevisionOption,
    SampleOption,
    SeedOption,
    SwitchOption,
    TemperatureOption,
    TemplateOption,
    ThinkingBudgetOption,
    TokensOption,
    TopPOption,
)
from safeswitch.cli.real import real
from safeswitch.cli.report import report
from safeswitch.cli.screen import bar, complain, put, put_json, put_markdown, say, take_any_text
from safeswitch.cli.serve import serve
from safeswitch.core.errors import ArtifactError, SafeSwitchError, SettingError, check_choice
from safeswitch.core.grammar import entries

_KEPT = {
    "fit": "a switch is written only when it is fitted, so the folder holds a whole one or is as it was",
    "generate": "the replies written so far are kept, and the same command goes on from there",
    "eval": "the run folder keeps what is done, and the same command goes on from there",
    "attack": "the run folder keeps what is done, and the same command goes on from there",
    "compare": "the run folder keeps what is done, and the same command goes on from there",
}


class Verbs(TyperGroup):
    """Says on an interrupt what is kept, and ends with exit code 130 (Typer alone would end without a word)."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say(f"interrupted; {_KEPT.get(str(ctx.invoked_subcommand), 'no file is left half-written')}")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
nano_app = typer.Typer(no_args_is_help=True, help="The embedded tiny model: rebuild, measure, study.")
app.add_typer(nano_app, name="nano")
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app, name="audit")
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point: deliberate errors end in one line and exit code 2."""
    take_any_text()
    try:
        app()
    except SafeSwitchError as error:
        complain(f"{type(error).__name__}: {error}")
        sys.exit(2)


def _print_version(asked: bool) -> None:
    if asked:
        stands_on = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
        put(f"safeswitch {__version__}, {stands_on}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the versions and leave.")
    ] = False,
) -> None:
    """Guard a language model with its own activations: probers decide, a refusal head acts, only when needed."""


def _sampling(sample: bool, temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """Options for the engine.

    Raises:
        SettingError: a value outside its range, or one that nothing would come of without ``--sample``.
    """
    given = {name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None}
    if given and not sample:
        named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SettingError(f"command line: {named} would have no effect without --sample; add --sample or leave it out")
    if temperature is not None and not 0 < temperature < math.inf:
        raise SettingError(f"command line: --temperature must be above 0 and finite; got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise SettingError(f"command line: --top-p must be above 0 and at most 1; got {top_p}")
    return {"do_sample": sample, **given}


def _thinking(hide: bool, budget: int | None) -> dict[str, Any]:
    """Options for the engine that differ from its own."""
    shown: dict[str, Any] = {"show_thinking": False} if hide else {}
    return shown if budget is None else shown | {"thinking_budget": budget}


@app.command()
def fit(
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the switch.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="JSONL or CSV file, or hub data set; repeat for more. None: the starter set."),
    ] = None,
    with_starter: Annotated[
        bool, typer.Option("--with-starter", help="Add the starter set, which --data alone replaces.")
    ] = False,
    label: Annotated[str | None, typer.Option(help="Label of rows that have none: safe or unsafe.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most rows of each source that rows name, spread evenly.")] = None,
    budget: Annotated[float, typer.Option(help="Share of benign requests that may trigger the gate.")] = 0.01,
    stages: Annotated[str, typer.Option(help="two, stage1 or direct.")] = "two",
    rule: Annotated[str, typer.Option(help="auto, and, product.")] = "auto",
    pilot: Annotated[int, typer.Option(min=0, help="Pilot tokens before stage 2.")] = 3,
    pilot_from: Annotated[str, typer.Option(help="reply, or answer: counted from the end of a model's thinking.")] = "reply",
    reply_tokens: Annotated[int, typer.Option(min=1, help="Length of the replies that are judged, thinking included.")] = 32,
    readers: Annotated[
        str, typer.Option(help="What stage 1 fuses, joined by commas: layers, window, text, steps.")
    ] = "layers,window,text",
    calibrate: Annotated[
        str, typer.Option(help="Stage 1's threshold from: pooled requests, or sources left out.")
    ] = "pooled",
    watch: Annotated[bool, typer.Option("--watch", help="Also watch the running reply.")] = False,
    head: Annotated[str, typer.Option(help="Refusal head: low_rank or full.")] = "low_rank",
    beta: Annotated[float, typer.Option(help="Share of the head's difference in force, 0 to 1.")] = 1.0,
    fail: Annotated[str, typer.Option(help="closed: a prober that cannot run fires; open: it lets pass.")] = "closed",
    leave_out: LeaveOutOption = True,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the model's answers and states; a fit that was cut off goes on from it.")
    ] = None,
    trust_replies: Annotated[
        bool, typer.Option("--trust-replies", help="Take the replies of unsafe rows as refusals, whatever their words.")
    ] = False,
    engine_name: Annotated[
        str, typer.Option("--engine", help="transformers, or vllm: replies and states come from vLLM, much faster on a GPU.")
    ] = "transformers",
    as_json: JsonOption = False,
    seed: SeedOption = 0,
    batch_size: BatchOption = 32,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    chat_template: TemplateOption = None,
) -> None:
    """Fit a switch on labelled requests, or on the starter set that ships with safeswitch, and write it to a folder."""
    from safeswitch.switch.fit_settings import FitSettings
    from safeswitch.switch.kept import Kept
    from safeswitch.switch.refusal_head import HeadSettings
    from safeswitch.switch.run_fit import fit_files

    settings = FitSettings(
        budget=budget, stages=stages, rule=rule, pilot=pilot, readers=entries("--readers", readers), watch=watch,  # type: ignore[arg-type]
        pilot_from=pilot_from, reply_tokens=reply_tokens,  # type: ignore[arg-type]
        calibrate=calibrate,  # type: ignore[arg-type]
        fail=fail, seed=seed, trust_replies=trust_replies, head=HeadSettings(kind=head, beta=beta, seed=seed),  # type: ignore[arg-type]
    )
    check_choice("command line", "engine", engine_name, ("transformers", "vllm"))
    with ExitStack() as stack:
        if engine_name == "vllm":
            engine = stack.enter_context(load_collector(model, settings, revision, dtype, device_map, chat_template))
        else:
            engine = load_engine(model, revision, dtype, device_map, chat_template, batch_size)
        asked = engine if keep is None else stack.enter_context(Kept(engine, keep))
        switch = fit_files(
            asked, data or (), out, settings, label=label, limit=limit, with_starter=with_starter, leave_out=leave_out,
            say=say, track=bar,
        )
    if as_json:
        put_json({"out": str(out), "fingerprint": switch.fingerprint, "switch": switch.describe()}, indent=2)
    else:
        _show(switch)
    say(f"written to {out}")


@app.command()
def inspect(
    switch: Annotated[str, typer.Argument(help="Switch folder or hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole configuration as JSON.")] = False,
) -> None:
    """Show what a switch reads, its thresholds, its head and the figures it was fitted with."""
    loaded = load_switch(switch)
    if as_json:
        put_json(loaded.describe(), indent=2)
    else:
        _show(loaded)


def _show(switch: Any) -> None:
    from safeswitch.switch.card import model_card

    put_markdown(model_card(switch).split("---", 2)[2])


@app.command()
def push(
    switch: Annotated[str, typer.Argument(help="Switch folder.")],
    repo: Annotated[str, typer.Option("--repo", help="Where to on the hub: user/name.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
) -> None:
    """Upload a switch to the Hugging Face hub and print its address."""
    loaded = load_switch(switch)
    try:
        address = loaded.push_to_hub(repo, private=private)
    except SafeSwitchError:
        raise
    except Exception as error:  # the hub client raises many kinds; all mean "cannot be uploaded"
        raise ArtifactError(f"cannot upload {switch} to {repo!r} on the hub: {error}") from error
    put(address)


@app.command()
def generate(
    model: ModelOption,
    source: Annotated[str, typer.Option("--in", help="JSONL or CSV file of requests, or hub data set.")],
    out: Annotated[Path, typer.Option("--out", help="JSONL file of replies; an unfinished one is gone on with.")],
    switch: SwitchOption = None,
    label: Annotated[str | None, typer.Option(help="Label of rows that have none, for the output; none is needed.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many requests.")] = None,
    max_new_tokens: TokensOption = 256,
    sample: SampleOption = False,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    hide_thinking: HideThinkingOption = False,
    thinking_budget: ThinkingBudgetOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 32,
    as_json: JsonOption = False,
    allow_other_model: OtherModelOption = False,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    chat_template: TemplateOption = None,
) -> None:
    """Answer a file of requests, resumable. A request that the model cannot take gets a row with the field 'error'."""
    from safeswitch.data.readers import read_examples
    from safeswitch.engines.jsonl import generate_file

    decoding = _sampling(sample, temperature, top_p) | _thinking(hide_thinking, thinking_budget)
    examples = read_examples(source, label=label, labelled=False, limit=limit)
    engine = load_engine(model, revision, dtype, device_map, chat_template, batch_size, allow_other_model)
    loaded = load_switch(switch)
    identity = {
        "model": engine.lm.fingerprint,
        "switch": loaded.fingerprint if loaded is not None else "none",
        "chat template": hashlib.sha256(str(engine.lm.chat_template).encode()).hexdigest()[:16],
        "dtype": str(engine.lm.model.dtype),
    }
    with bar(len(examples), "answering") as advance:
        done = generate_file(
            engine, examples, out, loaded, identity=identity, chunk=2 * batch_size, progress=advance,
            seed=seed if sample else None, max_new_tokens=max_new_tokens, **decoding,
        )
    if as_json:
        put_json({"out": str(out), **asdict(done)}, indent=2)
    say(f"{done.new} new rows, {done.rows} in all, {done.errors} of them with an error in place of a reply, in {out}")


app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(harness)
app.command()(attack)
app.command()(analyse)
app.command()(landscape)
app.command()(report)
app.command()(real)
app.command()(export)


@app.command()
def chat(
    model: ModelOption,
    switch: SwitchOption = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: TokensOption = 256,
    sample: SampleOption = False,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    hide_thinking: HideThinkingOption = False,
    thinking_budget: ThinkingBudgetOption = None,
    seed: SeedOption = 0,
    allow_other_model: OtherModelOption = False,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    chat_template: TemplateOption = None,
) -> None:
    """Talk to the guarded model; shows the gate's decision after each reply.

    The line /new starts the conversation over; an empty line or the end of input leaves. When the conversation has outgrown
    the model's context, its oldest turns are left out.
    """
    from safeswitch.cli.chat import converse

    decoding = _sampling(sample, temperature, top_p) | _thinking(hide_thinking, thinking_budget)
    engine = load_engine(model, revision, dtype, device_map, chat_template, 1, allow_other_model)
    converse(
        engine, load_switch(switch), system=system, max_new_tokens=max_new_tokens, seed=seed if sample else None, **decoding
    )


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for results.json, table.md and picture.png.")
    ] = Path("build/demo"),
    n: Annotated[int, typer.Option(min=10, help="Requests a suite.")] = 100,
    seed: SeedOption = 0,
) -> None:
    """The whole job on the embedded model: fit, compare, one table and one picture."""
    from safeswitch.nano.study import demo_settings, run_demo

    data, settings = demo_settings(seed)
    run_demo(out, n=n, data=data, settings=settings, seed=seed, say=say)
    seconds = json.loads((out / "results.json").read_text(encoding="utf-8"))["seconds"]
    put_markdown((out / "table.md").read_text(encoding="utf-8"))
    spent = ", ".join(f"{name} {value:.1f}" for name, value in seconds["stages"].items())
    put(f"seconds: {seconds['total']:.1f} in all ({spent})")
    put(f"picture: {out / 'picture.png'}")


app.command()(adapted)


@app.command()
def version() -> None:
    """Print the versions of the library and of what it stands on."""
    _print_version(True)


@nano_app.command()
def build(
    out: Annotated[Path, typer.Option("--out", help="Folder for weights and tokenizer.")],
    seed: SeedOption = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, when not the recipe's.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from an unfinished run in the folder.")] = True,
) -> None:
    """Rebuild the embedded model from nothing (resumable)."""
    from safeswitch.nano.build import build as run

    run(out, seed=seed, resume=resume, steps=steps)


@nano_app.command("switch")
def nano_switch(
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")] = Path("build/nano-switch"),
    seed: SeedOption = 0,
) -> None:
    """Fit nano's own switch anew, as the one that is shipped was."""
    from safeswitch.nano.study import fit_switch

    fit_switch(seed, say=say).save_pretrained(out)
    say(f"written to {out}")


@nano_app.command()
def table(model: ModelOption = "nano", n: Annotated[int, typer.Option(min=10, help="Requests a suite.")] = 300) -> None:
    """How the untouched model behaves on every suite."""
    from safeswitch.nano.evaluate import patient_table

    engine = load_engine(model, None, "auto", None, None)
    patient_table(engine.lm.model, engine.lm.tokenizer, n)


@nano_app.command()
def study(
    out: Annotated[Path, typer.Option("--out", help="Folder for the study.")] = Path("build/study"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of fitting.")] = 3,
    n: Annotated[int, typer.Option(min=10, help="Requests a suite.")] = 300,
    suite: Annotated[list[str] | None, typer.Option("--suite", help="Suite to run, several times; none: all.")] = None,
) -> None:
    """The effect of the switch over several seeds, against the goals, with paired tests."""
    from safeswitch.nano.effect import run_study
    from safeswitch.nano.suites import SUITES

    run_study(out, seeds=seeds, n=n, suites=tuple(suite or SUITES), say=say)
    put_markdown((out / "study.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
