"""Steering vectors in the files that people have: safetensors, and repeng's GGUF (``pip install
"safeswitch[methods]"``).

Both hold one tensor ``direction.<n>`` a layer. In GGUF, n counts blocks from 0 as repeng and
llama.cpp do, so that it is our layer ``n + 1``; in our safetensors n is our own layer number. Knows
nothing of models.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safeswitch.core.artifact import read_tensors, write_atomic, write_tensors
from safeswitch.core.errors import ArtifactError, SafeSwitchError
from safeswitch.core.strict import check_finite
from safeswitch.switch.actuators.base import Steering

_ARCHITECTURE, _PREFIX = "controlvector", "direction."
_DIGITS = 6


def save_vectors(path: str | Path, steering: Steering, *, model_type: str = "") -> None:
    """Write the vectors times the strength to ``path``, whose ending, ``.gguf`` or
    ``.safetensors``, chooses the format.

    Args:
        path: File to write.
        steering: What is written.
        model_type: GGUF's hint on the architecture, such as ``llama``.

    Raises:
        ArtifactError: another ending, or a file that cannot be written.
    """
    place = _checked(Path(path))
    scaled = steering.strength * steering.vectors.detach().float().cpu()
    rows = dict(zip(steering.layers, scaled, strict=True))
    if place.suffix == ".safetensors":
        write_tensors(place, {f"{_PREFIX}{layer}": row for layer, row in rows.items()})
    else:
        write_atomic(
            place,
            lambda p: _write_gguf(p, {layer - 1: row for layer, row in rows.items()}, model_type),
        )


def load_vectors(path: str | Path, *, strength: float = 1.0) -> Steering:
    """Read what :func:`save_vectors` or repeng wrote: vectors ``[l, d]`` float32 of l layers.

    Raises:
        ArtifactError: no such file, another format, or no vectors of one width in it.
    """
    place = _checked(Path(path))
    if not place.is_file():
        raise ArtifactError(f"{place} does not exist")
    found = read_tensors(place) if place.suffix == ".safetensors" else _read_gguf(place)
    shift = 0 if place.suffix == ".safetensors" else 1
    rows: dict[int, Tensor] = {}
    for name, tensor in found.items():
        number = name.removeprefix(_PREFIX)
        if (
            name.startswith(_PREFIX)
            and number.isascii()
            and number.isdecimal()
            and len(number) <= _DIGITS
        ):
            check_finite(f"{place}: {name}", tensor)
            rows[int(number) + shift] = tensor.float()
    if (
        not rows
        or len({tuple(row.shape) for row in rows.values()}) != 1
        or next(iter(rows.values())).ndim != 1
    ):
        have = ", ".join(sorted(found)) or "none"
        raise ArtifactError(
            f"{place} must hold vectors {_PREFIX}<layer> of one width; it holds {have}"
        )
    layers = tuple(sorted(rows))
    return Steering(layers, torch.stack([rows[layer] for layer in layers]), strength)


def _checked(path: Path) -> Path:
    if path.suffix not in (".gguf", ".safetensors"):
        raise ArtifactError(
            f"steering vectors are kept as .gguf or .safetensors; got {path.name!r}"
        )
    if path.suffix == ".gguf" and importlib.util.find_spec("gguf") is None:
        raise SafeSwitchError('GGUF files need gguf: pip install "safeswitch[methods]"')
    return path


def _write_gguf(path: Path, rows: dict[int, Tensor], model_type: str) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, _ARCHITECTURE)
    writer.add_string(f"{_ARCHITECTURE}.model_hint", model_type)
    writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(rows))
    for layer, row in rows.items():
        writer.add_tensor(f"{_PREFIX}{layer}", row.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_gguf(path: Path) -> dict[str, Tensor]:
    import gguf

    try:
        reader: Any = gguf.GGUFReader(path)
        return {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    except Exception as error:  # whatever the reader stumbles over
        raise ArtifactError(
            f"{path} is not a readable GGUF file: {type(error).__name__}: {error}"
        ) from error
