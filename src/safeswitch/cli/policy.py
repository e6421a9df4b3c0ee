"""``safeswitch policy``: look a policy file over before a server is given it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.command import Group, add
from safeswitch.cli.options import ENGINES, JsonOption, one_of, switch_folder
from safeswitch.cli.screen import put_json, say
from safeswitch.core.grammar import named_folders
from safeswitch.core.json_types import JsonObject

policy_app = typer.Typer(
    cls=Group, no_args_is_help=True, help="What is done by client and kind of harm: a YAML file."
)
SwitchesOption = Annotated[
    list[str],
    typer.Option(help="Switch folder or name=folder that it is used with; repeat for more."),
]


def check(
    file: Annotated[Path, typer.Argument(help="Policy file.")],
    switch: SwitchesOption,
    engine: Annotated[
        str,
        typer.Option(help="vllm or transformers.", autocompletion=one_of(*ENGINES)),
    ] = "transformers",
    keys: Annotated[
        Path | None, typer.Option(help="File of API keys; the policy may name no others.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a policy file with the bundles that it is used with, and show what it comes to.

    One line for each client and bundle; (no key) stands for every client that the file does not
    name. Ends with exit code 2 where the file cannot be used.
    """
    from safeswitch.serving.keys import check_names
    from safeswitch.serving.policy import Facts, check_policy, facts_of, read_policy

    policy, name = read_policy(file)
    folders = {n: switch_folder(f) for n, f in named_folders("--switch", switch).items()}
    bundles = [Facts.parse(n, facts) for n, facts in facts_of(folders).items()]
    check_policy(policy, bundles, engine)
    if keys is not None:
        check_names(policy.keys, keys)
    found: list[JsonObject] = []
    for bundle in bundles:
        for client in (None, *policy.keys):
            rules = policy.rules(client, bundle).to_dict()
            found.append({"client": client, "bundle": bundle.name, **rules})
    if as_json:
        put_json({"policy": name, "rules": found}, indent=2)
        return
    for row in found:
        say(f"{row['client'] or '(no key)'}, {row['bundle']}: {_line(row)}")
    say(f"policy {name} can be used")


def schema() -> None:
    """Print the JSON schema of policy files, for editors."""
    from safeswitch.serving.policy import schema as policy_schema

    put_json(policy_schema(), indent=2)


def _line(row: JsonObject) -> str:
    kinds = [f"{kind} {_rule(rule)}" for kind, rule in row["kinds"].items()]
    return ", ".join([*kinds, f"everything else {_rule(row['default'])}"])


def _rule(rule: JsonObject) -> str:
    limit = rule["threshold"]
    return str(rule["act"]) if limit is None else f"{rule['act']} above {limit:.3f}"


add(policy_app, check)
add(policy_app, schema)
