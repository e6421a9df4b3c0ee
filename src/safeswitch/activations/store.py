"""Recorded states on disk, in shards, so that a long collection can be stopped and taken up again.

A folder: ``manifest.json`` (format, library version, model, data hash, read points, dtype, rows, shard size),
``shard-00000.safetensors`` and on, each with one tensor a read point (``4@prompt_end``) and one mask a window point
(``mask:4@window:16``), and ``texts.json`` (empty when no texts were given). Every file is whole or absent.
Knows nothing of labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safeswitch._version import __version__
from safeswitch.activations.record import Progress, check_request, record
from safeswitch.activations.states import Activations
from safeswitch.core.artifact import read_json, write_json, write_tensors
from safeswitch.core.errors import ActivationError, ArtifactError, FingerprintError, SettingError
from safeswitch.core.lock import folder_writer
from safeswitch.core.types import ReadPoint
from safeswitch.models.language_model import LanguageModel

FORMAT = 1
_MASK = "mask:"
_IDENTITY = ("fingerprint", "data_hash", "texts_hash", "points", "dtype", "computed_in", "rows", "shard_size")


def sequence_hash(sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> str:
    """SHA-256 (first 16 hex digits) over token rows and prompt lengths, in order: what was really fed to the model, so
    another chat template or tokenizer shows."""
    digest = hashlib.sha256()
    for row, length in zip(sequences, prompt_lengths, strict=True):
        digest.update(f"{length}:{','.join(map(str, row))};".encode())
    return digest.hexdigest()[:16]


def collect(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    points: Sequence[ReadPoint],
    folder: str | Path,
    *,
    texts: Sequence[str] = (),
    shard_size: int = 1024,
    batch_tokens: int = 16384,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Activations:
    """Like :func:`safeswitch.activations.record.record`, shard by shard into ``folder``; what is there is not redone.

    A run that was stopped is taken up at the first missing shard; damaged shards are recorded again.

    Args:
        lm, sequences, prompt_lengths, points, texts, batch_tokens, dtype: As for ``record``.
        folder: Where to; made when absent.
        shard_size: Sequences in a shard.
        progress: Called with (sequences done, n) after each shard.

    Returns:
        All states, as :func:`load` gives them.

    Raises:
        FingerprintError: the folder holds states of another model.
        ArtifactError: the folder holds states of other data, points or settings, is being written by another process, or
            cannot be written.
        SettingError, ActivationError, ContextLengthError: as for ``record``.
    """
    if shard_size < 1:
        raise SettingError(f"collect: shard_size must be 1 or more; got {shard_size}")
    check_request(lm, sequences, prompt_lengths, points, texts, batch_tokens)
    folder = Path(folder)
    with folder_writer(folder):
        _fill(lm, sequences, prompt_lengths, points, folder, texts, shard_size, batch_tokens, dtype, progress)
    return load(folder)


def _fill(
    lm: LanguageModel, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int], points: Sequence[ReadPoint],
    folder: Path, texts: Sequence[str], shard_size: int, batch_tokens: int, dtype: torch.dtype | None,
    progress: Progress | None,
) -> None:
    """Write what is missing into a folder that is ours."""
    _open(folder, _manifest(lm, sequences, prompt_lengths, texts, points, dtype, shard_size), texts)
    for start in range(0, len(sequences), shard_size):
        rows = slice(start, min(start + shard_size, len(sequences)))
        path = _shard(folder, start // shard_size)
        if not _whole(path, points, rows.stop - start):
            try:
                acts = record(
                    lm, sequences[rows], prompt_lengths[rows], points, batch_tokens=batch_tokens, dtype=dtype
                )
            except ActivationError as error:
                raise ActivationError(f"{path.name}, rows {start}..{rows.stop - 1} of the data: {error}") from error
            write_tensors(path, named(acts))
        if progress is not None:
            progress(rows.stop, len(sequences))


def load(folder: str | Path) -> Activations:
    """Read a folder that :func:`collect` has filled.

    Raises:
        ArtifactError: no manifest, an unknown format, or a shard that is missing, truncated or damaged, by name.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    shards = [_shard(folder, i) for i in range(-(-manifest["rows"] // manifest["shard_size"]))]
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise ArtifactError(
            f"{folder} is not complete: {len(missing)} of {len(shards)} shards are missing, the first {missing[0]}; "
            "collect into it again to fill it up"
        )
    states: dict[ReadPoint, Tensor] = {}
    masks: dict[ReadPoint, Tensor] = {}
    for point in (ReadPoint.parse(text) for text in manifest["points"]):
        states[point] = join([_tensor(path, str(point)) for path in shards])
        if point.position.kind == "window":
            masks[point] = join([_tensor(path, f"{_MASK}{point}") for path in shards])
    for point, tensor in states.items():
        if len(tensor) != manifest["rows"]:
            raise ArtifactError(f"{folder}: {len(tensor)} rows at {point}; the manifest says {manifest['rows']}")
    texts = read_json(folder / "texts.json")["texts"]
    if len(texts) not in (0, manifest["rows"]):
        raise ArtifactError(f"{folder / 'texts.json'}: {len(texts)} texts for {manifest['rows']} rows")
    return Activations(states, masks, tuple(texts))


def _manifest(
    lm: LanguageModel, sequences: Sequence[Sequence[int]], lengths: Sequence[int], texts: Sequence[str],
    points: Sequence[ReadPoint], dtype: torch.dtype | None, shard_size: int,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "library": __version__,
        "model_id": lm.model_id,
        "fingerprint": lm.fingerprint,
        "data_hash": sequence_hash(sequences, lengths),
        "texts_hash": hashlib.sha256(repr(list(texts)).encode("utf-8", "surrogatepass")).hexdigest()[:16],
        "points": [str(point) for point in points],
        "dtype": str(dtype or lm.model.dtype).removeprefix("torch."),
        "computed_in": str(lm.model.dtype).removeprefix("torch."),
        "rows": len(sequences),
        "shard_size": shard_size,
    }


def _open(folder: Path, wanted: Mapping[str, Any], texts: Sequence[str]) -> None:
    """Begin a folder, or check that the one there is about the same model, data and points."""
    if not (folder / "manifest.json").is_file():
        if any(folder.glob("shard-*.safetensors")):
            raise ArtifactError(f"{folder} holds shards but no manifest.json; give an empty folder")
        write_json(folder / "texts.json", {"texts": list(texts)})
        write_json(folder / "manifest.json", wanted)
        return
    found = _read_manifest(folder)
    for name in _IDENTITY:
        if found[name] != wanted[name]:
            kind = FingerprintError if name == "fingerprint" else ArtifactError
            raise kind(
                f"{folder} was collected with {name} {found[name]} (model {found.get('model_id')!r}), but now it is "
                f"{wanted[name]} (model {wanted['model_id']!r}); give another folder"
            )


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise ArtifactError(f"{folder}: format {manifest.get('format')!r} is not known; this version reads {FORMAT}")
    absent = [name for name in _IDENTITY if name not in manifest]
    if absent:
        raise ArtifactError(f"{folder / 'manifest.json'} lacks {', '.join(absent)}")
    return manifest


def _shard(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.safetensors"


def named(acts: Activations) -> dict[str, Tensor]:
    """States and masks under the names that they have in a file."""
    states = {str(point): tensor for point, tensor in acts.states.items()}
    return states | {f"{_MASK}{point}": mask for point, mask in acts.masks.items()}


def unnamed(tensors: Mapping[str, Tensor], texts: Sequence[str]) -> Activations:
    """What :func:`named` was given."""
    states = {ReadPoint.parse(name): t for name, t in tensors.items() if not name.startswith(_MASK)}
    masks = {ReadPoint.parse(name.removeprefix(_MASK)): t for name, t in tensors.items() if name.startswith(_MASK)}
    return Activations(states, masks, tuple(texts))


def _whole(path: Path, points: Sequence[ReadPoint], rows: int) -> bool:
    """Whether the shard is there, undamaged, and holds every point for ``rows`` sequences."""
    names = [str(p) for p in points] + [f"{_MASK}{p}" for p in points if p.position.kind == "window"]
    try:
        return path.is_file() and all(len(_tensor(path, name)) == rows for name in names)
    except ArtifactError:
        return False


def _tensor(path: Path, name: str) -> Tensor:
    try:
        with safe_open(str(path), framework="pt") as shard:
            tensor: Tensor = shard.get_tensor(name)
            return tensor
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or truncated: {error}; collect again to replace it") from error


def join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along rows; windows of different widths are left-padded to the widest."""
    if parts[0].dim() == 1 or len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.cat([part.new_zeros(len(part), width - part.shape[1], *part.shape[2:]), part], 1)
                      for part in parts])
