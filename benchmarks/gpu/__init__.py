"""A check of everything on one GPU, in one command: `python -m benchmarks.gpu`."""
