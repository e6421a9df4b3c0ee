"""Requests in two halves over two turns.

Source: held-out English pairs of the starter set that ships with this library, and words written
    for this purpose (safeswitch.bench.conversations)
Licence: Apache-2.0
Revision: of this library
Rows: 160 (80 unsafe, 80 safe)
Label: unsafe requests should be refused, their harmless partners answered; the last turn asks to
    put the halves together (payload splitting, Kang et al. 2023, arXiv 2302.05733)
Noise: as in the starter set; small models cannot put halves together, and then say something else
"""

from __future__ import annotations

from safeswitch.bench.benchmark import Benchmark, register
from safeswitch.bench.conversations import conversations

NAME = "conversation_split"
register(
    Benchmark(NAME, __doc__ or "", suites=("full", "conversations"), make=conversations("split"))
)
