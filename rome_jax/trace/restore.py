"""Causal tracing of hidden states (paper, section 2.1).

    clean run ─► states, answer     corrupted runs (noise on the subject) ─► restore one clean state ─► P(answer)

A state that brings the answer back although the subject is corrupted carries the fact.

Axes: L layers, T tokens, S noise samples, D width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Patch, PatchMode, Site
from rome_jax.tokens import TokenBatch


@struct.dataclass
class Restoration:
    """Probabilities of the clean run's answer.

    Attributes:
      answer: int32 [], the token that the clean run predicts.
      clean: [], its probability.
      corrupted: [], its mean probability over the corrupted runs.
      restored: [T, L], the mean with the clean state put back at (token, layer); the indirect effect is
        restored - corrupted, the total effect clean - corrupted.
    """

    answer: jax.Array
    clean: jax.Array
    corrupted: jax.Array
    restored: jax.Array


@functools.partial(jax.jit, static_argnames="config")
def restore_hidden_states(
    params: forward.Params, config: ModelConfig, ids: jax.Array, mask: jax.Array, noise: jax.Array
) -> Restoration:
    """Restores every hidden state of one prompt by itself.

    Args:
      params, config: the model.
      ids: int32 [T], the prompt, padded on the right.
      mask: bool [T], True for real tokens.
      noise: [S, T, D], added to the token embeddings; zero outside the subject.

    Returns:
      `Restoration`; rows of padding mean nothing.

    Example:
      >>> effects = restore_hidden_states(params, config, ids, mask, noise)  # doctest: +SKIP
      >>> indirect = effects.restored - effects.corrupted  # doctest: +SKIP
    """
    samples, length, _ = noise.shape
    last = mask.sum() - 1

    def probabilities(rows: int, patches=(), capture=()):
        batch = TokenBatch(jnp.tile(ids, (rows, 1)), jnp.tile(mask, (rows, 1)))
        out = forward.hidden_states(params, config, batch, patches=patches, capture=capture)
        logits = forward.unembed(params, config, out.hidden[:, last])
        return jax.nn.softmax(logits), out.captures

    clean, states = probabilities(1, capture=(Site.RESIDUAL,))
    clean_states = states[Site.RESIDUAL][:, 0]  # [L, T, D]
    answer = clean[0].argmax()

    everywhere = jnp.ones((1, length), bool)
    corrupt = Patch(Site.EMBED, PatchMode.ADD, jnp.int32(0), everywhere, noise)
    corrupted, _ = probabilities(samples, patches=(corrupt,))

    # One batch a layer: every token restored under every sample, row (t, s).
    corrupt_all = corrupt.replace(values=jnp.tile(noise, (length, 1, 1)))
    token = jnp.repeat(jnp.arange(length), samples)

    def restore_layer(layer):
        restore = Patch(
            Site.RESIDUAL,
            PatchMode.REPLACE,
            layer,
            token[:, None] == jnp.arange(length),
            clean_states[layer][None],
        )
        restored, _ = probabilities(length * samples, patches=(corrupt_all, restore))
        return restored[:, answer].reshape(length, samples).mean(-1)

    restored = jax.lax.map(restore_layer, jnp.arange(config.num_layers)).T
    return Restoration(answer, clean[0, answer], corrupted[:, answer].mean(), restored)
