"""Measuring: judges, intervals, paired tests, tables and pictures. Knows nothing of servers."""
