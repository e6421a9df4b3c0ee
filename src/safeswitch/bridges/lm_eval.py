"""Our engine as a model of lm-evaluation-harness: ``generate_until`` and ``loglikelihood`` under a
switch.

Needs ``lm_eval`` (``pip install "safeswitch[harness]"``). A context is one user turn through the
model's chat template; with the harness's ``apply_chat_template`` its turns are. Knows nothing of
single tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Message, as_messages
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.score import log_likelihoods
from safeswitch.switch.switch import Switch

TASKS = Path(__file__).parent / "tasks"
"""Folder of our own tasks."""
_TURNS = "safeswitch-turns:"
_LONGEST = 256


class EngineLM(LM):
    """An engine and a switch, as the harness wants a model.

    Args:
        engine: What generates and scores.
        switch: None is the untouched model.
        progress: Told of requests done.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        switch: Switch | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self._engine, self._switch, self._progress = engine, switch, progress

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return f"safeswitch-{self._engine.lm.fingerprint}"

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns as they are: the engine puts them through the template."""
        return _TURNS + json.dumps(chat_history)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Replies; requests with the same settings share batches. A reply is cut before its stop
        string."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(
                i
            )
        texts = [""] * len(requests)
        for rows in groups.values():
            for i, text in zip(rows, self._generate([requests[i] for i in rows]), strict=True):
                texts[i] = text
        return texts

    def _generate(self, requests: Sequence[Instance]) -> list[str]:
        settings: JsonObject = dict(requests[0].args[1])
        until = settings.pop("until", [])
        stops = [s for s in ([until] if isinstance(until, str) else list(until)) if s]
        most = int(settings.pop("max_gen_toks", settings.pop("max_new_tokens", _LONGEST)))
        sample = bool(settings.pop("do_sample", False)) and settings.get("temperature", 1.0) > 0
        options = {
            k: v for k, v in settings.items() if k in ("temperature", "top_p", "top_k") and sample
        }
        prompts = [turns(request.args[0]) for request in requests]
        replies = self._engine.generate(
            prompts,
            self._switch,
            max_new_tokens=most,
            stop_strings=stops,
            do_sample=sample,
            progress=self._progress,
            **options,
        )
        return [_cut(reply.text, stops) for reply in replies]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one."""
        found = log_likelihoods(
            self._engine, [(turns(r.args[0]), r.args[1]) for r in requests], self._switch
        )
        return [(one.log_prob, one.greedy) for one in found]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Not offered: a switch guards conversations, and plain text has no request in it.

        Raises:
            SettingError: always.
        """
        raise SettingError(
            "perplexity of plain text is not measured under a switch; use the harness's own hf "
            "model for it"
        )


def run_tasks(
    engine: TransformersEngine,
    switch: Switch | None,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    chat_turns: bool = False,
) -> JsonObject:
    """Results of tasks by name, as plain JSON, with the fingerprints of model and switch.

    Args:
        engine: What generates and scores.
        switch: None is the untouched model.
        tasks: Names of the harness's tasks, of ours, or of those in ``include_path``.
        include_path: Folder with more tasks.
        limit: Most requests of each task.
        chat_turns: Give the examples of few-shot tasks as turns of a conversation.

    Raises:
        SettingError: a task that the harness does not know.
    """
    folders = [TASKS, *([include_path] if include_path else [])]
    manager = TaskManager(include_path=[str(folder) for folder in folders])
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise SettingError(
            f"lm-evaluation-harness knows no task {', '.join(unknown)}; `lm_eval --tasks list` "
            "names them"
        )
    evaluated = lm_eval.simple_evaluate(
        EngineLM(engine, switch),
        tasks=list(tasks),
        limit=limit,
        apply_chat_template=chat_turns,
        task_manager=manager,
    )
    plain: JsonObject = json.loads(
        json.dumps(
            {"results": evaluated["results"], "versions": evaluated["versions"]}, default=float
        )
    )
    return {
        "model": engine.lm.fingerprint,
        "switch": switch.fingerprint if switch is not None else None,
        **plain,
    }


def turns(context: str) -> tuple[Message, ...]:
    """A context as messages."""
    if context.startswith(_TURNS):
        return as_messages(json.loads(context.removeprefix(_TURNS)))
    return as_messages(context or "\n.")


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.find(s) for s in stops if s in text), default=len(text))]
