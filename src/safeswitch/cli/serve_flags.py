"""The flags of ``safeswitch serve --engine transformers``, which follow those of the guard."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from safeswitch.cli.command import Command, spelled_out
from safeswitch.cli.config import option_keys
from safeswitch.cli.options import (
    BatchOption,
    DeviceMapOption,
    DtypeOption,
    RevisionOption,
    TemplateOption,
    TrustOption,
)
from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject

if TYPE_CHECKING:
    from safeswitch.serving.transformers.server import TransformersSettings

_PROGRAM = "safeswitch serve --engine transformers"
HostOption = Annotated[str, typer.Option(help="Address to listen at.")]
PortOption = Annotated[int, typer.Option(help="Port to listen at; 0: a free one.")]
NameOption = Annotated[str, typer.Option(help="Name of the model for clients.")]
WaitOption = Annotated[
    float, typer.Option(help="How long the first request of a batch waits for others.")
]
QueueOption = Annotated[
    int, typer.Option(help="Most replies that wait; further requests are turned away.")
]
GraceOption = Annotated[
    float, typer.Option(help="Seconds that running replies have when the server stops.")
]
OriginsOption = Annotated[
    str, typer.Option(help="JSON list of origins whose pages may ask (CORS).")
]
KeyfileOption = Annotated[str | None, typer.Option(help="Key for HTTPS.")]
CertfileOption = Annotated[str | None, typer.Option(help="Certificate for HTTPS.")]


def parse_flags(flags: Sequence[str], name: str) -> tuple[TransformersSettings, JsonObject]:
    """Settings of the server's process, and options of :meth:`LanguageModel.load`.

    Args:
        flags: As on the command line.
        name: Name under which the model is served where no flag says another.

    Unknown flags and values of another type are typer's usage errors, which end the command.

    Raises:
        SettingError: a value outside its limits, or flags that do not go together.
    """
    found = _command(name).main(list(flags), prog_name=_PROGRAM, standalone_mode=False)
    if isinstance(found, int):  # the exit code of --help
        raise typer.Exit(found)
    settings, load = found
    return settings, {key: value for key, value in load.items() if value is not None}


def own_keys() -> set[str]:
    """The names of the flags, without the dashes in front."""
    return set(option_keys(_command("model").params))


def _command(name: str) -> Command:
    """The parser of the flags, whose defaults are those of the settings."""
    from safeswitch.models.chat import read_template
    from safeswitch.serving.transformers.batcher import BatchSettings
    from safeswitch.serving.transformers.server import TransformersSettings

    own = TransformersSettings(name=name)
    batching = own.batching

    def flags(
        host: HostOption = own.host,
        port: PortOption = own.port,
        served_model_name: NameOption = own.name,
        batch_size: BatchOption = batching.batch_size,
        max_wait_ms: WaitOption = batching.max_wait_ms,
        queue: QueueOption = batching.queue,
        grace: GraceOption = own.grace,
        allowed_origins: OriginsOption = "[]",
        ssl_keyfile: KeyfileOption = None,
        ssl_certfile: CertfileOption = None,
        dtype: DtypeOption = "auto",
        device_map: DeviceMapOption = None,
        revision: RevisionOption = None,
        chat_template: TemplateOption = None,
        trust_remote_code: TrustOption = False,
    ) -> Any:
        """Flags of the transformers engine, behind those of safeswitch serve."""
        settings = TransformersSettings(
            host=host,
            port=port,
            name=served_model_name,
            grace=grace,
            batching=BatchSettings(batch_size, max_wait_ms, queue),
            tls=_tls(ssl_keyfile, ssl_certfile),
            allowed_origins=_origins(allowed_origins),
        )
        load: JsonObject = {"dtype": dtype, "device_map": device_map, "revision": revision}
        load["trust_remote_code"] = trust_remote_code or None
        return settings, {**load, "chat_template": read_template(chat_template)}

    return _parser(flags)


def _parser(function: Callable[..., Any]) -> Command:
    """A command of its own, outside the command line."""
    app = typer.Typer(
        add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    app.command(cls=Command)(spelled_out(function, config=False))
    made = get_command(app)
    assert isinstance(made, Command)
    return made


def _origins(text: str) -> tuple[str, ...]:
    wrong = f"{_PROGRAM}: --allowed-origins must be a JSON list of texts; got {text!r}"
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SettingError(wrong) from error
    if not isinstance(found, list) or not all(isinstance(origin, str) for origin in found):
        raise SettingError(wrong)
    return tuple(found)


def _tls(keyfile: str | None, certfile: str | None) -> tuple[str, str] | None:
    if keyfile is not None and certfile is not None:
        return keyfile, certfile
    if keyfile is not None or certfile is not None:
        raise SettingError(f"{_PROGRAM}: --ssl-keyfile and --ssl-certfile belong together")
    return None
