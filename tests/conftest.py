"""Puts the repository's root on the path, so that tests import ``tests.tiny``; keeps torch to one
thread."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)
