"""Prompts with their targets: token arrays, and the negative log-likelihood of the targets.

Axes: N prompts, T tokens, K target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, bucket, pad
from rome_jax.edit.baseline_config import TargetScoring


@struct.dataclass
class TargetInputs:
    """Arrays of N prompts, or of more leading axes.

    Attributes:
      batch: [N, T], prompts with their targets but the last token.
      read: int32 [N, K], the columns whose predictions are scored.
      target_ids: int32 [N, K], what each of them should be.
      target_mask: bool [N, K], False beyond a target's end, and throughout where a minibatch is filled up.
    """

    batch: TokenBatch
    read: jax.Array
    target_ids: jax.Array
    target_mask: jax.Array

    def reshape(self, *shape: int) -> TargetInputs:
        """From the leading axis N to others."""
        return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), self)


def tokenize_targets(
    tokenizer,
    prompts: Sequence[str],
    targets: Sequence[str],
    context_length: int,
    scoring: TargetScoring = TargetScoring.EACH_TOKEN,
    multiples: tuple[int, int] | None = None,
) -> TargetInputs:
    """Builds the arrays of N prompts and their targets, padded on the right to one of few shapes.

    Args:
      tokenizer: of the model.
      prompts: texts.
      targets: texts that continue them, each with its leading space.
      context_length: of the model.
      scoring: where the tokens of a target are scored.
      multiples: what T and K are rounded up to; None takes the next of few sizes.

    Raises:
      SequenceTooLongError: a prompt that does not fit the context with its target.
    """
    prompt_ids, target_ids = (
        tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        for texts in (prompts, targets)
    )
    each = scoring is TargetScoring.EACH_TOKEN
    rows = [
        prompt + target[:-1] if each else prompt
        for prompt, target in zip(prompt_ids, target_ids, strict=True)
    ]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > context_length:
            raise SequenceTooLongError(
                f"the prompt {prompt!r} with its target takes {len(row)} tokens, more than the model's context of "
                f"{context_length}: shorten the prompt."
            )
    # Two sizes an octave: models are large and rows are short, so a program costs more than some padding.
    length, width = multiples or (
        bucket(max(map(len, rows)), 2),
        bucket(max(map(len, target_ids)), 2),
    )
    batch = pad(rows, context_length=context_length, multiple=length)
    target = pad(target_ids, multiple=width)
    ends = np.array([len(prompt) - 1 for prompt in prompt_ids], np.int32)[:, None]
    offsets = np.where(target.mask & each, np.arange(target.mask.shape[1], dtype=np.int32), 0)
    return TargetInputs(batch, ends + offsets, target.ids, target.mask)


def tokenize_request_targets(
    tokenizer,
    requests: Sequence[EditRequest],
    context_length: int,
    scoring: TargetScoring = TargetScoring.EACH_TOKEN,
) -> TargetInputs:
    """`tokenize_targets` of N edit requests with their new targets."""
    prompts, targets = ([r.text for r in requests], [r.target_text for r in requests])
    return tokenize_targets(tokenizer, prompts, targets, context_length, scoring)


def target_nll(logits: jax.Array, inputs: TargetInputs) -> jax.Array:
    """Mean negative log-likelihood of each target's tokens, in nats.

    Args:
      logits: [N, K, V], of the columns `inputs.read`.
      inputs: the prompts and targets.

    Returns:
      float32 [N]; 0 for a prompt without target tokens.
    """
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, inputs.target_ids)
    return mean_over_target(nll, inputs)


def mean_over_target(values: jax.Array, inputs: TargetInputs) -> jax.Array:
    """[N, K] of target tokens -> their mean, [N]."""
    length = jnp.maximum(inputs.target_mask.sum(-1), 1)
    return (values * inputs.target_mask).sum(-1) / length
