"""What a fit reads, worked out once from the model's depth and the settings, and passed on.

Layers are numbered 0 (embeddings) to N (the last block's output, behind the final norm). Knows
nothing of engines or states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import PROMPT_END, REREAD, RUNNING, Position, ReadPoint
from safeswitch.fitting.settings import FitSettings
from safeswitch.probers.base import PROBERS
from safeswitch.probers.build import make_prober, places_of

KINDS = {"layers": "layer_average", "text": "ngram"}
"""Kinds of the readers that are called otherwise."""


@dataclass(frozen=True)
class FitPlan:
    """What fitting reads on a model of ``num_layers`` blocks under ``settings``."""

    num_layers: int
    settings: FitSettings

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Layers among which validation chooses: those asked for, else up to eight, evenly over
        the upper three quarters.

        Raises:
            SettingError: a layer that the model does not have.
        """
        if self.settings.layers is None:
            lowest = max(1, self.num_layers // 4)
            return _spread(lowest, self.num_layers, most=8)
        count = self.num_layers + 1
        for layer in self.settings.layers:
            if not -count <= layer < count:
                raise SettingError(
                    f"FitSettings: layer {layer} does not exist; the model has layers "
                    f"0..{self.num_layers}"
                )
        return tuple(dict.fromkeys(layer % count for layer in self.settings.layers))

    @cached_property
    def middle(self) -> int:
        """The layer of readers that see one layer: the one of ``layers`` nearest to three quarters
        of the depth."""
        return min(self.layers, key=lambda layer: abs(layer - 0.75 * self.num_layers))

    @cached_property
    def pilot(self) -> Position:
        """Where stage 2 reads."""
        behind_thinking = self.settings.pilot_from == "answer"
        return Position("answer" if behind_thinking else "pilot", self.settings.pilot)

    @cached_property
    def watch_points(self) -> tuple[ReadPoint, ...]:
        """What the watch reads."""
        last = self.num_layers
        return tuple(ReadPoint(last, Position("pilot", t)) for t in self.settings.watch_tokens)

    @cached_property
    def points(self) -> tuple[ReadPoint, ...]:
        """Everything that fitting reads, each once.

        Raises:
            SettingError: a layer that the model does not have, or a reader that cannot be made.
        """
        points = [ReadPoint(layer, PROMPT_END) for layer in self.layers]
        for name in self.settings.readers:
            points += self._points_of(name)
        if self.settings.stages != "stage1":
            points += [ReadPoint(layer, self.pilot) for layer in self.layers]
        points += self.watch_points
        return tuple(dict.fromkeys(points))

    @cached_property
    def tokens_read(self) -> int:
        """Reply tokens that must be there for everything that fitting reads."""
        running = [p.position.index for p in self.points if p.position.kind in RUNNING]
        return 1 + max(running, default=0)

    @cached_property
    def room(self) -> int:
        """Most tokens of a reply, judged and read."""
        return max(self.settings.max_new_tokens, self.tokens_read)

    def stage1_spec(self, layers: Sequence[int]) -> JsonObject:
        """The prober of stage 1 as plain configuration, with ``layers`` chosen."""
        readers = [self._reader_spec(name, layers) for name in self.settings.readers]
        return readers[0] if len(readers) == 1 else {"kind": "fusion", "readers": readers}

    def stage2_spec(self, layers: Sequence[int]) -> JsonObject:
        """The prober of stage 2 as plain configuration, with ``layers`` chosen."""
        return {"kind": "layer_average", "points": _texts(layers, self.pilot)}

    def _reader_spec(self, name: str, layers: Sequence[int]) -> JsonObject:
        """A reader of stage 1, with what its constructor takes: see
        :data:`safeswitch.probers.build.PLACES`."""
        kind = KINDS.get(name, name)
        spec: JsonObject = {"kind": kind}
        for place in places_of(kind):
            if place == "point":
                spec[place] = str(ReadPoint(self.middle, self._position_of(kind)))
            elif place == "points":
                spec[place] = _texts(layers, PROMPT_END)
            else:
                spec[place] = read_blocks(name, self)
        return spec

    def _position_of(self, kind: str) -> Position:
        """Where a prober of one point reads: a window if it can read nothing else."""
        if getattr(PROBERS[kind], "POSITIONS", ()) == ("window",):
            return Position("window", self.settings.window)
        return PROMPT_END

    def _points_of(self, name: str) -> tuple[ReadPoint, ...]:
        """What a reader of stage 1 reads while every candidate layer is still in question."""
        points = make_prober(self._reader_spec(name, self.layers)).points
        for point in points:
            if point.position.kind in (*RUNNING, *REREAD):
                raise SettingError(
                    f"FitSettings: reader {name!r} reads {point}; stage 1 is asked before the "
                    "reply and can read the prompt's own tokens only"
                )
        return points


def read_blocks(reader: str, plan: FitPlan) -> tuple[int, ...]:
    """The blocks that a reader of blocks (``steps``, ``outputs``, ``means``) sees: up to ten over
    the upper two thirds.

    Never the last block, behind which only the state after the final norm can be read; of its
    outputs nothing is known either, so all such readers see the same blocks.

    Raises:
        SettingError: the model, or ``settings.layers``, leaves no block.
    """
    last = plan.num_layers
    if plan.settings.layers is not None:
        found = [layer for layer in plan.layers if 0 < layer < last]
        if not found:
            raise SettingError(
                f"FitSettings: reader {reader!r} needs a layer in 1..{last - 1}; "
                f"got {plan.settings.layers}"
            )
        return tuple(sorted(found))
    lowest, highest = last // 3 + 1, last - 1
    if lowest > highest:
        raise SettingError(
            f"FitSettings: reader {reader!r} needs a model of two blocks or more; "
            f"this one has {last}"
        )
    return _spread(lowest, highest, most=10)


def _spread(lowest: int, highest: int, most: int) -> tuple[int, ...]:
    """At most ``most`` whole numbers, evenly from ``lowest`` to ``highest``."""
    count = min(most, highest - lowest + 1)
    return tuple(round(x) for x in torch.linspace(lowest, highest, count).tolist())


def _texts(layers: Sequence[int], position: Position) -> list[str]:
    return [str(ReadPoint(layer, position)) for layer in layers]
