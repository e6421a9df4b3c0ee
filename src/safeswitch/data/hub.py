"""Rows of a data set on the hub, and the commit that a name stands for. ``datasets`` is optional and
imported on first use.

Knows nothing of the schema.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from huggingface_hub import HfApi

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonMapping


def hub_rows(
    name: str, *, split: str = "train", config: str | None = None, revision: str | None = None
) -> Iterator[tuple[int, JsonMapping]]:
    """Numbered rows (from 1) of ``split`` of the hub data set ``name``.

    Args:
        name: ``owner/name``.
        split: Split to read.
        config: Configuration (subset) name, for data sets with several.
        revision: Commit or tag.

    Raises:
        DataError: ``datasets`` is not installed, or it cannot load the data set.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"reading {name!r} from the hub needs the package 'datasets': pip install "
            "'safeswitch[hub]'"
        ) from error
    try:
        rows = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the hub client raises many kinds; all mean "cannot be read"
        raise DataError(f"cannot load split {split!r} of hub data set {name!r}: {error}") from error
    yield from enumerate(rows, 1)


def commit_of(name: str, revision: str | None = None) -> str:
    """The commit of the hub data set ``name`` that ``revision`` stands for now.

    Args:
        name: ``owner/name``.
        revision: Branch, tag or commit; None is the newest.

    Raises:
        DataError: the hub does not tell.
    """
    try:
        sha = HfApi().dataset_info(name, revision=revision).sha
    except Exception as error:  # the hub client raises many kinds; all mean "cannot be told"
        raise DataError(f"cannot find hub data set {name!r}: {error}") from error
    if not sha:
        raise DataError(f"hub data set {name!r}: the hub names no commit")
    return sha
