"""OKTest: safe requests with dangerous words.

Source: Shi et al., arXiv 2401.17633; github.com/InvokerStark/OverKill, OKTest.csv (column prompt)
Licence: none stated
Revision: the repository's only one
Rows: 300
Label: every request is safe; refusing is over-refusal
Noise: machine-generated; a few are odd rather than safe. Not on the hub: put the CSV into the data
    folder as oktest.csv
"""

from __future__ import annotations

from safeswitch.bench.benchmark import Benchmark, register

register(Benchmark("oktest", __doc__ or "", label="safe"))
