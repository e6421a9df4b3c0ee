"""Judges as the command line names them, see :mod:`safeswitch.core.grammar`: ``kind:where``, with settings behind commas.

    rules                                         refusal by rules
    openai:MODEL@URL[,budget=TOKENS]              a chat model at an OpenAI-compatible server; without @URL at OpenAI
    strongreject:MODEL@URL[,budget=TOKENS]        StrongREJECT's rubric, graded by such a model
    pairwise:MODEL@URL[,budget=TOKENS]            replies to open requests against those of the untouched model
    llama-guard:MODEL  granite-guardian:MODEL  shieldgemma:MODEL        a folder or hub id
    harmbench:MODEL[,template=FILE]  sorry-bench:MODEL[,template=FILE]

The key for a server is that of its address, see :mod:`safeswitch.bench.judges.chat_model`:
``OPENAI_API_KEY`` goes to OpenAI alone, and http://gpu-1.lab:8000/v1 is asked with the key in
``SAFESWITCH_KEY_GPU__1_LAB``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safeswitch.bench.judges.base import JUDGES, Judge
from safeswitch.bench.judges.chat_model import ChatModel
from safeswitch.bench.judges.classifiers import KINDS, Classifier
from safeswitch.bench.judges.model_judge import Asks, ModelJudge, StrongReject
from safeswitch.bench.judges.pairwise import Pairwise
from safeswitch.core.errors import SettingError
from safeswitch.core.grammar import JudgeSpec, judge_spec

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
    named = judge_spec(spec)
    kind, settings = named.kind, named.settings
    if spec in JUDGES:
        return JUDGES[spec]()
    known = (*JUDGES, *_ASKING, *KINDS)
    allowed = {"budget"} if kind in _ASKING else {"template"} if kind in KINDS else set()
    if kind not in known or not named.model or set(settings) - allowed:
        raise SettingError(
            f"judge {spec!r}: give kind:where[,setting=value]; kinds: {', '.join(known)}; settings: budget (openai, "
            "strongreject, pairwise), template (harmbench, sorry-bench)"
        )
    if kind in KINDS:
        return Classifier.load(kind, _without_address(spec, named), text=_text(settings.get("template")))
    if "@" in named.model:
        raise SettingError(
            f"judge {spec!r}: behind @ must stand an address that begins with http:// or https://; a model "
            "whose own name holds an @ needs its address as well"
        )
    budget = settings.get("budget")
    if budget is not None and not budget.isdecimal():
        raise SettingError(f"judge {spec!r}: budget must be a whole number of tokens; got {budget!r}")
    asked = ChatModel(named.model, named.address or None, cache=cache / f"{kind}.jsonl", budget=int(budget) if budget else None)
    return _ASKING[kind](asked)


def _without_address(spec: str, named: JudgeSpec) -> str:
    """The folder or hub id of a classifier, which runs in this process."""
    if named.address:
        raise SettingError(f"judge {spec!r}: {named.kind} runs in this process and takes no address")
    return named.model


def _text(path: str | None) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8") if path else None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"judge template {path!r} cannot be read: {error}") from error
