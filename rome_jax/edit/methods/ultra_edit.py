"""UltraEdit: one gradient step per batch, by a closed form over all tokens (Gu et al., 2025, "UltraEdit: Training-,
Subject-, and Memory-Free Lifelong Editing in Language Models", arXiv 2505.14679). Not verified against the authors'
code.

A = I and s = 1 in the closed form of `rome_jax.edit.methods.token_form`, and the residuals are a gradient step:

    ΔW = (K Kᵀ + I)⁻¹ K Rᵀ  with  R = −η ‖k̂‖² ĝ

Departures from the authors' code: each request has the same weight in the loss (there, each target token of a
micro-batch of 10 requests has); statistics are exact (there, a batch of n tokens adds n / (n − 1) of its squares);
everything after the backward pass is float64. An independent edit starts from statistics that have seen nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from rome_jax.edit.baseline_config import TokenConfig
from rome_jax.edit.config import MethodName
from rome_jax.edit.methods.token_form import TokenForm
from rome_jax.files.checked import PositiveFloat

_ULTRAEDIT: Mapping[str, Mapping[str, Any]] = {
    # From the authors' files, for zsRE and UltraEditBench: fc_out alone.
    "gpt-j-6b": {"layers": tuple(range(18, 27))},
    # Chosen on tuning requests, never on those that results are reported for.
    "smollm2-135m": {"layers": tuple(range(2, 8)), "lr": 1e-4},
    "factworld-gpt2": {"layers": (3, 4, 5), "lr": 1e-3},
    "factworld-gptj": {"layers": (2, 3, 4, 5), "lr": 1.5e-3},
}


@dataclasses.dataclass(frozen=True)
class UltraEditConfig(TokenConfig):
    """Hyperparameters of UltraEdit.

    Attributes:
      lr: η, the factor of the residuals.

    The other attributes are those of `TokenConfig`.

    Raises:
      ValueError: If a value has another type or is out of range.

    Example:
      >>> UltraEditConfig.for_model("gpt-j-6b").layers
      (18, 19, 20, 21, 22, 23, 24, 25, 26)
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = _ULTRAEDIT

    lr: PositiveFloat = 1e-6


def _residuals(config: UltraEditConfig, keys: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Returns −η ‖k̂‖² ĝ of every token."""
    return -config.lr * (keys**2).sum(1, keepdims=True) * gradients


ULTRAEDIT = TokenForm(MethodName.ULTRAEDIT, _residuals)

compute = ULTRAEDIT.compute
compute_deltas = ULTRAEDIT.compute_deltas
compute_joint_delta = ULTRAEDIT.compute_joint_delta
make_editor = ULTRAEDIT.make_editor
