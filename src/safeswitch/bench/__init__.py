"""Measuring defences: benchmarks, judges, runs, tables. Knows nothing of servers."""
