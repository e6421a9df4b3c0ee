"""Figures of a log's rows with their intervals, as rows of tables hold them; variants of one
request count as a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safeswitch.bench.log import Logged
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Example
from safeswitch.statistics.intervals import bootstrap_mean, clustered

Groups = Mapping[str, str]
Table = list[JsonObject]
"""Rows of plain JSON, each a figure with what it is of."""


def group_of(row: Logged) -> str:
    """What a request belongs with: its group, else the bare request that an attacked form was made
    from."""
    return row.example.group or bare_id(row.example)


def belongs(benchmark: str, row: Logged) -> str:
    """What a request belongs with among those of several benchmarks, in which ids may be the same
    by chance."""
    return row.example.group or f"{benchmark}/{group_of(row)}"


def groups_of(rows: Sequence[Logged]) -> dict[str, str]:
    """:func:`group_of` by request id."""
    return {row.example.id: group_of(row) for row in rows}


def fraction(hits: Mapping[str, bool], groups: Groups) -> JsonObject:
    """Fraction of hits, which are given by request id."""
    return _with_interval(list(hits.values()), [groups[name] for name in hits])


def fraction_of(hits: Sequence[bool], rows: Sequence[Logged]) -> JsonObject:
    """Fraction of hits, one a row."""
    return _with_interval(hits, [group_of(row) for row in rows])


def _with_interval(hits: Sequence[bool], groups: Sequence[str]) -> JsonObject:
    found = clustered(hits, groups)
    return {"value": found.rate, "low": found.low, "high": found.high, "n": found.n}


def mean_of(values: Mapping[str, float], groups: Groups) -> JsonObject:
    """Mean of values, which are given by request id."""
    return bootstrap_mean(list(values.values()), [groups[name] for name in values]).to_dict()


def bare_id(example: Example) -> str:
    """Id of the request that an attacked form was made from; its own for a bare one."""
    return example.meta.get("attacked", example.id)
