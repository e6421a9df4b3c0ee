"""Attacked benchmarks: each request of a benchmark in its attacked forms, kept in the run folder,
made once.

The forms are ordinary requests, so that the runner, the judges and the log take them as they take
any others. Knows nothing of engines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from safeswitch.attacks.base import Attack, Victim
from safeswitch.bench.benchmark import Benchmark, Loaded
from safeswitch.core.errors import DataError, ModelError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.lines import append, take_up
from safeswitch.core.types import Example
from safeswitch.data.rows import to_example
from safeswitch.data.writers import data_hash, to_row

_CARD = """{title}, under the attack {name}.

Source: {source}, reshaped as in {paper}
Licence: {licence}
Revision: {revision}
Rows: every attacked form of each bare request
Label: that of the bare request
Noise: an attack may change what is asked for, or make it unreadable to the model
"""


def attack_set(
    loaded: Loaded,
    attack: Attack,
    victim: Victim,
    folder: Path,
    *,
    identity: JsonMapping,
    progress: Callable[[int], None] = lambda done: None,
    say: Callable[[str], None] = lambda text: None,
) -> Loaded:
    """The unsafe requests of ``loaded`` under ``attack``, as a benchmark ``<name>.<attack>``; no
    other name has a dot.

    Args:
        loaded: The bare benchmark.
        attack: What is done to each request.
        victim: What a white-box attack looks into.
        folder: Run folder; ``attacked/<benchmark>.jsonl`` in it is resumed where an earlier run
            stopped.
        identity: What the attack was aimed at (fingerprints of model and switch).
        progress: Called with the number of requests done since the last call, earlier ones first.
        say: Told of the requests that cannot be attacked, and why; they have no forms, and the
            others are made all the same.

    Raises:
        DataError: no unsafe request, or none that the attack applies to.
        ArtifactError: ``folder`` holds the same attack on something else, or cannot be written.
    """
    bare = [e for e in loaded.examples if e.label == "unsafe"]
    if not bare:
        raise DataError(f"{loaded.benchmark.name}: has no unsafe request to attack")
    name = f"{loaded.benchmark.name}.{attack.name}"
    path = folder / "attacked" / f"{name}.jsonl"
    done = _forms(path, attack, bare, victim, identity, progress)
    made = [to_example(row, number=0, origin=name) for e in bare for row in done[e.id]["made"]]
    failed = [done[e.id]["error"] for e in bare if "error" in done[e.id]]
    if failed:
        say(
            f"note: {len(failed)} of {len(bare)} requests cannot be attacked with {attack.name}; "
            f"the first, {failed[0]}"
        )
    if not made:
        why = f"; the first reason, {failed[0]}" if failed else ""
        raise DataError(f"{name}: the attack applies to none of the {len(bare)} requests{why}")
    return Loaded(
        _described(loaded, attack, name), tuple(made), len(made), str(path), _file_hash(path)
    )


def _forms(
    path: Path,
    attack: Attack,
    bare: Sequence[Example],
    victim: Victim,
    identity: JsonMapping,
    progress: Callable[[int], None],
) -> Mapping[str, JsonMapping]:
    """The row of each bare request by its id, from the file where it is there, else made now.

    Raises:
        ArtifactError: see :func:`attack_set`.
    """
    own = {f.name: getattr(attack, f.name) for f in fields(attack)}
    settings = json.loads(json.dumps(own, default=dict))
    aimed = dict(identity) if attack.white_box else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"attack": attack.name, "settings": settings, **aimed}
    hashes = {example.id: data_hash([example]) for example in bare}
    done = take_up(path, run, hashes)
    progress(len(done))
    for example in bare:
        if example.id not in done:
            made = _made(attack, example, victim)
            row = {"id": example.id, "request": hashes[example.id], **made}
            append(path, [row])
            done[example.id] = row
            progress(1)
    return done


def _made(attack: Attack, example: Example, victim: Victim) -> JsonObject:
    """The forms of one request, or why there are none: one that the model cannot be given costs no
    other its forms."""
    try:
        return {"made": [to_row(e) for e in attack.attack(example, victim)]}
    except (DataError, ModelError) as error:
        return {"made": [], "error": f"{example.called}: {type(error).__name__}: {error}"}


def _described(loaded: Loaded, attack: Attack, name: str) -> Benchmark:
    """The bare benchmark's description, with name and card of the attacked one."""
    old = loaded.benchmark
    card = {field.lower(): text for field, text in old.card.items()}
    text = _CARD.format(title=old.title, name=attack.name, paper=attack.paper, **card)
    return replace(old, name=name, doc=text, make=None)


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
