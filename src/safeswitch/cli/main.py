"""``safeswitch``: one verb per step. Each command parses, calls one function, prints.

``app`` is the whole command line; ``typer.main.get_command(app)`` gives its commands and options to
scripts, as the group's ``commands`` and each command's ``params``.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from safeswitch.cli.adapted import adapted
from safeswitch.cli.analyse import analyse
from safeswitch.cli.attack import attack
from safeswitch.cli.audit import audit_app
from safeswitch.cli.chat import chat
from safeswitch.cli.command import Group, add
from safeswitch.cli.compare import compare
from safeswitch.cli.data import data_app
from safeswitch.cli.demo import demo
from safeswitch.cli.doctor import doctor
from safeswitch.cli.eval import evaluate
from safeswitch.cli.export import export
from safeswitch.cli.fit import fit
from safeswitch.cli.generate import generate
from safeswitch.cli.harness import harness
from safeswitch.cli.inspect import inspect
from safeswitch.cli.keys import keys_app
from safeswitch.cli.landscape import landscape
from safeswitch.cli.nano import nano_app
from safeswitch.cli.policy import policy_app
from safeswitch.cli.push import push
from safeswitch.cli.real import real
from safeswitch.cli.recalibrate import recalibrate
from safeswitch.cli.report import report
from safeswitch.cli.review import review
from safeswitch.cli.score import score
from safeswitch.cli.screen import complain, say, take_any_text
from safeswitch.cli.serve import serve
from safeswitch.cli.version import version
from safeswitch.core.errors import SafeSwitchError

_RESUMED = "the run folder keeps what is done, and the same command resumes there"
_KEPT = {
    "fit": (
        "a switch is written only when it is fitted, so the folder holds a whole one "
        "or is as it was"
    ),
    "generate": "the replies written so far are kept, and the same command resumes there",
    "score": "the decisions written so far are kept, and the same command resumes there",
    "eval": _RESUMED,
    "attack": _RESUMED,
    "compare": _RESUMED,
    "review": "the verdicts given so far are kept, and the same command goes on with the rest",
}


class Verbs(Group):
    """Says on an interrupt what is kept, and ends with exit code 130; Typer would say nothing."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            kept = _KEPT.get(str(ctx.invoked_subcommand), "no file is left half-written")
            say(f"interrupted; {kept}")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: deliberate errors end in one line and exit code 2."""
    take_any_text()
    try:
        app(prog_name="safeswitch")
    except SafeSwitchError as error:
        complain(f"{type(error).__name__}: {error}")
        sys.exit(2)


def _print_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the versions and leave.",
        ),
    ] = False,
) -> None:
    """Guard a language model with its own activations.

    Probers decide, a refusal head acts, only when needed. Every command takes --config file.yaml.
    """


MAKE = "Make a switch"
USE = "Use it"
MEASURE = "Measure it"
BESIDE = "Beside these"

add(app, fit, panel=MAKE)
add(app, inspect, panel=MAKE)
add(app, adapted, panel=MAKE)
add(app, review, panel=MAKE)
add(app, recalibrate, panel=MAKE)
add(app, push, panel=MAKE)
add(app, export, panel=MAKE)
app.add_typer(data_app, name="data", rich_help_panel=MAKE)
add(app, chat, panel=USE)
add(app, generate, panel=USE)
add(app, score, panel=USE)
add(app, serve, panel=USE, passes_on=True)
add(app, doctor, panel=USE)
app.add_typer(keys_app, name="keys", rich_help_panel=USE)
app.add_typer(policy_app, name="policy", rich_help_panel=USE)
app.add_typer(audit_app, name="audit", rich_help_panel=USE)
add(app, evaluate, "eval", panel=MEASURE)
add(app, compare, panel=MEASURE)
add(app, attack, panel=MEASURE)
add(app, harness, panel=MEASURE)
add(app, analyse, panel=MEASURE)
add(app, landscape, panel=MEASURE)
add(app, report, panel=MEASURE)
add(app, demo, panel=BESIDE)
add(app, real, panel=BESIDE)
app.add_typer(nano_app, name="nano", rich_help_panel=BESIDE)
add(app, version, panel=BESIDE)


if __name__ == "__main__":
    main()
