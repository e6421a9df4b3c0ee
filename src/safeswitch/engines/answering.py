"""An engine that answers and shows no hidden states: a server, or a vLLM engine that only runs.

Knows nothing of how replies come about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safeswitch.activations.states import Activations
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Prompt, ReadPoint, Reply
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.engine import MeasuredEngine


class AnsweringEngine(MeasuredEngine):
    """Refuses by name what would fit on it or look into it.

    Args:
        called: What it is, for messages.
    """

    def __init__(self, called: str) -> None:
        self.called = called

    @property
    def lm(self) -> LanguageModel:  # type: ignore[override]
        """There is none.

        Raises:
            SettingError: always.
        """
        raise self._no_states()

    def collect(
        self,
        prompts: Sequence[Prompt],
        points: Sequence[ReadPoint],
        *,
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[list[Reply], Activations]:
        """It shows no states.

        Raises:
            SettingError: always.
        """
        raise self._no_states()

    def _no_states(self) -> SettingError:
        return SettingError(
            f"{self.called} answers, but shows no hidden states or weights, which fitting and "
            "white-box attacks need; use --engine transformers with --model"
        )
