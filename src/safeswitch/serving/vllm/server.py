"""vLLM's own OpenAI server with the guard in it: every part is put there by a flag of ``vllm
serve``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

# the parser by way of the command: the module that defines it is another one in 0.33
from vllm.entrypoints.cli.serve import ServeSubcommand, make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.engines.settings import KEY, GuardSettings
from safeswitch.engines.vllm.engine import run_dtype
from safeswitch.engines.vllm.settings import engine_flags, prefer_v1_runner
from safeswitch.models.load import check_for_vllm
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.vllm.page import refuse_page_behind_other_keys

MIDDLEWARE = "safeswitch.serving.vllm.plugin.SafeSwitchMiddleware"
GRACE = "30"
"""Seconds that running requests have to end when the server is told to stop."""
OWN_FLAGS = (
    "--logits-processors", "--worker-extension-cls", "--model-class-overrides", "--logprobs-mode", "--speculative-config",
)  # fmt: skip


def serve_arguments(model: str, guard: GuardSettings, flags: Sequence[str]) -> list[str]:
    """The arguments of ``vllm serve`` that serve ``model`` guarded, with the user's own ``flags``
    after them.

    Raises:
        SettingError: a flag that would take the guard out.
        ModelError: a GGUF file or an adapter.
    """
    for flag in flags:
        if _name(flag) in OWN_FLAGS:
            raise SettingError(
                f"safeswitch serve: {flag.split('=')[0]} cannot be given: the guard sets it, "
                "or cannot stand beside it"
            )
    check_for_vllm(model)
    user, flags = _taken(flags, "--additional-config")
    given = {_name(flag) for flag in flags}
    config = _config(model, flags)
    own = _guard_flags(guard, config)
    additional = {**_mapping(user), **own["additional_config"]}
    grace = [] if "--shutdown-timeout" in given else ["--shutdown-timeout", GRACE]
    host = [] if given & {"--host", "--uds"} else ["--host", "127.0.0.1"]
    dtype = [] if "--dtype" in given else ["--dtype", run_dtype(config, "auto")]
    whole = ["--no-enable-chunked-prefill"] if "enable_chunked_prefill" in own else []
    return [
        model, *host, *grace, *dtype, "--additional-config", json.dumps(additional),
        "--logits-processors", *own["logits_processors"], "--worker-extension-cls", own["worker_extension_cls"],
        "--model-class-overrides", json.dumps(own["model_class_overrides"]), "--logprobs-mode", own["logprobs_mode"],
        "--middleware", MIDDLEWARE, *whole, *flags,
    ]  # fmt: skip


def _name(flag: str) -> str:
    return flag.split("=")[0].replace("_", "-")


def _taken(flags: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """What a flag is set to, None where it is not given; and the other flags."""
    for i, flag in enumerate(flags):
        if _name(flag) == name:
            inside = "=" in flag
            value = flag.partition("=")[2] if inside else (*flags, "")[i + 1]
            return value, [*flags[:i], *flags[i + (1 if inside else 2) :]]
    return None, list(flags)


def _mapping(value: str | None) -> JsonObject:
    """The user's ``--additional-config``.

    Raises:
        SettingError: no JSON mapping.
    """
    try:
        found = json.loads(value) if value is not None else {}
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise SettingError(
            f"safeswitch serve: --additional-config must be a JSON mapping; got {value!r}"
        )
    return found


def _config(model: str, flags: Sequence[str]) -> PretrainedConfig:
    revision, _ = _taken(flags, "--revision")
    trusted = any(_name(flag) == "--trust-remote-code" for flag in flags)
    config: PretrainedConfig = AutoConfig.from_pretrained(
        model, revision=revision or "main", trust_remote_code=trusted
    )
    return config


def _guard_flags(guard: GuardSettings, config: PretrainedConfig) -> JsonObject:
    return engine_flags(guard, list(config.architectures or []))


def _as_parsed(value: object) -> Any:
    """A value as it comes out of JSON, where pairs are lists."""
    return json.loads(json.dumps(value))


def refuse_changed_guard(args: Any, own: Mapping[str, object]) -> None:
    """Raise where a flag has changed what the guard sets, however it was written: shortened, with a
    dot, or in a file named by ``--config``.

    Args:
        args: What vLLM's parser has made of the flags.
        own: What the guard sets, by the names of ``AsyncEngineArgs``.

    Raises:
        SettingError: one of these is another, the middleware is gone, or tokens are speculated.
    """
    found = dict(vars(args))
    given = found["additional_config"]
    ours = given.get(KEY) if isinstance(given, Mapping) else None
    if ours != _as_parsed(own["additional_config"])[KEY]:
        raise SettingError(
            "safeswitch serve: --additional-config is given once, as one JSON mapping and in this "
            f"spelling, without the key {KEY!r}, which is the guard's"
        )
    changed = [
        name
        for name, value in own.items()
        if name != "additional_config" and found[name] != _as_parsed(value)
    ]
    changed += ["middleware"] if MIDDLEWARE not in args.middleware else []
    changed += [name for name in found if name.startswith("spec") and found[name]]
    if changed:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise SettingError(
            f"safeswitch serve: {flags} cannot be given, in no spelling and in no file: the guard "
            "sets it, or cannot stand beside it"
        )


def refuse_other_front_ends(args: Any) -> None:
    """Raise where vLLM would take requests past its HTTP server in Python, and so past the
    middleware.

    Args:
        args: What vLLM's parser has made of the flags.

    Raises:
        SettingError: gRPC, or the front end in Rust.
    """
    if args.grpc:
        raise SettingError("safeswitch serve: --grpc cannot be given; its requests pass no guard")
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise SettingError(
            "safeswitch serve: unset VLLM_USE_RUST_FRONTEND; requests to that front end pass no "
            "guard"
        )


def serve(
    model: str | Path, guard: GuardSettings, server: ServerSettings, flags: Sequence[str]
) -> None:
    """Run the server until it is told to stop."""
    server.export()
    prefer_v1_runner()
    command = ServeSubcommand()
    parser = make_arg_parser(FlexibleArgumentParser(prog="safeswitch serve"))
    args = parser.parse_args(serve_arguments(str(model), guard, flags))
    refuse_changed_guard(args, _guard_flags(guard, _config(str(model), flags)))
    refuse_other_front_ends(args)
    refuse_page_behind_other_keys(args, server)
    command.validate(args)
    command.cmd(args)
