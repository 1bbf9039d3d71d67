"""Check of correctness and speed on one GPU: `python -m benchmarks.gpu`."""
