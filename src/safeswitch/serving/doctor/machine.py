"""Checks of the machine: Python, packages, device, vLLM, threads, environment."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from safeswitch.core.errors import SettingError
from safeswitch.engines.settings import OFF, switched_off
from safeswitch.engines.vllm.settings import EXTENSION, MODELS, PROCESSOR
from safeswitch.serving.doctor.base import Hint, Installation

_PACKAGE = "safeswitch"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Linux's share of the processors for this container: microseconds and period, or ``max``."""


def python(at: Installation) -> str:
    """Python's version, in the range of the package's own metadata."""
    allowed = metadata.metadata(_PACKAGE)["Requires-Python"]
    found = platform.python_version()
    if found not in SpecifierSet(allowed):
        raise SettingError(f"Python {found} is installed, and {allowed} is needed")
    return f"{found} (needs {allowed})"


def packages(at: Installation) -> str:
    """The versions of what the package's metadata asks for, for this engine and audit."""
    wanted = list(_requirements(at))
    wrong = [text for text in map(_fault_of, wanted) if text]
    if wrong:
        asked = " ".join(f"'{one.name}{one.specifier}'" for one in wanted if _fault_of(one))
        raise SettingError(f"{'; '.join(wrong)}: pip install {asked}")
    return f"{len(wanted)} packages in their ranges"


def _requirements(at: Installation) -> Iterator[Requirement]:
    extras = ["", "server"]
    if at.engine == "vllm":
        extras.append("vllm")
    if at.audit_db.startswith("postgresql"):
        extras.append("postgres")
    for line in metadata.requires(_PACKAGE) or ():
        asked = Requirement(line)
        marker = asked.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if asked.name != _PACKAGE:
            yield asked


def _fault_of(asked: Requirement) -> str:
    """What is wrong with an installed package; empty where nothing is."""
    found = _version(asked.name)
    if found is None:
        return f"{asked.name} is not installed"
    if not asked.specifier.contains(found, prereleases=True):
        return f"{asked.name} {found} is installed, and {asked.specifier} is needed"
    return ""


def _version(name: str) -> str | None:
    """The version of a package, also where it comes under another name, as vLLM's CPU build."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        others = metadata.packages_distributions().get(name)
        return metadata.version(others[0]) if others else None


def device(at: Installation) -> str:
    """What torch computes on, and the number formats that run there."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    runs = [str(kind).removeprefix("torch.") for kind in _DTYPES if _multiplies(place, kind)]
    if not runs:
        raise SettingError(f"torch {torch.__version__} cannot multiply on {place}; install it anew")
    told = f"torch {torch.__version__} on {_named(place)}; runs {', '.join(runs)}"
    if place == "cpu" and torch.version.cuda is not None:
        return Hint(f"{told}; torch is built for CUDA and sees no GPU: look at nvidia-smi")
    return told


def _named(place: str) -> str:
    if place == "cpu":
        return "the CPU"
    count, found = torch.cuda.device_count(), torch.cuda.get_device_properties(0)
    return f"{count} x {found.name} ({found.total_memory >> 30} GiB)"


def _multiplies(place: str, kind: torch.dtype) -> bool:
    try:
        ones = torch.ones(2, 2, device=place, dtype=kind)
        return bool((ones @ ones == 2).all())
    except RuntimeError:
        return False


def vllm(at: Installation) -> str:
    """Whether vLLM finds the parts that ``safeswitch serve`` names to it."""
    if at.engine != "vllm":
        return "not used by the transformers engine"
    from safeswitch.serving.vllm.server import MIDDLEWARE

    parts = [PROCESSOR, EXTENSION, MODELS, MIDDLEWARE]
    for name in parts:
        resolve_name(name)
    return f"{_version('vllm')}; the guard's {len(parts)} parts are found"


def threads(at: Installation) -> str:
    """Threads of torch against the processors that this process may use."""
    allowed, used = _processors(), torch.get_num_threads()
    told = f"torch uses {used} threads on {allowed} processors"
    if used > allowed:
        return Hint(f"{told}, which slows it down: set OMP_NUM_THREADS={allowed}")
    return told


def _processors() -> int:
    """Processors by affinity and by the container's quota."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _QUOTA.read_text().partition(" ") if _QUOTA.exists() else ("max", "", "")
    return own if quota == "max" else max(1, min(own, int(quota) // int(period)))


def environment(at: Installation) -> str:
    """Whether the environment switches the guard off."""
    if switched_off():
        raise SettingError(f"{OFF}=1 lets every request pass unguarded; unset it")
    return "nothing switches the guard off"
