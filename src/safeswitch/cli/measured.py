"""The model under test as ``eval``, ``compare``, ``attack`` and ``generate`` name it: loaded here
by transformers or vLLM, or behind a server.

Knows nothing of what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from safeswitch.cli.load import load_engine, model_folder, no_bars_in_a_file
from safeswitch.cli.options import ENGINES, MeasuredModelOptions, ModelOptions
from safeswitch.core.errors import SettingError, check_choice
from safeswitch.core.json_types import JsonMapping, JsonObject

if TYPE_CHECKING:
    from safeswitch.engines.remote import RemoteEngine
    from safeswitch.engines.vllm.switched import SwitchedVLLM
    from safeswitch.switch.engine import EngineFacts, MeasuredEngine
    from safeswitch.switch.switch import Switch

RunsIn = Literal["transformers", "vllm", "server"]
_LOADING = ("revision", "dtype", "device_map", "chat_template", "trust_remote_code")


def runs_in(options: MeasuredModelOptions, *, beside: bool = False) -> RunsIn:
    """What generates.

    Args:
        options: Of the command.
        beside: Whether a server may stand beside a model that is loaded here, which then generates.

    Raises:
        SettingError: neither a model nor a server, both, or options that would have no effect.
    """
    check_choice("command line", "engine", options.engine, ENGINES)
    if not options.model and options.url is None:
        raise SettingError("command line: give --model, or --url with --served-model")
    if options.model and options.url is not None and not beside:
        raise SettingError("command line: give --model or --url, not both")
    if (options.url is None) != (options.served_model is None):
        raise SettingError("command line: --url and --served-model go together")
    if not options.model:
        idle = [name for name in _LOADING if getattr(options, name) != _default(name)]
        idle += ["engine"] if options.engine != _default("engine") else []
        _refuse_idle(idle, "a server has loaded its model")
        runs: RunsIn = "server"
    else:
        runs = "vllm" if options.engine == "vllm" else "transformers"
    if runs != "vllm" and options.vllm_args is not None:
        _refuse_idle(["vllm_args"], "they are for --engine vllm")
    return runs


def _default(name: str) -> object:
    return MeasuredModelOptions.__dataclass_fields__[name].default


def _refuse_idle(names: list[str], why: str) -> None:
    if names:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise SettingError(f"command line: {named} would have no effect, since {why}")


@contextmanager
def measured_engine(
    options: MeasuredModelOptions, *, allow_other_model: bool = False, beside: bool = False
) -> Iterator[MeasuredEngine]:
    """The engine that the options name, shut down at the end.

    Args:
        options: Of the command.
        allow_other_model: Whether a switch may have been fitted on other weights.
        beside: See :func:`runs_in`.

    Raises:
        SettingError: see :func:`runs_in`; also where vLLM or ``openai`` are not installed.
        ModelError: a model that cannot be loaded.
    """
    runs = runs_in(options, beside=beside)
    if runs == "server":
        yield remote_engine(options)
    elif runs == "vllm":
        arguments = _arguments(options.vllm_args)
        with vllm_engine(options, allow_other_model, arguments) as engine:
            yield engine
    else:
        yield load_engine(
            options, batch_size=options.batch_size, allow_other_model=allow_other_model
        )


def remote_engine(options: MeasuredModelOptions) -> RemoteEngine:
    """The server at ``--url``.

    Raises:
        SettingError: an address that is none.
        SafeSwitchError: ``openai`` is not installed.
    """
    from safeswitch.engines.chat_server import ChatServer
    from safeswitch.engines.remote import RemoteEngine

    # runs_in has refused other combinations
    assert options.url is not None
    assert options.served_model is not None
    server = ChatServer(options.served_model, options.url)
    return RemoteEngine(server, in_flight=options.batch_size)


def vllm_engine(
    options: ModelOptions, allow_other_model: bool, arguments: JsonMapping
) -> SwitchedVLLM:
    """A vLLM engine for each switch that it is given, over the model that the options name.

    Args:
        options: Of the command.
        allow_other_model: Whether a switch may have been fitted on other weights.
        arguments: More of vLLM's engine arguments.

    Raises:
        SettingError: vLLM is not installed, or options that would have no effect.
        ModelError: a model that vLLM cannot read.
    """
    from safeswitch.models.chat import read_template

    try:
        from safeswitch.engines.vllm.switched import SwitchedVLLM
    except ModuleNotFoundError as error:
        raise SettingError(
            f"--engine vllm needs {error.name}: pip install 'safeswitch[vllm]'"
        ) from error
    if options.device_map is not None:
        _refuse_idle(["device_map"], "vLLM places the model itself")
    no_bars_in_a_file()
    return SwitchedVLLM(
        model_folder(options.model),
        model_id=options.model,
        revision=options.revision,
        allow_other_model=allow_other_model,
        chat_template=read_template(options.chat_template),
        engine_args={
            "dtype": options.dtype,
            "trust_remote_code": options.trust_remote_code,
            **arguments,
        },
    )


def file_identity(facts: EngineFacts, switch: Switch | None) -> dict[str, str]:
    """What must be the same for a file of replies or decisions to be resumed."""
    from safeswitch.bench.bench import identity_of

    known = {name.replace("_", " "): str(value) for name, value in identity_of(facts).items()}
    return {**known, "switch": switch.fingerprint if switch is not None else "none"}


def _arguments(text: str | None) -> JsonObject:
    """Engine arguments of the command line.

    Raises:
        SettingError: no JSON object.
    """
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise SettingError(f"command line: --vllm-args is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise SettingError(f"command line: --vllm-args must be a JSON object; got {found!r}")
    return found
