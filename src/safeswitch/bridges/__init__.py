"""Our engine and benchmarks in other people's harnesses: lm-evaluation-harness, Inspect."""
