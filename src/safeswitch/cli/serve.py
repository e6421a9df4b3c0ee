"""``safeswitch serve``: the guarded server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from safeswitch.cli.config import flags_of, option_keys, refuse_unknown, rest_of_config
from safeswitch.cli.options import (
    ENGINES,
    ModelOption,
    ModelOptions,
    OtherModelOption,
    chosen_engine,
    one_of,
    switch_folder,
)
from safeswitch.cli.serve_flags import own_keys, parse_flags
from safeswitch.core.errors import SettingError
from safeswitch.core.grammar import named_folders

if TYPE_CHECKING:
    from safeswitch.engines.settings import GuardSettings
    from safeswitch.serving.settings import ServerSettings


@dataclass(frozen=True)
class GuardOptions:
    """What guards the model, and who says so."""

    panel: ClassVar[str] = ModelOptions.panel

    model: ModelOption
    switch: Annotated[
        list[str],
        typer.Option(
            help="Switch folder or name=folder; 'nano': its own. Repeat for more; the first is "
            "the default."
        ),
    ]
    policy: Annotated[
        str,
        typer.Option(
            help="enforce, observe (scores only) or off.",
            autocompletion=one_of("enforce", "observe", "off"),
        ),
    ] = "enforce"
    injection_switch: Annotated[
        str | None,
        typer.Option(help="Switch folder that reads tool results and documents."),
    ] = None
    tool_results: Annotated[
        str,
        typer.Option(
            help="mark, strip or refuse flagged tool results of chats. None: not read.",
            autocompletion=one_of("mark", "strip", "refuse"),
        ),
    ] = ""
    policy_file: Annotated[
        Path | None,
        typer.Option(help="YAML of what is done by client and kind of harm (safeswitch policy)."),
    ] = None
    explain: Annotated[
        str,
        typer.Option(
            help="sentence: a refusal is followed by its reason; off.",
            autocompletion=one_of("off", "sentence"),
        ),
    ] = "off"
    allow_other_model: OtherModelOption = False
    engine: Annotated[
        str,
        typer.Option(
            help="vllm or transformers. None: vllm where it is installed.",
            autocompletion=one_of(*ENGINES),
        ),
    ] = ""


@dataclass(frozen=True)
class ClientOptions:
    """Who may ask, and for what."""

    panel: ClassVar[str] = "Clients"

    clients_may: Annotated[
        list[str] | None,
        typer.Option(help="A policy that clients may ask for; repeat for more."),
    ] = None
    clients_bundle: Annotated[
        list[str] | None,
        typer.Option(help="A bundle that clients may ask for; repeat for more."),
    ] = None
    clients_scores: Annotated[
        bool, typer.Option("--clients-scores", help="Clients without keys may see scores.")
    ] = False
    keys: Annotated[
        Path | None,
        typer.Option(help="File of API keys (safeswitch keys add). None lets everybody in."),
    ] = None
    rate_storage: Annotated[
        str,
        typer.Option(
            help="Where rate limits are counted: async+memory:// (each process), async+redis://..."
        ),
    ] = "async+memory://"
    tell_kinds: Annotated[
        bool,
        typer.Option("--tell-kinds", help="Every client sees the kind of harm and its severity."),
    ] = False
    refusal_field: Annotated[
        bool, typer.Option("--refusal-field", help="Put refusals into message.refusal.")
    ] = False


@dataclass(frozen=True)
class LimitOptions:
    """What one request may cost."""

    panel: ClassVar[str] = "Limits"

    max_tokens: Annotated[
        int,
        typer.Option(min=0, help="Longest reply that a client may ask for; 0: the engine's."),
    ] = 0
    max_body: Annotated[
        int,
        typer.Option(
            min=0, help="Largest request body in bytes; 0: what the context holds, at most 1 MiB."
        ),
    ] = 0
    error_delay: Annotated[
        float, typer.Option(min=0, help="Seconds before a refused request is told so.")
    ] = 0.25
    max_choices: Annotated[
        int, typer.Option(min=1, help="Most replies (n x prompts) in one request.")
    ] = 128


@dataclass(frozen=True)
class AuditOptions:
    """The record of decisions."""

    panel: ClassVar[str] = "Audit"

    audit: Annotated[
        str, typer.Option(help="SQLAlchemy URL of the audit database, as sqlite:///audit.db.")
    ] = ""
    audit_failure: Annotated[
        str,
        typer.Option(
            help="block or buffer, while the database is down.",
            autocompletion=one_of("block", "buffer"),
        ),
    ] = "block"
    audit_text: Annotated[
        bool, typer.Option("--audit-text", help="Keep the requests' text, not only its hash.")
    ] = False
    drift_bound: Annotated[
        float,
        typer.Option(help="Largest drift (safeswitch_drift_psi) that raises no alarm."),
    ] = 0.25


@dataclass(frozen=True)
class PageOptions:
    """The page in a browser."""

    panel: ClassVar[str] = "Page"

    ui: Annotated[
        bool,
        typer.Option("--ui", help="Serve a page at /ui: chat, scores, traffic, the switch."),
    ] = False
    ui_pilot_text: Annotated[
        bool,
        typer.Option(
            "--ui-pilot-text",
            help="Let the page show what is withheld, as recorded texts and (transformers) "
            "rolled-back pilot tokens: for a demo on your own machine.",
        ),
    ] = False
    ui_reviews: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file of verdicts (safeswitch review) that those who see the records may "
            "add to on the page."
        ),
    ] = None


def serve(
    context: typer.Context,
    guard: GuardOptions,
    clients: ClientOptions,
    limits: LimitOptions,
    audit: AuditOptions,
    page: PageOptions,
) -> None:
    """Serve the guarded model over HTTP, with OpenAI's API.

    Flags that are not listed here go to the engine, and so do such keys of --config. vLLM takes
    every flag of vllm serve; transformers takes --host, --port, --batch-size and others, which
    safeswitch serve --model M --switch S --engine transformers -- --help lists.
    """
    from safeswitch.engines.settings import INJECTION, GuardSettings

    bundles = {}
    for name, folder in named_folders("--switch", guard.switch).items():
        bundles[name] = _where(folder)
    if guard.injection_switch:
        if INJECTION in bundles:
            raise SettingError(f"--switch {INJECTION}=... and --injection-switch are one; give one")
        bundles[INJECTION] = _where(guard.injection_switch)
    if next(iter(bundles), None) == INJECTION:
        raise SettingError(
            f"--switch: the first bundle is the default, and cannot be {INJECTION!r}"
        )
    guarded = GuardSettings(bundles, guard.policy, guard.allow_other_model, explain=guard.explain)
    engine = chosen_engine(guard.engine)
    policy = str(guard.policy_file.absolute()) if guard.policy_file else ""
    server = replace(
        _server_settings(bundles, guard.tool_results, clients, limits, audit, page),
        policy_file=policy,
        engine=engine,
    )
    file, more = rest_of_config(context)
    if file is not None and engine == "transformers":
        refuse_unknown(file, more, {*option_keys(context.command.params), *own_keys()})
    flags = [*flags_of(more), *context.args]
    try:
        _run(engine, guard.model, guarded, server, flags)
    except ModuleNotFoundError as error:
        extra = "server" if engine == "transformers" else "vllm"
        raise SettingError(
            f"safeswitch serve needs {error.name}: pip install 'safeswitch[{extra}]'"
        ) from error


def _server_settings(
    bundles: dict[str, str],
    tool_results: str,
    clients: ClientOptions,
    limits: LimitOptions,
    audit: AuditOptions,
    page: PageOptions,
) -> ServerSettings:
    """The settings that the options make.

    Raises:
        SettingError: a value outside its limits.
    """
    from safeswitch.engines.settings import INJECTION
    from safeswitch.serving.policy import facts_of
    from safeswitch.serving.settings import ServerSettings, calibration_of

    return ServerSettings(
        clients_may=tuple(clients.clients_may or ()),
        clients_bundles=tuple(clients.clients_bundle or ()),
        clients_scores=clients.clients_scores,
        keys=str(clients.keys.absolute()) if clients.keys else "",
        rate_storage=clients.rate_storage,
        refusal_field=clients.refusal_field,
        max_tokens=limits.max_tokens,
        max_body=limits.max_body,
        error_delay=limits.error_delay,
        max_choices=limits.max_choices,
        injection=INJECTION in bundles,
        tool_results=tool_results,
        audit=audit.audit,
        audit_failure=audit.audit_failure,
        audit_text=audit.audit_text,
        ui=page.ui,
        ui_pilot_text=page.ui_pilot_text,
        ui_reviews=str(page.ui_reviews.absolute()) if page.ui_reviews else "",
        calibration=calibration_of(bundles),
        drift_bound=audit.drift_bound,
        tell_kinds=clients.tell_kinds,
        bundles=facts_of({name: bundles[name] for name in bundles if name != INJECTION}),
    )


def _run(
    engine: str, model: str, guard: GuardSettings, server: ServerSettings, flags: Sequence[str]
) -> None:
    """Run the server until it is told to stop.

    Raises:
        ModuleNotFoundError: a package of the server or of the engine is not installed.
    """
    from safeswitch.nano import weights_path
    from safeswitch.serving.middleware import check
    from safeswitch.serving.process import log_to_stderr, one_heap

    check(server)
    one_heap()
    log_to_stderr()
    where = weights_path() if model == "nano" else model
    if engine == "transformers":
        from safeswitch.serving.transformers.server import serve as run_transformers

        settings, load = parse_flags(flags, model)
        run_transformers(where, guard, server, settings, load)
        return
    from safeswitch.serving.vllm.server import serve as run_vllm

    own = ["--served-model-name", "nano", "--dtype", "float32"] if model == "nano" else []
    run_vllm(where, guard, server, [*own, *flags])


def _where(folder: str) -> str:
    """A bundle's folder with its whole path, or its name on the hub."""
    where = switch_folder(folder)
    return str(Path(where).absolute()) if Path(where).exists() else where
