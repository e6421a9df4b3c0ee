"""``safeswitch serve``: the guarded server."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.options import ModelOption, OtherModelOption, switch_folder
from safeswitch.core.errors import SettingError, check_choice
from safeswitch.core.grammar import named_folders

ENGINES = ("vllm", "transformers")


def serve(
    context: typer.Context,
    model: ModelOption,
    switch: Annotated[
        list[str], typer.Option(help="Switch folder, or name=folder, several times; the first is the default. 'nano': its own.")
    ],
    policy: Annotated[str, typer.Option(help="enforce, observe (scores only) or off.")] = "enforce",
    clients_may: Annotated[list[str] | None, typer.Option(help="A policy that clients may ask for; several times.")] = None,
    clients_bundle: Annotated[list[str] | None, typer.Option(help="A bundle that clients may ask for; several times.")] = None,
    clients_scores: Annotated[bool, typer.Option("--clients-scores", help="Clients without keys may see scores.")] = False,
    keys: Annotated[Path | None, typer.Option(help="File of API keys (safeswitch keys add); none lets everybody in.")] = None,
    rate_storage: Annotated[
        str, typer.Option(help="Where rate limits are counted: async+memory:// (each process), async+redis://...")
    ] = "async+memory://",
    max_tokens: Annotated[int, typer.Option(min=0, help="Longest reply that a client may ask for; 0: the engine's.")] = 0,
    refusal_field: Annotated[bool, typer.Option("--refusal-field", help="Put refusals into message.refusal.")] = False,
    audit: Annotated[str, typer.Option(help="SQLAlchemy URL of the audit database, as sqlite:///audit.db.")] = "",
    audit_failure: Annotated[str, typer.Option(help="block or buffer, while the database is down.")] = "block",
    audit_text: Annotated[bool, typer.Option("--audit-text", help="Keep the requests' text, not only its hash.")] = False,
    max_body: Annotated[
        int, typer.Option(min=0, help="Largest request body in bytes; 0: what the context holds, at most 1 MiB.")
    ] = 0,
    error_delay: Annotated[float, typer.Option(min=0, help="Seconds before a refused request is told so.")] = 0.25,
    max_choices: Annotated[int, typer.Option(min=1, help="Most replies (n x prompts) in one request.")] = 128,
    allow_other_model: OtherModelOption = False,
    engine: Annotated[str, typer.Option(help="vllm or transformers; default: vllm where it is installed.")] = "",
) -> None:
    """An OpenAI-compatible server, guarded. On vLLM any flag of `vllm serve` may follow; on transformers --host, --port,
    --batch-size, --max-wait-ms and others: `safeswitch serve --model M --switch S --engine transformers -- --help`."""
    from safeswitch.engines.vllm.settings import GuardSettings
    from safeswitch.nano import weights_path
    from safeswitch.serving.heap import one_heap
    from safeswitch.serving.logs import log_to_stderr
    from safeswitch.serving.settings import ServerSettings, calibration_of

    bundles = {name: _where(folder) for name, folder in named_folders("--switch", switch).items()}
    guard = GuardSettings(bundles, policy, allow_other_model)
    server = ServerSettings(
        clients_may=tuple(clients_may or ()), clients_bundles=tuple(clients_bundle or ()), refusal_field=refusal_field,
        clients_scores=clients_scores, keys=str(keys.absolute()) if keys else "", rate_storage=rate_storage,
        max_tokens=max_tokens, max_body=max_body, audit=audit, audit_failure=audit_failure, audit_text=audit_text,
        calibration=calibration_of(bundles), max_choices=max_choices, error_delay=error_delay,
    )
    chosen, where, flags = _engine(engine), weights_path() if model == "nano" else model, list(context.args)
    try:
        from safeswitch.serving.middleware import check

        check(server)
        one_heap()
        log_to_stderr()
        if chosen == "transformers":
            from safeswitch.serving.transformers.server import serve as run_transformers

            run_transformers(where, model, guard, server, flags)
            return
        from safeswitch.serving.vllm.server import serve as run
    except ModuleNotFoundError as error:
        extra = "server" if chosen == "transformers" else "vllm"
        raise SettingError(f"safeswitch serve needs {error.name}: pip install 'safeswitch[{extra}]'") from error
    if model == "nano":
        flags = ["--served-model-name", "nano", "--dtype", "float32", *flags]
    run(where, guard, server, flags)


def _engine(asked: str) -> str:
    """The engine that is asked for, or vLLM where it is installed; says which where nobody asked."""
    if asked:
        check_choice("command line", "engine", asked, ENGINES)
        return asked
    chosen = "vllm" if find_spec("vllm") is not None else "transformers"
    typer.echo(f"engine: {chosen} (--engine {' or '.join(ENGINES)} chooses)", err=True)
    return chosen


def _where(folder: str) -> str:
    """A bundle's folder with its whole path, or its name on the hub."""
    where = switch_folder(folder)
    return str(Path(where).absolute()) if Path(where).exists() else where
