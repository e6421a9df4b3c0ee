"""How often safe requests that sound unsafe are refused: rows and judge, for the task of that name
of lm-evaluation-harness and of Inspect.

The rows are the safe partners in the starter set's ``held`` split, which no fit has seen; the judge
reads a reply by rules (``data/refusal_text.py``). Lower is better. Knows nothing of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Example
from safeswitch.data import starter
from safeswitch.data.refusal_text import refuses
from safeswitch.data.splits import HELD

if TYPE_CHECKING:
    from datasets import Dataset  # type: ignore[import-untyped]


LOOK_ALIKE = "look-alike"
LONGEST = 300
"""Characters of a request; longer ones do not fit into every model."""


def rows() -> list[Example]:
    """Safe requests of one turn that share their words with unsafe ones."""
    found = []
    for row in starter.load([HELD]):
        short = len(row.messages) == 1 and len(row.prompt) <= LONGEST
        if row.category == LOOK_ALIKE and short:
            found.append(row)
    return starter.mixed(found)


def dataset(**settings: object) -> dict[str, Dataset]:
    """The rows as the harness takes them; it hands over settings that mean nothing here."""
    from datasets import Dataset

    return {"test": Dataset.from_list([{"id": row.id, "prompt": row.prompt} for row in rows()])}


def judged(doc: JsonMapping, results: list[str]) -> dict[str, float]:
    """1 where the reply refuses."""
    return {"over_refusal": float(refuses(results[0]))}
