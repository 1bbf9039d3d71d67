"""The forward pass of GPT-2 and Adam in numpy and float64, written down without the library, for tests of edits.

The forward pass also takes complex states: at h + iε u, the imaginary part of what it computes is ε times the
derivative along u, exact to rounding for a small ε, which spares the tests a backward pass.

Axes: T tokens, D width, F MLP width, V vocabulary; "..." are axes of independent sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import Params


class Layer(NamedTuple):
    """Keys [..., T, F] of a layer's down-projection, its MLP's outputs [..., T, D], and the states after the layer."""

    keys: np.ndarray
    outputs: np.ndarray
    hidden: np.ndarray


def float64(params: Params) -> Params:
    """Copies params to float64 arrays of numpy."""
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)


def embed(params: Params, ids: Sequence[int]) -> np.ndarray:
    """Returns the states before the first layer, [T, D]."""
    return params["wte"]["embedding"][list(ids)] + params["wpe"]["embedding"][: len(ids)]


def run_layers(
    params: Params, config: ModelConfig, hidden: np.ndarray, layers: Iterable[int]
) -> dict[int, Layer]:
    """Runs consecutive layers on states [..., T, D]; returns what each of them computes."""
    length, found = hidden.shape[-2], {}
    for layer in layers:
        weights = jax.tree.map(lambda leaf, i=layer: leaf[i], params["blocks"])
        attn, mlp = weights["attn"], weights["mlp"]
        normed = norm(hidden, weights["ln_1"], config)
        query, key, value = (
            (normed @ attn["qkv"]["kernel"][:, part] + attn["qkv"]["bias"][part])
            .reshape(*normed.shape[:-1], config.num_heads, config.head_dim)
            .swapaxes(-2, -3)
            for part in range(3)
        )
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(config.head_dim)
        scores[..., ~np.tri(length, dtype=bool)] = -np.inf
        scores = np.exp(scores - scores.real.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ value).swapaxes(-2, -3)
        hidden = hidden + mixed.reshape(hidden.shape) @ attn["out"]["kernel"] + attn["out"]["bias"]
        normed = norm(hidden, weights["ln_2"], config)
        x = normed @ mlp["up"]["kernel"] + mlp["up"]["bias"]
        keys = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))
        outputs = keys @ mlp["down"]["kernel"] + mlp["down"]["bias"]
        hidden = hidden + outputs
        found[layer] = Layer(keys, outputs, hidden)
    return found


def log_softmax(params: Params, normed: np.ndarray) -> np.ndarray:
    """Returns the log-probabilities of the next token [..., V] from states after the final norm [..., D]."""
    logits = normed @ params["wte"]["embedding"].T
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def norm(hidden: np.ndarray, weights: Params, config: ModelConfig) -> np.ndarray:
    """Computes LayerNorm; a square, not a squared modulus, so that it is analytic."""
    centered = hidden - hidden.mean(-1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(-1, keepdims=True) + config.norm_epsilon)
    return centered / deviation * weights["scale"] + weights["bias"]


class Adam:
    """Adam with the usual settings (Kingma and Ba, 2015, algorithm 1)."""

    def __init__(self, rate: float):
        self.rate, self.steps = rate, 0
        self.mean: np.ndarray | float = 0.0
        self.square: np.ndarray | float = 0.0

    def step(self, gradient: np.ndarray) -> np.ndarray:
        """Returns what is added to the parameters."""
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        mean, square = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.999**self.steps)
        return -self.rate * mean / (np.sqrt(square) + 1e-8)
