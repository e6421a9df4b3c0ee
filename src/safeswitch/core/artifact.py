"""Files that are either whole or absent: JSON, text and safetensors, written beside and renamed
into place.

Knows nothing of what is stored. Never pickle.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from safeswitch.core.errors import ArtifactError
from safeswitch.core.json_types import JsonMapping, JsonObject


def write_atomic(path: Path, write: Callable[[Path], object], *, mode: int = 0o644) -> None:
    """Call ``write`` on a temporary file in the same folder and rename it to ``path`` once it is on
    disk.

    Raises:
        ArtifactError: the folder cannot be written (full disk, permissions); ``path`` is then as it
            was before.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot write {path}: {error}; nothing was changed there") from error
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when the block ends well, and is gone otherwise.

    Args:
        folder: Absent or empty.

    Raises:
        ArtifactError: it holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(
            f"cannot write {folder}: it is there already; name one that is absent or empty"
        )
    check_writable(folder)
    staged: Path | None = None
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
        yield staged
        staged.chmod(0o755)
        staged.rename(folder)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot write {folder}: {error}; nothing was written there") from error
    finally:
        if staged is not None and staged.exists():
            shutil.rmtree(staged)


def check_writable(folder: Path) -> None:
    """Refuse a folder that could not be written to, before the work that it shall hold; nothing is
    created.

    Raises:
        ArtifactError: it is a file, lies below one, or may not be written.
    """
    there = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )
    if not there.is_dir():
        raise ArtifactError(f"cannot write into {folder}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write into {folder}: {there} may not be written")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_atomic(path, lambda p: p.write_bytes(text.encode()))


def write_json(path: Path, value: JsonMapping) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    Raises:
        ArtifactError: a number that JSON does not know (NaN, infinity), or the folder cannot be
            written.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ArtifactError(
            f"cannot write {path}: not valid JSON: {error}; nothing was changed there"
        ) from error
    write_text(path, text + "\n")


def read_json(path: Path) -> JsonObject:
    """Read a JSON object: strict JSON, in which no number is infinite or NaN and no name stands
    twice in one object.

    Raises:
        ArtifactError: no such file, or not a JSON object.
    """
    try:
        value = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=_no_number,
            object_pairs_hook=_each_once,
        )
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} must hold a JSON object; it holds {type(value).__name__}")
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"an object has the field {next(n for n in names if names.count(n) > 1)!r} twice"
        )
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all; each is copied, so that views of one
    storage may be given."""
    plain = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    write_atomic(path, lambda p: save_file(plain, str(p)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors.

    Raises:
        ArtifactError: no such file, or a damaged or truncated one.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist")
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or truncated: {error}") from error
