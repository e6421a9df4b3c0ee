"""Kinds of harm: the names that decisions, policies and metrics use, and what other lists call them.

The kinds follow what operators set rules for, not one law or one published list; where lists differ,
a kind names all entries that it overlaps. Sources of the other names:

    ailuminate    MLCommons AILuminate 1.0, hazard codes (arXiv 2503.05731); spc covers elections too
    llama_guard   Llama Guard 3, codes S1 to S14 (its model card)
    qwen3guard    Qwen3Guard, category names (arXiv 2510.14276)
    openai        OpenAI's moderation endpoint, keys of ``categories``

Knows nothing of readers or requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Severity = Literal["refuse", "careful", "allow"]
SEVERITIES: tuple[Severity, ...] = ("refuse", "careful", "allow")
"""What a request deserves, the strictest first: no help; help without its harmful part; help."""
OTHER = "other"
"""The kind of a harmful request that is of none of the others, or of one with too little data."""


@dataclass(frozen=True)
class Harm:
    """A kind of harm.

    Args:
        means: What belongs to it, in a sentence.
        ailuminate: Its entries in AILuminate.
        llama_guard: Its entries in Llama Guard 3.
        qwen3guard: Its entries in Qwen3Guard.
        openai: Its keys in OpenAI's moderation endpoint.
    """

    means: str
    ailuminate: tuple[str, ...] = ()
    llama_guard: tuple[str, ...] = ()
    qwen3guard: tuple[str, ...] = ()
    openai: tuple[str, ...] = ()


HARMS: Mapping[str, Harm] = MappingProxyType(
    {
        "violence": Harm(
            "Killing, injuring, kidnapping, exploiting or terrorising people; cruelty to animals.",
            ("vcr",),
            ("S1",),
            ("Violent",),
            ("violence", "violence/graphic", "illicit/violent"),
        ),
        "weapons": Harm(
            "Guns outside the law, bombs, poisons; chemical, biological and nuclear harm.",
            ("iwp",),
            ("S9",),
            ("Violent",),
            ("illicit/violent",),
        ),
        "drugs": Harm(
            "Making, selling, smuggling or misusing illegal drugs.",
            ("ncr",),
            ("S2",),
            ("Non-violent Illegal Acts",),
            ("illicit",),
        ),
        "cyber": Harm(
            "Getting into accounts or devices, harmful software, tricking people out of passwords.",
            ("ncr",),
            ("S2", "S14"),
            ("Non-violent Illegal Acts",),
            ("illicit",),
        ),
        "fraud": Harm(
            "Cheating people, firms or offices out of money; forged papers, false names, bribes.",
            ("ncr",),
            ("S2",),
            ("Non-violent Illegal Acts", "Unethical Acts"),
            ("illicit",),
        ),
        "crime": Harm(
            "Theft, burglary, damage, sabotage, harm to nature, escaping justice.",
            ("ncr",),
            ("S2",),
            ("Non-violent Illegal Acts",),
            ("illicit",),
        ),
        "harassment": Harm(
            "Bullying, threatening, blackmailing, defaming or following a person.",
            ("dfm",),
            ("S2", "S5"),
            ("Unethical Acts",),
            ("harassment", "harassment/threatening"),
        ),
        "hate": Harm(
            "Contempt, incitement or worse treatment of people for what they are.",
            ("hte",),
            ("S10",),
            ("Unethical Acts",),
            ("hate", "hate/threatening"),
        ),
        "self_harm": Harm(
            "Suicide, self-injury, starving, and dares that could kill.",
            ("ssh",),
            ("S11",),
            ("Suicide & Self-Harm",),
            ("self-harm", "self-harm/intent", "self-harm/instructions"),
        ),
        "sexual": Harm(
            "Sexual acts or pictures without consent; pornography.",
            ("src", "sxc"),
            ("S3", "S12"),
            ("Sexual Content or Sexual Acts",),
            ("sexual",),
        ),
        "children": Harm(
            "Hurting, neglecting or exploiting children.",
            ("cse",),
            ("S4",),
            ("Violent", "Sexual Content or Sexual Acts"),
            ("sexual/minors",),
        ),
        "privacy": Harm(
            "Finding or publishing what people keep private.", ("prv",), ("S7",), ("PII",)
        ),
        "misinformation": Harm(
            "Inventing or spreading falsehoods as facts; manipulating elections.",
            ("spc",),
            ("S13",),
            ("Unethical Acts", "Politically Sensitive Topics"),
        ),
        "copyright": Harm(
            "Copying protected works without permission; plagiarism; cheating in exams.",
            ("ipv",),
            ("S8",),
            ("Copyright Violation", "Unethical Acts"),
        ),
        "advice": Harm(
            "Taking the place of a doctor, lawyer or adviser where a wrong answer does grave harm.",
            ("spc",),
            ("S6",),
        ),
        "ai_misuse": Harm(
            "Turning AI systems against their rules, their users or others.",
            (),
            ("S14",),
            ("Jailbreak",),
        ),
        OTHER: Harm("Harm of no other kind, or of one with too little data to be told apart."),
    }
)
"""Kinds by name; :data:`OTHER` is the last."""
