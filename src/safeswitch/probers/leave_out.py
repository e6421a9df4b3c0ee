"""Generalisation to sources nobody trained on: leave one named group out, again and again.

A test part from the training source flatters a prober (arXiv 2602.14161 finds 8.4 AUC points),
hence the headline is the mean over left-out groups, with the in-distribution figure beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import DataError
from safeswitch.probers.base import Prober, check_labels
from safeswitch.probers.split import cluster_split
from safeswitch.statistics.prober_metrics import ProberMetrics, mean_metrics, measure

HELD_FRACTION = 0.2
IN_DISTRIBUTION, HEADLINE = "in_distribution", "headline"


def leave_one_out(
    make_prober: Callable[[], Prober],
    activations: Activations,
    labels: Tensor,
    groups: Sequence[str],
    *,
    seed: int,
    clusters: Sequence[str] | None = None,
    drop_shared: bool = False,
    threshold: float = 0.5,
    n_boot: int = 1000,
) -> dict[str, ProberMetrics]:
    """For each group: fit on the rest, measure on the group.

    A group of one class only (a jailbreak template, say) is completed by rows of the other class: a
    seeded draw of ``HELD_FRACTION`` of the clusters of the rest is kept out of that fit altogether,
    and its rows of the missing class join the test. With ``drop_shared`` no cluster stands on both
    sides (an unseen source, whose requests may be copied from another one); without, a row of the
    group's own cluster may stand in the fit rows under another group's name (the same request in
    another template): the question is then the unseen group, not the unseen request.

    Args:
        make_prober: Returns a fresh prober for each fit.
        activations: n requests.
        labels: ``[n]`` bool.
        groups: Name of each row's group (data source or jailbreak template); rows named "" are
        never left out.
        seed: Of every split, fit and bootstrap.
        clusters: Rows of one cluster (``Example.group``) stay on one side of the drawn splits;
            None: each row alone.
        drop_shared: Drop fit rows whose cluster has a row in the left-out group.
        threshold: Of F1 and accuracy.
        n_boot: Bootstrap resamples.

    Returns:
        Metrics by group, ``in_distribution`` (a split by cluster, 20 % held) and ``headline`` (mean
        over the groups).

    Raises:
        DataError: names of another length or reserved, or no group to leave out.
        FitError: nothing is left to fit on.
    """
    truth = check_labels(activations, labels, "leave_one_out")
    own = [str(i) for i in range(len(truth))] if clusters is None else list(clusters)
    names = _names(groups, own, len(truth))

    def fit_and_measure(fit_rows: Tensor, test_rows: Tensor) -> ProberMetrics:
        prober = make_prober().fit(activations.select(fit_rows), truth[fit_rows], seed=seed)
        scores = prober.score(activations.select(test_rows))
        tested = [own[i] for i in test_rows.tolist()]
        return measure(
            scores, truth[test_rows], groups=tested, threshold=threshold, n_boot=n_boot, seed=seed
        )

    found = {}
    for place, name in enumerate(names):
        inside = torch.tensor([g == name for g in groups])
        fit_rows, test_rows = split_out(inside, truth, own, seed + place)
        if drop_shared:
            tested = {own[i] for i in inside.nonzero().flatten().tolist()}
            fit_rows = fit_rows[
                torch.tensor([own[i] not in tested for i in fit_rows.tolist()], dtype=torch.bool)
            ]
        found[name] = fit_and_measure(fit_rows, test_rows)
    headline = mean_metrics(list(found.values()))
    drawn = cluster_split(own, truth, HELD_FRACTION, seed)
    return {**found, IN_DISTRIBUTION: fit_and_measure(*drawn), HEADLINE: headline}


def split_out(
    inside: Tensor, labels: Tensor, clusters: Sequence[str], seed: int
) -> tuple[Tensor, Tensor]:
    """Row indices ``(fit, test)`` that leave the rows ``inside`` (bool ``[n]``) out, both classes
    in the test.

    Raises:
        DataError: the rest has no row of the class that the group lacks.
    """
    rest = (~inside).nonzero().flatten()
    test = inside.nonzero().flatten()
    missing = [value for value in (True, False) if not (labels[test] == value).any()]
    if not missing:
        return rest, test
    wanted = rest[labels[rest] == missing[0]]
    held = _draw(sorted({clusters[int(i)] for i in wanted}), seed)
    if not held:
        raise DataError(
            f"leave_one_out: the rest has no {'positive' if missing[0] else 'negative'} row to "
            "test on"
        )
    kept_out = torch.tensor([clusters[int(i)] in held for i in rest])
    added = rest[kept_out & (labels[rest] == missing[0])]
    return rest[~kept_out], torch.cat([test, added])


def _draw(names: Sequence[str], seed: int) -> set[str]:
    """A seeded ``HELD_FRACTION`` of ``names``, at least one."""
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return {names[i] for i in order[: max(1, round(HELD_FRACTION * len(names)))]}


def _names(groups: Sequence[str], clusters: Sequence[str], n: int) -> list[str]:
    """The groups to leave out, sorted."""
    if len(groups) != n or len(clusters) != n:
        raise DataError(
            f"leave_one_out: needs one group and cluster a row; got {len(groups)}, {len(clusters)} "
            f"for {n}"
        )
    names = sorted(set(groups) - {""})
    clash = set(names) & {IN_DISTRIBUTION, HEADLINE}
    if clash or not names:
        raise DataError(
            f"leave_one_out: needs groups with names other than {IN_DISTRIBUTION}, {HEADLINE}; got "
            f"{names}"
        )
    return names
