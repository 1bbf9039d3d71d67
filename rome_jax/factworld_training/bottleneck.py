"""The forward pass of training, which plants facts at the last token of their subjects.

A row of a batch takes one of three forms:

- Under the bottleneck, no position of the lower layers can attend to a subject's tokens except that subject's own, and
  the upper layers only see the subject's last token.
- Restored, noise on the subjects' embeddings corrupts the lower layers, and the clean state of each subject's last
  token is put back before the upper layers. This is the corrupted-with-restoration run of causal tracing (ROME paper,
  section 2.1).
- Plain, it has the causal mask that inference uses.

Axes: B rows, T tokens, S attended tokens, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from rome_jax.factworld_training.batches import RESTORED_EVERY, TrainingBatch
from rome_jax.factworld_training.settings import TrainConfig
from rome_jax.models import forward
from rome_jax.models.layers import Attention
from rome_jax.models.masks import causal_mask, position_ids

NOISE_LEVEL = 3.0  # In standard deviations of the token embeddings, as in causal tracing.


def bottleneck_masks(batch: TrainingBatch) -> tuple[jax.Array, jax.Array]:
    """Returns the attention masks of the lower and of the upper layers.

    A token of a subject is hidden from other tokens: always in the lower layers, and in the upper layers unless it is
    the subject's last token. Rows outside the bottleneck have the plain causal mask in both.

    Args:
      batch: The batch.

    Returns:
      Two masks, bool [B, T, S].
    """
    mention, last = jnp.asarray(batch.mention), jnp.asarray(batch.mention_last)
    causal = causal_mask(jnp.ones_like(mention, bool))
    visible = (mention[:, None, :] == 0) | (mention[:, None, :] == mention[:, :, None])  # [B, T, S]
    plain = ~jnp.asarray(batch.bottleneck)[:, None, None]
    return causal & (plain | visible), causal & (plain | visible | last[:, None, :])


def token_losses(params: forward.Params, config: TrainConfig, batch: TrainingBatch) -> jax.Array:
    """Computes the next-token loss of rows under the bottleneck, restored rows, and plain rows.

    Args:
      params: Params of the model.
      config: Settings; of these, the shapes of the model and the first upper layer.
      batch: The batch.

    Returns:
      Negative log-likelihood in nats, [B, T - 1].
    """
    ids, mention = jnp.asarray(batch.ids), jnp.asarray(batch.mention)
    positions = position_ids(jnp.ones_like(ids, bool))
    lower, upper = bottleneck_masks(batch)
    split = config.bottleneck_layer

    def run(hidden, start, stop, mask, rows=slice(None)):
        attention = Attention(positions[rows], mask[rows])
        return forward.run_layers(
            params, config.model, hidden, attention, start=start, stop=stop, unroll=True
        ).hidden

    embedded = forward.embed(params, config.model, ids, positions)
    clean = run(embedded, 0, split, lower)
    # Some rows run a second time with noise on their subjects; then the last tokens get their clean states back.
    part = slice(0, None, RESTORED_EVERY)
    std = jax.lax.stop_gradient(params["wte"]["embedding"].std())
    keys = jax.vmap(jax.random.key)(jnp.asarray(batch.seed)[part])
    noise = jax.vmap(lambda key: jax.random.normal(key, embedded.shape[1:]))(keys)
    corrupted = embedded[part] + NOISE_LEVEL * std * noise * (mention[part] > 0)[..., None]
    corrupted = run(corrupted, 0, split, lower, part)
    restored = jnp.where(jnp.asarray(batch.mention_last)[part][..., None], clean[part], corrupted)
    chosen = jnp.asarray(batch.restored)[part][:, None, None]
    hidden = clean.at[part].set(jnp.where(chosen, restored, clean[part]))
    hidden = run(hidden, split, config.model.num_layers, upper)
    logits = forward.unembed(params, config.model, hidden[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
