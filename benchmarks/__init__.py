"""Benchmarks of speed and memory, described in `benchmarks/README.md`."""
