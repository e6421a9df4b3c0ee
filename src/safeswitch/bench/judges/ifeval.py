"""Judge ``ifeval``: does the reply follow every instruction of the request that can be checked?

The checks are those of lm-evaluation-harness (its task ifeval; IFEval, arXiv 2311.07911), taken
strictly: one instruction that is not followed makes the reply wrong. Needs ``pip install
"safeswitch[harness]"`` and NLTK's ``punkt_tab``. Knows nothing of models.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any

from safeswitch.bench.benchmark import MissingError
from safeswitch.bench.judges.base import JUDGES, Judge
from safeswitch.bench.judges.rules import refused
from safeswitch.bench.log import Logged
from safeswitch.bench.verdict import Verdict
from safeswitch.core.json_types import JsonMapping

VERSION = 1


@JUDGES.add("ifeval")
class IFEval(Judge):
    """Checks of instructions.

    Raises:
        MissingError: a package or NLTK's sentence splitter is not there.
    """

    name = "ifeval"

    def __init__(self) -> None:
        try:
            importlib.import_module("nltk").data.find("tokenizers/punkt_tab")
            importlib.import_module("langdetect").DetectorFactory.seed = 0
            self._checks: Any = importlib.import_module("lm_eval.tasks.ifeval.utils")
        except ModuleNotFoundError as error:
            raise MissingError(
                f'ifeval: its checks need {error.name}: pip install "safeswitch[harness]"'
            ) from error
        except LookupError as error:
            raise MissingError(
                "ifeval: its checks need NLTK's sentence splitter: python -m nltk.downloader "
                "punkt_tab"
            ) from error

    @property
    def identity(self) -> JsonMapping:
        return {"version": VERSION}

    def judge(self, rows: Sequence[Logged]) -> list[Verdict]:
        return [self._one(row) for row in rows]

    def _one(self, row: Logged) -> Verdict:
        meta = row.example.meta
        names, settings = json.loads(meta["instructions"]), json.loads(meta["kwargs"])
        request = self._checks.InputExample(row.example.id, names, row.example.prompt, settings)
        found = self._checks.test_instruction_following_strict(request, row.said)
        missed = [
            name
            for name, done in zip(names, found.follow_instruction_list, strict=True)
            if not done
        ]
        note = f"not followed: {', '.join(missed)}" if missed else ""
        return Verdict(refused=refused(row.said), correct=not missed, note=note)
