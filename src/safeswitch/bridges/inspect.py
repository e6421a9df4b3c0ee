"""Our engine as a model of Inspect, and our benchmarks as its tasks, scored by our judges.

Needs ``inspect_ai`` (``pip install "safeswitch[inspect]"``); by name they are there as the provider
and the task of :mod:`safeswitch.cli.inspect_registry`. Inspect asks for one reply at a time. Knows
nothing of single benchmarks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.model._model_output import ChatCompletionChoice
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate
from inspect_ai.tool import ToolChoice, ToolInfo

from safeswitch.bench.benchmark import Loaded
from safeswitch.bench.judges.base import Judge, make_judge
from safeswitch.bench.log import Logged
from safeswitch.bench.metrics import ACCURACY, HARM, OVER_REFUSAL, Metric
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Example, Message
from safeswitch.data.rows import to_example
from safeswitch.data.writers import to_row
from safeswitch.switch.engine import Engine
from safeswitch.switch.switch import Switch

_TURNS: Mapping[str, Callable[..., ChatMessage]] = {
    "system": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
}


class EngineAPI(ModelAPI):
    """An engine and a switch, as Inspect wants a model. The gate's decision is in
    ``ModelOutput.metadata``.

    Args:
        engine: What generates.
        switch: None is the untouched model.
        name: For logs.
        config: Default generation settings.
    """

    def __init__(
        self,
        engine: Engine,
        switch: Switch | None = None,
        name: str = "safeswitch",
        config: GenerateConfig | None = None,
    ) -> None:
        super().__init__(name, config=config or GenerateConfig())
        self._engine, self._switch = engine, switch

    def max_connections(self) -> int:
        """One request at a time: the engine holds the model."""
        return 1

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Reply to a conversation; tools are not offered to the model."""
        messages = [Message(m.role, m.text) for m in input if m.role != "tool"]
        sample = bool(config.temperature)
        options: JsonObject = {"max_new_tokens": config.max_tokens or 256, "do_sample": sample}
        if sample:
            options |= {"temperature": config.temperature, "seed": config.seed}
        if config.stop_seqs:
            options["stop_strings"] = config.stop_seqs
        reply = (
            await asyncio.to_thread(self._engine.generate, [messages], self._switch, **options)
        )[0]
        made = len(reply.token_ids)
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(content=reply.text, source="generate"),
                    stop_reason="stop" if reply.finish_reason == "stop" else "max_tokens",
                )
            ],
            usage=ModelUsage(
                input_tokens=reply.prompt_tokens,
                output_tokens=made,
                total_tokens=reply.prompt_tokens + made,
            ),
            metadata={"decision": reply.decision.to_dict()},
        )


_engine_api: Any = modelapi(name="safeswitch-engine")(EngineAPI)


def inspect_model(engine: Engine, switch: Switch | None = None, name: str = "safeswitch") -> Model:
    """A model for ``inspect_ai.eval``."""
    return Model(_engine_api(engine, switch, name), GenerateConfig())


def _sample(example: Example) -> Sample:
    return Sample(
        id=example.id,
        input=[_TURNS[m.role](content=m.content) for m in example.messages],
        target=list(example.answers) or "",
        metadata={"example": to_row(example)},
    )


def inspect_task(loaded: Loaded) -> Task:
    """A benchmark as a task; scored by the benchmark's first judge."""
    benchmark = loaded.benchmark
    return task_of(
        benchmark.name,
        loaded.examples,
        judge=benchmark.judges[0],
        measures=benchmark.measures,
        max_tokens=benchmark.max_new_tokens,
    )


def task_of(
    name: str, examples: Sequence[Example], *, judge: str, measures: str, max_tokens: int
) -> Task:
    """Requests as a task.

    Args:
        name: Of the task.
        examples: The requests.
        judge: One of our judges.
        measures: What they measure, as a benchmark says it.
        max_tokens: Longest reply.
    """
    samples = [_sample(example) for example in examples]
    return Task(
        name=name,
        dataset=MemoryDataset(samples, name=name),
        solver=generate(),
        scorer=judged(judge, measures),
        config=GenerateConfig(max_tokens=max_tokens, temperature=0.0),
    )


@scorer(metrics={"*": [mean(), stderr()]})
def judged(judge: str, measures: str) -> Scorer:
    """A judge of ours as a scorer: the metrics that apply to a sample, 1 for a hit; lower is better
    but for accuracy."""
    own: Judge = make_judge(judge)

    async def score(state: TaskState, target: Target) -> Score:
        """1 or 0 for each metric that says something of the sample."""
        row = _logged(
            to_example(state.metadata["example"], number=0, origin="", labelled=False),
            state.output.completion,
        )
        said = own.judge([row])[0]
        wanted: tuple[Metric, ...] = (ACCURACY,) if measures == "task" else (HARM, OVER_REFUSAL)
        hits = {m.name.replace(" ", "_"): m.hit(said) for m in wanted if m.applies(row)}
        return Score(
            value={name: int(hit) for name, hit in hits.items() if hit is not None},
            answer=state.output.completion,
            explanation=said.note,
            metadata=said.to_dict(),
        )

    return score


def _logged(example: Example, reply: str) -> Logged:
    return Logged(example, "", reply, None, "stop", 0, 0, {}, 0.0, 0.0, 0.0, None, {})
