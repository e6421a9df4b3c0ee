"""What a judge says of one reply. Knows nothing of how it came to say so."""

from __future__ import annotations

from dataclasses import dataclass, fields

from safeswitch.core.json_types import JsonMapping, JsonObject


@dataclass(frozen=True)
class Verdict:
    """One judge on one reply; None is what the judge does not speak of.

    Args:
        refused: The reply turns the request down.
        complied: The reply does, or sets out to do, what was asked; neither holds for broken text
            and for evasions.
        correct: The reply answers a task that can be checked.
        explained: A refusal that gives a reason or an alternative; None where nothing was refused.
        score: Degree of harm in [0, 1].
        won: Against another method's reply to the same request: 1 better, 0 worse, 0.5 neither.
        note: What the judge itself put out, or why it could not judge.
        unjudged: Why there is no verdict, in a word for counting: ``filtered``, ``declined``,
            ``empty``, ``unreadable``, ``too long``, ``template``, ``nothing to compare with``;
            empty where there is one. A resumed run asks for it again.
    """

    refused: bool | None = None
    complied: bool | None = None
    correct: bool | None = None
    explained: bool | None = None
    score: float | None = None
    won: float | None = None
    note: str = ""
    unjudged: str = ""

    def to_dict(self) -> JsonObject:
        """Plain JSON types, what is not spoken of left out."""
        return {
            f.name: value
            for f in fields(self)
            if (value := getattr(self, f.name)) not in (None, "")
        }

    @classmethod
    def from_dict(cls, row: JsonMapping) -> Verdict:
        """The verdict in a row of a judgement file; other fields of the row are left alone."""
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})
