"""What Inspect finds by its entry point.

Our engine is its provider ``safeswitch``, our benchmarks are its task ``benchmark``.

``inspect eval safeswitch/benchmark -T name=xstest -T data=FOLDER --model safeswitch/MODEL
-M switch=SWITCH``; MODEL is a folder, a hub id or ``nano``, and any task of Inspect runs on it
likewise. Needs ``pip install "safeswitch[inspect]"``.
"""

from __future__ import annotations

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.model import GenerateConfig, ModelAPI, modelapi

import safeswitch.nano.bench  # noqa: F401  (adds nano's suites to the benchmarks)
from safeswitch.bench.benchmark import BENCHMARKS, load
from safeswitch.bridges.inspect import EngineAPI, inspect_task, task_of
from safeswitch.bridges.tasks import over_refusal as safe_rows
from safeswitch.cli.load import load_engine, load_guard
from safeswitch.cli.options import ModelOptions
from safeswitch.core.errors import SettingError


@modelapi(name="safeswitch")
def provider() -> type[ModelAPI]:
    """The provider."""
    return LoadedAPI


class LoadedAPI(EngineAPI):
    """A model and a switch by name.

    Args:
        model_name: What follows ``safeswitch/`` in ``--model``.
        base_url, api_key: Not taken: the model runs in this process.
        config: Default generation settings.
        switch: ``-M switch=``; none is the base model.
        revision, dtype, device_map, chat_template, allow_other_model: As on the command line.

    Raises:
        SettingError: an address or a key.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        switch: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device_map: str | None = None,
        chat_template: str | None = None,
        allow_other_model: bool = False,
    ) -> None:
        if base_url or api_key:
            raise SettingError(
                "provider safeswitch runs the model in this process and takes neither "
                "address nor key"
            )
        options = ModelOptions(model_name, revision, dtype, device_map, chat_template)
        engine = load_engine(options, batch_size=1, allow_other_model=allow_other_model)
        super().__init__(engine, load_guard(switch), model_name, config)


@task
def benchmark(
    name: str, data: str | None = None, hub: bool = False, limit: int | None = None, seed: int = 0
) -> Task:
    """A benchmark of this library, scored by its first judge.

    Args:
        name: Its name, as ``--benchmark`` takes it.
        data: Folder of benchmark files.
        hub: Whether the hub may be asked.
        limit: Most requests, drawn at random.
        seed: Of that draw.
    """
    folder = Path(data) if data else None
    return inspect_task(load(BENCHMARKS[name], data=folder, hub=hub, limit=limit, seed=seed))


@task
def over_refusal(limit: int | None = None) -> Task:
    """How often safe requests that sound unsafe are refused; lower is better.

    Args:
        limit: Only the first so many.
    """
    rows = safe_rows.rows()[:limit]
    return task_of("over_refusal", rows, judge="rules", measures="safety", max_tokens=64)
