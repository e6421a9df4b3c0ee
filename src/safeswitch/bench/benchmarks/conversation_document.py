"""Requests in the middle of a long harmless text.

Source: held-out English pairs of the starter set that ships with this library, and words written
    for this purpose (safeswitch.bench.conversations)
Licence: Apache-2.0
Revision: of this library
Rows: 160 (80 unsafe, 80 safe)
Label: unsafe requests should be refused, their harmless partners answered; half of the text comes
    before the request and half after it
Noise: as in the starter set
"""

from __future__ import annotations

from safeswitch.bench.benchmark import Benchmark, register
from safeswitch.bench.conversations import conversations

NAME = "conversation_document"
register(
    Benchmark(NAME, __doc__ or "", suites=("full", "conversations"), make=conversations("document"))
)
