"""``safeswitch push``."""

from __future__ import annotations

from typing import Annotated

import typer

from safeswitch.cli.load import load_switch
from safeswitch.cli.screen import put
from safeswitch.core.errors import ArtifactError, SafeSwitchError


def push(
    switch: Annotated[str, typer.Argument(help="Switch folder.")],
    repo: Annotated[str, typer.Option("--repo", help="Where to on the hub: user/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Create the repository as private.")
    ] = False,
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
