"""Largest memory in use since the last look: of the GPU where the model is there, else of this
process (on Linux)."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Peak memory in bytes between two calls of :meth:`read`.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._reset()

    def read(self) -> int | None:
        """The peak since the last call, and begin anew; None where the system does not tell."""
        if self.device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _high_water()
        self._reset()
        return peak

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            _CLEAR.write_text(
                "5"
            )  # resets the high-water mark of the resident set, see proc_pid_clear_refs(5)
        except OSError:
            return


def _high_water() -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
