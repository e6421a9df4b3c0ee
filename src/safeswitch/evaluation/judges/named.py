"""Judges as the command line names them: ``kind:where``, with settings behind commas.

    rules                                         refusal by rules
    openai:MODEL@URL[,budget=TOKENS]              a chat model at an OpenAI-compatible server; without @URL at OpenAI
    strongreject:MODEL@URL[,budget=TOKENS]        StrongREJECT's rubric, graded by such a model
    pairwise:MODEL@URL[,budget=TOKENS]            replies to open requests against those of the untouched model
    llama-guard:MODEL  granite-guardian:MODEL  shieldgemma:MODEL        a folder or hub id
    harmbench:MODEL[,template=FILE]  sorry-bench:MODEL[,template=FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safeswitch.core.errors import SettingError
from safeswitch.evaluation.judges.base import JUDGES, Judge
from safeswitch.evaluation.judges.chat_model import ChatModel
from safeswitch.evaluation.judges.classifiers import KINDS, Classifier
from safeswitch.evaluation.judges.model_judge import Asks, ModelJudge, StrongReject
from safeswitch.evaluation.judges.pairwise import Pairwise

_ASKING: Mapping[str, Callable[[Asks], Judge]] = {"openai": ModelJudge, "strongreject": StrongReject, "pairwise": Pairwise}


def make_judge(spec: str, cache: Path) -> Judge:
    """The judge that ``spec`` names.

    Args:
        spec: See the module text.
        cache: Folder in which answers of chat models are kept.

    Raises:
        SettingError: an unknown kind or setting, or nothing behind the colon.
        SafeSwitchError: a package or model that is not there.
    """
    kind, _, rest = spec.partition(":")
    where, *pairs = rest.split(",")
    settings = dict(pair.partition("=")[::2] for pair in pairs)
    if not rest and kind in JUDGES:
        return JUDGES[kind]()
    known = (*JUDGES, *_ASKING, *KINDS)
    allowed = {"budget"} if kind in _ASKING else {"template"} if kind in KINDS else set()
    if kind not in known or not where or set(settings) - allowed:
        raise SettingError(
            f"judge {spec!r}: give kind:where[,setting=value]; kinds: {', '.join(known)}; settings: budget (openai, "
            "strongreject, pairwise), template (harmbench, sorry-bench)"
        )
    if kind in KINDS:
        return Classifier.load(kind, where, text=_text(settings.get("template")))
    model, _, address = where.partition("@")
    budget = settings.get("budget")
    if budget is not None and not budget.isdecimal():
        raise SettingError(f"judge {spec!r}: budget must be a whole number of tokens; got {budget!r}")
    asked = ChatModel(model, address or None, cache=cache / f"{kind}.jsonl", budget=int(budget) if budget else None)
    return _ASKING[kind](asked)


def _text(path: str | None) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8") if path else None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"judge template {path!r} cannot be read: {error}") from error
