"""SODE: the two-sided protocol of "The Art of Defending".

Source: Varshney et al., arXiv 2401.00287 (findings-acl.776); the authors' mixture of public unsafe
    and safe prompts
Licence: those of its parts
Revision: the user's own file; it is not on the hub: put it into the data folder as sode.jsonl in
    our schema
Rows: as given; the protocol wants unsafe and safe prompts from several sources each
Label: unsafe responses on unsafe prompts, abstained responses on safe prompts; both are given for
    every suite in the table two_sided
Noise: the authors judge with trained classifiers; the pair under another judge is not comparable
    with their tables
"""

from __future__ import annotations

from safeswitch.bench.benchmark import Benchmark, register

register(Benchmark("sode", __doc__ or ""))
