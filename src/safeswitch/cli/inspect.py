"""``safeswitch inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from safeswitch.cli.load import load_switch
from safeswitch.cli.screen import put_json, put_markdown

if TYPE_CHECKING:
    from safeswitch.switch.switch import Switch


def inspect(
    switch: Annotated[str, typer.Argument(help="Switch folder or hub id.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole configuration as JSON.")
    ] = False,
) -> None:
    """Show what a switch reads, its thresholds, its head and the figures it was fitted with."""
    loaded = load_switch(switch)
    if as_json:
        put_json(loaded.describe(), indent=2)
    else:
        show_card(loaded)


def show_card(switch: Switch) -> None:
    """Print the card of a switch, without the fields that are for the hub."""
    from safeswitch.switch.card import model_card

    put_markdown(model_card(switch).split("---", 2)[2])
