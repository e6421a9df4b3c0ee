"""An engine whose answers are kept in a folder, so that a fit that was cut off is resumed.

Requests go to the engine in chunks; each chunk's answers stand in two files, named by a hash of all
that decides them. States are whole before the replies beside them are written, and these are the
sign that a chunk is there. Knows engines only as something that generates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Self, Unpack

from safeswitch.activations.states import Activations
from safeswitch.core.artifact import (
    check_writable,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from safeswitch.core.lock import folder_writer
from safeswitch.core.types import Decision, Prompt, ReadPoint, Reply
from safeswitch.switch.engine import Around, GenerationOptions, ReadingEngine
from safeswitch.switch.switch import Switch


class Kept(Around):
    """What was answered before is read from ``folder``, the rest is asked of ``inner`` and written
    there.

    The folder is this object's alone until :meth:`close`, which ``with`` calls.

    Args:
        inner: What generates.
        folder: Where answers are kept, made when absent; of several models and data sets, side by
            side.
        chunk: Requests that are asked, and kept, together.

    Raises:
        ArtifactError: the folder cannot be written, or is being written by another process.
    """

    def __init__(self, inner: ReadingEngine, folder: Path, *, chunk: int = 256) -> None:
        check_writable(folder)
        super().__init__(inner)
        self.folder, self.chunk = folder, chunk
        self._lock = ExitStack()
        self._lock.enter_context(folder_writer(folder))

    def close(self) -> None:
        """Leave the folder to others."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        """As an engine's own ``generate``; what a switch answers is not kept."""
        if switch is not None:
            return self.inner.generate(prompts, switch, **options)
        progress = options.get("progress")
        asked = {name: value for name, value in options.items() if name != "progress"}
        replies: list[Reply] = []
        for part in self._chunks(prompts):
            path = self._path(part, asked)
            if not path.exists():
                self._write(path, self.inner.generate(part, **options), ())
            elif progress is not None:
                progress(len(part))
            replies += self._replies(path)
        return replies

    def collect(
        self,
        prompts: Sequence[Prompt],
        points: Sequence[ReadPoint],
        *,
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[list[Reply], Activations]:
        """As an engine's own ``collect``."""
        replies: list[Reply] = []
        parts: list[Activations] = []
        for part in self._chunks(prompts):
            path = self._path(
                part, {"points": [str(p) for p in points], "max_new_tokens": max_new_tokens}
            )
            if not path.exists():
                answers, activations = self.inner.collect(
                    part, points, max_new_tokens=max_new_tokens, progress=progress
                )
                write_tensors(path.with_suffix(".safetensors"), activations.to_tensors())
                self._write(path, answers, activations.texts)
            elif progress is not None:
                progress(len(part))
            replies += self._replies(path)
            tensors = read_tensors(path.with_suffix(".safetensors"))
            parts.append(Activations.from_tensors(tensors, read_json(path)["texts"]))
        return replies, Activations.concatenate(parts)

    def _chunks(self, prompts: Sequence[Prompt]) -> Iterator[Sequence[Prompt]]:
        for start in range(0, max(1, len(prompts)), self.chunk):
            yield prompts[start : start + self.chunk]

    def _path(self, prompts: Sequence[Prompt], asked: Mapping[str, object]) -> Path:
        """Where the answers to these requests stand: by engine, weights, precision, tokens and
        everything that is asked."""
        rows = self.lm.encode(list(prompts), check=False)
        tokens = _rows_hash(rows)
        settings = json.dumps(asked, sort_keys=True, default=repr)
        parts = [
            type(self.inner).__name__,
            self.lm.fingerprint,
            str(self.lm.model.dtype),
            tokens,
            settings,
        ]
        return self.folder / (hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32] + ".json")

    @staticmethod
    def _write(path: Path, replies: Sequence[Reply], texts: Sequence[str]) -> None:
        write_json(path, {"replies": [asdict(reply) for reply in replies], "texts": list(texts)})

    @staticmethod
    def _replies(path: Path) -> list[Reply]:
        return [
            Reply(
                **{
                    **row,
                    "token_ids": tuple(row["token_ids"]),
                    "decision": Decision(**row["decision"]),
                }
            )
            for row in read_json(path)["replies"]
        ]


def _rows_hash(rows: Sequence[Sequence[int]]) -> str:
    """Over the tokens that are fed to the model, so that another chat template or tokenizer
    shows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{len(row)}:{','.join(map(str, row))};".encode())
    return digest.hexdigest()
