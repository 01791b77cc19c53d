"""Benchmarks: a file is an area, and lists its `BENCHMARKS`."""
