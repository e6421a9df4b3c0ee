"""Loading models, templates and switches as the command line names them.

Knows nothing of what is done with them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from safeswitch.cli.options import DTYPES, ModelOptions, is_nano, switch_folder
from safeswitch.core.errors import SettingError, check_choice
from safeswitch.core.json_types import JsonObject

if TYPE_CHECKING:
    from safeswitch.bench.candidates import Fitting
    from safeswitch.engines.transformers.engine import TransformersEngine
    from safeswitch.engines.vllm.collect import VLLMCollector
    from safeswitch.fitting.settings import FitSettings
    from safeswitch.switch.engine import ReadingEngine
    from safeswitch.switch.switch import Switch


def load_engine(
    options: ModelOptions, *, batch_size: int = 32, allow_other_model: bool = False
) -> TransformersEngine:
    """A transformers engine over the model that the options name.

    Args:
        options: Which model, and how it is loaded.
        batch_size: Largest number of rows decoded together.
        allow_other_model: Whether a switch may have been fitted on other weights.

    Raises:
        SettingError: an unknown dtype, or a chat template that cannot be read.
        ModelError: a model that cannot be loaded.
    """
    from safeswitch.engines.transformers.engine import TransformersEngine
    from safeswitch.models.chat import read_template
    from safeswitch.models.language_model import LanguageModel

    check_choice("command line", "dtype", options.dtype, DTYPES)
    text = read_template(options.chat_template)
    no_bars_in_a_file()
    extra: JsonObject = {"device_map": options.device_map} if options.device_map else {}
    lm = LanguageModel.load(
        model_folder(options.model),
        revision=options.revision,
        chat_template=text,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
        **extra,
    )
    lm.model_id = options.model
    return TransformersEngine(lm, batch_size=batch_size, allow_other_model=allow_other_model)


def model_folder(model: str) -> str:
    """The folder or hub id that ``--model`` means: ``nano`` is the embedded model."""
    from safeswitch.nano import weights_path

    return str(weights_path()) if is_nano(model) else model


def load_collector(options: ModelOptions, settings: FitSettings) -> VLLMCollector:
    """A vLLM engine that answers and reads for fitting.

    The model is loaded with transformers beside it, for its head.

    Raises:
        SettingError: vLLM is not installed, or cannot read what ``settings`` ask for.
    """
    from safeswitch.fitting.plan import FitPlan

    try:
        from safeswitch.engines.vllm.collect import VLLMCollector
    except ModuleNotFoundError as error:
        raise SettingError(
            f"--engine vllm needs {error.name}: pip install 'safeswitch[vllm]'"
        ) from error
    beside = replace(options, device_map=options.device_map or "cpu")
    lm = load_engine(beside).lm
    points = FitPlan(lm.num_layers, settings).points
    return VLLMCollector(
        lm, model_folder(options.model), points, revision=options.revision, dtype=options.dtype
    )


def load_switch(name: str) -> Switch:
    """The switch of a folder or hub id; ``nano`` is the embedded model's own.

    Raises:
        ArtifactError: none is there, or it is damaged.
    """
    from safeswitch.switch.switch import Switch

    no_bars_in_a_file()
    return Switch.from_pretrained(switch_folder(name))


def load_guard(name: str | None) -> Switch | None:
    """The switch that ``--switch`` names, where it names one."""
    return load_switch(name) if name else None


def load_fitting(
    engine: ReadingEngine,
    model: str,
    fit_data: list[str] | None,
    own: Switch | None,
    *,
    seed: int,
    leave_out: bool,
    say: Callable[[str], None],
) -> tuple[Fitting, JsonObject]:
    """How the methods of a run are fitted, and the same for the run's identity.

    They are fitted on ``fit_data``, or for nano on its own corpus.
    """
    from safeswitch.bench.candidates import fitting_on
    from safeswitch.fitting.settings import FitSettings
    from safeswitch.nano.bench import nano_fitting, nano_settings

    if model == "nano" and not fit_data:
        return nano_fitting(nano_settings(seed), own=own)
    settings = FitSettings(seed=seed)
    return fitting_on(engine, fit_data or (), settings, own, say, leave_out=leave_out)


def no_bars_in_a_file() -> None:
    """Switch off progress bars of transformers and the hub where standard error is no terminal."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
