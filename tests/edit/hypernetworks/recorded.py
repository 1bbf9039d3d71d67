"""Readers and comparisons of the numbers recorded from the authors' code of MEND and KE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.stages.targets import TargetInputs

# Bounds of tests/golden/README.md: max |a - b| / max |b| over an array, and absolute errors of losses.
NUMBERS = 1e-5
LOSS, KL = 1e-4, 1e-6
LENGTH = 24  # columns, enough for each text

Arrays = Mapping[str, np.ndarray]


def under(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """Returns the arrays whose names start with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def assert_close(actual, expected, tolerance: float, what: str) -> None:
    """Bounds max |a - b| / max |b|."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, what
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{what}: {error:.2e}"


def check_statistics(found: Mapping[str, Any], expected: Arrays, what: str) -> None:
    """Compares the statistics of x and δ with those that the authors keep of u and v."""
    for name, theirs in (("x", "u"), ("delta", "v")):
        own = found[name]
        assert own["count"] == expected["k"][0], what
        deviation = np.sqrt(own["squares"] / (own["count"] - 1))
        assert_close(own["mean"], expected[f"{theirs}_mean"], NUMBERS, f"{what}, mean of {name}")
        assert_close(deviation, expected[f"{theirs}_std"], NUMBERS, f"{what}, deviation of {name}")
        if f"{theirs}_s" in expected:
            assert_close(own["squares"], expected[f"{theirs}_s"], NUMBERS, f"{what}, {name}")


def columns(array: np.ndarray, fill: int = 0) -> np.ndarray:
    """Pads an array [N, T] to `LENGTH` columns."""
    return np.pad(array, [(0, 0), (0, LENGTH - array.shape[1])], constant_values=fill)


def inputs_of(arrays: Arrays, part: str) -> TargetInputs:
    """Returns a batch of the authors. Edits score their labels; other texts (`loc`) score every token."""
    ids, mask, labels = (
        arrays[f"{part}.{name}"] for name in ("input_ids", "attention_mask", "labels")
    )
    target_ids = columns(labels[:, 1:], fill=-100)  # a column predicts the next token
    scored = columns(mask) > 0 if part == "loc" else target_ids >= 0
    read = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), scored.shape)
    batch = TokenBatch(columns(ids).astype(np.int32), columns(mask) > 0)
    return TargetInputs(batch, read, np.maximum(target_ids, 0).astype(np.int32), scored)


def request_of(prompt: str, target: str) -> EditRequest:
    """Returns a request whose text is the prompt."""
    subject, _, rest = prompt.rpartition(" ")
    return EditRequest("{} " + rest, subject, target.strip())
