"""The inputs of a model: edit requests, tokens, positions, packed rows and corpora."""
