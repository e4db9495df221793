"""Benchmarks against peers and baselines: `make bench`."""
