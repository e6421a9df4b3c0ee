"""Public sets from the hub into files of our schema, with licence and revision beside each.

The table of names is that of the benchmarks, whose cards hold licence, label and noise. Knows
nothing of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from safeswitch.bench.benchmark import BENCHMARKS, Benchmark, Hub, from_hub
from safeswitch.core.artifact import check_writable, write_json
from safeswitch.core.errors import ArtifactError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.data.hub import commit_of
from safeswitch.data.writers import write_examples


def on_hub() -> list[Benchmark]:
    """The benchmarks that lie on the hub, by name."""
    known = [BENCHMARKS[name] for name in sorted(BENCHMARKS)]
    return [benchmark for benchmark in known if benchmark.hub]


def fetch(names: Sequence[str], out: Path, revision: str | None = None) -> list[JsonObject]:
    """Write each set to ``<out>/<name>.jsonl``, where ``--data`` finds it, and what it is to
    ``<name>.source.json`` beside it.

    Args:
        names: Benchmarks on the hub.
        out: Folder.
        revision: Branch, tag or commit to take in place of the newest; for one set alone.

    Returns:
        What was written beside each: ``name``, ``file``, ``hub`` (id to commit), ``licence``,
        ``label``, ``noise``, ``rows``, ``file_hash`` and ``fetched`` (ISO 8601, UTC).

    Raises:
        SettingError: a name that is not on the hub, or one revision for several sets.
        ArtifactError: a file that is there already, or a folder that cannot be written.
        DataError: the hub does not give the set, or gives unusable rows.
    """
    chosen = [_known(name) for name in dict.fromkeys(names)]
    if revision is not None and len(chosen) != 1:
        raise SettingError(f"a revision is of one set; {len(chosen)} were named")
    check_writable(out)
    files = [out / f"{benchmark.stem or benchmark.name}.jsonl" for benchmark in chosen]
    for file in files:
        # what a run was made on must not change under it
        if file.exists():
            raise ArtifactError(
                f"{file} exists; remove it to fetch it anew, or name another folder"
            )
    return [_fetch(one, file, revision) for one, file in zip(chosen, files, strict=True)]


def _known(name: str) -> Benchmark:
    known = [benchmark.name for benchmark in on_hub()]
    if name not in known:
        raise SettingError(f"{name!r} is no set on the hub; known: {', '.join(known)}")
    return BENCHMARKS[name]


def _fetch(benchmark: Benchmark, file: Path, revision: str | None) -> JsonObject:
    commits = {}
    for place in benchmark.hub:
        if place.name not in commits:
            commits[place.name] = commit_of(place.name, revision or place.revision)
    places: list[Hub] = [replace(place, revision=commits[place.name]) for place in benchmark.hub]
    examples = from_hub(benchmark, places)
    write_examples(examples, file)
    about: JsonObject = {
        "name": benchmark.name,
        "file": file.name,
        "hub": commits,
        "licence": benchmark.card["Licence"],
        "label": benchmark.card["Label"],
        "noise": benchmark.card["Noise"],
        "rows": len(examples),
        "file_hash": hashlib.sha256(file.read_bytes()).hexdigest(),
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(file.with_suffix(".source.json"), about)
    return about
