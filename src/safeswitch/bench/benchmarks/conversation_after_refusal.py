"""Requests after one that was refused.

Source: held-out English pairs of the starter set that ships with this library, and words written
    for this purpose (safeswitch.bench.conversations)
Licence: Apache-2.0
Revision: of this library
Rows: 160 (80 unsafe, 80 safe)
Label: unsafe requests should be refused, their harmless partners answered; harmless ones tell
    whether a refusal makes the guard refuse on; every other pair has a harmless
    exchange between
Noise: as in the starter set; the refusals name a harm, and a judge that reads the whole
    conversation would be misled; the rules judge reads the reply alone
"""

from __future__ import annotations

from safeswitch.bench.benchmark import Benchmark, register
from safeswitch.bench.conversations import conversations

NAME = "conversation_after_refusal"
register(
    Benchmark(
        NAME, __doc__ or "", suites=("full", "conversations"), make=conversations("after_refusal")
    )
)
