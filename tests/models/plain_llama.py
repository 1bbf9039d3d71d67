"""The forward pass of Llama in numpy and float64, written down without the library, for tests of its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import Params


def float64(params: Params) -> Params:
    """Copies params to float64 arrays of numpy."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def run(
    params: Params,
    config: ModelConfig,
    ids: Sequence[int],
    gates: dict[int, np.ndarray] | None = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Runs one sequence of T tokens.

    Args:
      params: Weights in float64.
      config: A config of the Llama family.
      ids: The tokens.
      gates: Values [F] that the last token's gate projection takes, by layer.

    Returns:
      The log-probabilities of the next token, [T, V], and each layer's gate projection of the last token.
    """
    length, blocks, seen = len(ids), params["blocks"], []
    hidden = params["wte"]["embedding"][list(ids)]
    for layer in range(config.num_layers):
        weights = jax.tree.map(lambda leaf, i=layer: leaf[i], blocks)
        normed = _norm(hidden, weights["ln_1"]["scale"], config)
        attn = weights["attn"]
        query, key, value = (
            (normed @ attn[name]["kernel"]).reshape(length, -1, config.head_dim)
            for name in ("query", "key", "value")
        )
        query, key = _rotate(query, config), _rotate(key, config)
        mixed = np.zeros_like(query)
        for head in range(config.num_heads):
            group = head * config.num_kv_heads // config.num_heads
            scores = query[:, head] @ key[:, group].T / np.sqrt(config.head_dim)
            scores[~np.tri(length, dtype=bool)] = -np.inf
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = scores / scores.sum(-1, keepdims=True) @ value[:, group]
        hidden = hidden + mixed.reshape(length, -1) @ attn["out"]["kernel"]
        normed, mlp = _norm(hidden, weights["ln_2"]["scale"], config), weights["mlp"]
        gate = normed @ mlp["gate"]["kernel"]
        seen.append(gate[-1].copy())
        if gates and layer in gates:
            gate[-1] = gates[layer]
        memory = gate / (1 + np.exp(-gate)) * (normed @ mlp["up"]["kernel"])
        hidden = hidden + memory @ mlp["down"]["kernel"]
    logits = _norm(hidden, params["ln_f"]["scale"], config) @ params["lm_head"]["kernel"]
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), seen


def _norm(hidden: np.ndarray, scale: np.ndarray, config: ModelConfig) -> np.ndarray:
    return hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale


def _rotate(heads: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Multiplies pairs (i, i + K / 2), as complex numbers, by e^(i · position · frequency)."""
    half = config.head_dim // 2
    frequencies = config.rotary.base ** (-np.arange(half) / half)
    turned = heads[..., :half] + 1j * heads[..., half:]
    turned = turned * np.exp(1j * np.arange(len(heads))[:, None, None] * frequencies)
    return np.concatenate([turned.real, turned.imag], axis=-1)
