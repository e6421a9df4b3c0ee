"""Score only: requests are read by stage 1 of a switch, in one prefill each, and not answered.

Knows nothing of files or servers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safeswitch.core.errors import SettingError
from safeswitch.core.types import Decision, Prompt
from safeswitch.engines.context import UNSCREENED
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.prompt_end import judge_prompts
from safeswitch.engines.transformers.requests import check_images
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.switch import Switch


def screen(
    engine: TransformersEngine,
    prompts: Sequence[Prompt],
    switch: Switch,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Decision]:
    """What stage 1 decides on each of n requests, in order.

    What would wait for stage 2 has fired here. Each decision holds the stage-1 score in [0, 1],
    its threshold, and the seconds that the reading took.

    Args:
        engine: The model, and how many rows are read together.
        prompts: Texts, message lists, examples or tokens, each ending where a reply begins.
        switch: Its gate must have a stage 1; what it would do is not done.
        progress: Called with the number of requests read since the last call.

    Raises:
        SettingError: a switch without a stage 1.
        FingerprintError: a switch of another model.
        ContextLengthError: a request that does not fit.
        DataError: a request that cannot be read.
        ActivationError: states that are not finite.
    """
    lm = engine.lm
    switch.check(lm, allow_other_model=engine.allow_other_model)
    if not switch.gate.screens:
        raise SettingError(f"score: {UNSCREENED}")
    encoded = lm.inputs(list(prompts))
    check_images(switch.gate, encoded)
    found: list[Decision] = []
    for start in range(0, len(encoded), engine.batch_size):
        part = encoded[start : start + engine.batch_size]
        found += [one.decision for one in judge_prompts(lm, switch.gate, NoAction(), part)]
        progress(len(part))
    return found
