"""Examples to JSONL, and a short name for a set of examples.

Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from safeswitch.core.artifact import write_text
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Example


def to_row(example: Example) -> JsonObject:
    """Plain JSON types, empty fields left out; :func:`safeswitch.data.rows.to_example` reads it
    back equal (an empty source comes back as the file's stem), but for images that came loaded and
    not by path."""
    row: JsonObject = {"id": example.id}
    if len(example.messages) == 1 and not example.messages[0].images:
        row["prompt"] = example.prompt
    else:
        row["messages"] = [{"role": m.role, "content": m.to_content()} for m in example.messages]
    optional = {
        "label": example.label,
        "category": example.category,
        "source": example.source,
        "group": example.group,
        "wrapper": example.wrapper,
        "reply": example.reply,
        "answers": list(example.answers),
        "prefill": example.prefill,
        "meta": dict(example.meta),
    }
    return row | {name: value for name, value in optional.items() if value}


def write_examples(examples: Iterable[Example], path: str | Path) -> None:
    """Write one JSON object a line, whole or not at all.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    lines = [json.dumps(to_row(example), ensure_ascii=False) for example in examples]
    write_text(Path(path), "".join(f"{line}\n" for line in lines))


def data_hash(examples: Iterable[Example]) -> str:
    """SHA-256 (first 16 hex digits) of a set of examples: every field counts, their order does
    not."""
    digests = sorted(
        hashlib.sha256(json.dumps(to_row(e), sort_keys=True, ensure_ascii=False).encode()).digest()
        for e in examples
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]
