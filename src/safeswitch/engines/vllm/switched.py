"""vLLM engines of one model, one after the other: each switch gets an engine of its own.

A vLLM engine is bound to its switch when it is made, and an untouched model runs in a stock engine
with nothing of ours in it; so what a switch costs is seen. Knows nothing of benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vllm
from huggingface_hub import snapshot_download
from transformers import AutoConfig

from safeswitch.core.errors import ModelError, SettingError
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Decision, Prompt, Reply
from safeswitch.engines.answering import AnsweringEngine
from safeswitch.engines.vllm.engine import VLLMEngine, run_dtype
from safeswitch.models.fingerprint import fingerprint_of_files
from safeswitch.models.load import check_for_vllm
from safeswitch.switch.engine import EngineFacts
from safeswitch.switch.switch import Switch

_CHUNK = 512
"""Requests at once: twice what vLLM runs at a time by default, so that its batch stays full."""


class SwitchedVLLM(AnsweringEngine):
    """Answers under the switch that it is given, in a vLLM engine that was made for it.

    Args:
        model: Model folder or hub id.
        model_id: What the model is called; None: ``model``.
        revision: Of the model on the hub.
        allow_other_model: Accept a switch fitted on other weights.
        chat_template: A Jinja template instead of the tokenizer's.
        engine_args: Arguments of vLLM's ``AsyncEngineArgs``.

    Raises:
        ModelError: a GGUF file or an adapter, or a model that is not to be had.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        model_id: str | None = None,
        revision: str | None = None,
        allow_other_model: bool = False,
        chat_template: str | None = None,
        engine_args: JsonMapping | None = None,
    ) -> None:
        super().__init__("vLLM's engine")
        check_for_vllm(model)
        self._model = _folder(model, revision)
        self._allow_other, self._template = allow_other_model, chat_template
        self._args = dict(engine_args or {})
        self._facts = self._read_facts(model_id or str(model), revision)
        self._engine: VLLMEngine | None = None
        self._runs: str | None = None

    def _read_facts(self, model_id: str, revision: str | None) -> EngineFacts:
        """From the model's files, before an engine is made."""
        trusted = bool(self._args.get("trust_remote_code", False))
        config = AutoConfig.from_pretrained(self._model, trust_remote_code=trusted)
        text = config.get_text_config()
        return EngineFacts(
            model_id,
            fingerprint_of_files(self._model, trust_remote_code=trusted),
            _CHUNK,
            revision,
            self._template,
            f"torch.{run_dtype(config, str(self._args.get('dtype', 'auto')))}",
            num_layers=text.num_hidden_layers,
            context_length=self._args.get("max_model_len") or text.max_position_embeddings,
            runs_in=f"vllm {vllm.__version__}",
        )

    @property
    def facts(self) -> EngineFacts:
        """Of the model's files."""
        return self._facts

    def generate(
        self, prompts: Sequence[Prompt], switch: Switch | None = None, **options: Any
    ) -> list[Reply]:
        """One reply per prompt, in order; see :meth:`VLLMEngine.generate`.

        Args:
            prompts: Texts, message lists or examples.
            switch: What is in force; an engine with another one is shut down first.
            options: Of :meth:`VLLMEngine.generate`.

        Raises:
            SettingError: a switch or engine arguments that vLLM cannot run, or an unknown option.
            FingerprintError: a switch of another model.
        """
        return self._engine_for(switch).generate(prompts, **options)

    def screen(self, prompts: Sequence[Prompt], switch: Switch) -> list[Decision]:
        """What stage 1 of ``switch`` decides on each prompt; see :meth:`VLLMEngine.screen`."""
        return self._engine_for(switch).screen(prompts)

    def _engine_for(self, switch: Switch | None) -> VLLMEngine:
        wanted = "" if switch is None or switch.idle else switch.fingerprint
        if self._engine is None or self._runs != wanted:
            self.close()
            self._engine, self._runs = self._made(switch if wanted else None), wanted
        return self._engine

    def _made(self, switch: Switch | None) -> VLLMEngine:
        try:
            return VLLMEngine(
                self._model,
                switch,
                allow_other_model=self._allow_other,
                chat_template=self._template,
                **self._args,
            )
        except TypeError as error:
            # vLLM's arguments are a dataclass, which refuses a name that it lacks in this way
            raise SettingError(f"vLLM takes no such engine arguments: {error}") from error

    def close(self) -> None:
        """Shut the engine down that runs, where one does."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._runs = None

    def __enter__(self) -> SwitchedVLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _folder(model: str | Path, revision: str | None) -> Path:
    """The model's files on disk, from the hub where they are not there yet.

    Raises:
        ModelError: they cannot be had.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(str(model), revision=revision))
    except Exception as error:  # the hub client raises many kinds; all mean "cannot be had"
        raise ModelError(f"cannot load the model {str(model)!r}: {error}") from error
