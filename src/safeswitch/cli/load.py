"""Loading models, templates and switches as the command line names them. Knows nothing of what is done with them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from safeswitch.cli.options import is_nano, switch_folder
from safeswitch.core.errors import SettingError, check_choice

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_engine(
    model: str, revision: str | None, dtype: str, device_map: str | None, template: str | None, batch_size: int = 32,
    allow_other_model: bool = False, trust_remote_code: bool = False,
) -> Any:
    """A transformers engine over the model that ``--model`` names."""
    from safeswitch.engines.transformers_engine import TransformersEngine
    from safeswitch.models.chat import read_template
    from safeswitch.models.language_model import LanguageModel

    check_choice("command line", "dtype", dtype, DTYPES)
    text = read_template(template)
    no_bars_in_a_file()
    extra: dict[str, Any] = {"device_map": device_map} if device_map else {}
    lm = LanguageModel.load(
        model_folder(model), revision=revision, chat_template=text, dtype=dtype,
        trust_remote_code=trust_remote_code, **extra,
    )
    lm.model_id = model
    return TransformersEngine(lm, batch_size=batch_size, allow_other_model=allow_other_model)


def model_folder(model: str) -> str:
    """The folder or hub id that ``--model`` means: ``nano`` is the embedded model."""
    from safeswitch.nano import weights_path

    return str(weights_path()) if is_nano(model) else model


def load_collector(
    model: str, settings: Any, revision: str | None, dtype: str, device_map: str | None, template: str | None
) -> Any:
    """A vLLM engine that answers and reads for fitting; the model is loaded with transformers beside it, for its head.

    Raises:
        SettingError: vLLM is not installed, or cannot read what ``settings`` ask for.
    """
    from safeswitch.switch.fit_gate import fit_points

    try:
        from safeswitch.engines.vllm.collect import VLLMCollector
    except ModuleNotFoundError as error:
        raise SettingError(f"--engine vllm needs {error.name}: pip install 'safeswitch[vllm]'") from error
    lm = load_engine(model, revision, dtype, device_map or "cpu", template).lm
    points = fit_points(lm.num_layers, settings)
    return VLLMCollector(lm, model_folder(model), points, revision=revision, dtype=dtype)


def load_switch(name: str | None) -> Any:
    from safeswitch.switch.switch import Switch

    no_bars_in_a_file()
    return Switch.from_pretrained(switch_folder(name)) if name else None


def load_fitting(
    engine: Any, model: str, fit_data: list[str] | None, own: Any, seed: int, leave_out: bool, say: Callable[[str], None]
) -> tuple[Any, dict[str, Any]]:
    """How a bench's methods are fitted, and the same for its identity: on ``--fit-data``, or on nano's own corpus for nano."""
    from safeswitch.evaluation.fit_source import fitting_on
    from safeswitch.nano.bench import nano_fitting, nano_settings
    from safeswitch.switch.fit_settings import FitSettings

    if model == "nano" and not fit_data:
        return nano_fitting(nano_settings(seed), own=own)
    return fitting_on(engine, fit_data or (), FitSettings(seed=seed), own, say, leave_out=leave_out)


def no_bars_in_a_file() -> None:
    """Switch off the progress bars of transformers and of the hub where standard error is no terminal."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
