"""Requests, tokens, positions and corpora: what goes into a model."""
