"""Token arrays of prompts with their targets, and the negative log-likelihood of the targets.

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
from rome_jax.data.tokenization import continuation_ids, prompt_ids
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, bucket, pad
from rome_jax.edit.baseline_config import TargetScoring
from rome_jax.files.checked import shown


@struct.dataclass
class TargetInputs:
    """Token arrays of N prompts with their targets. N may also stand for several leading axes.

    Attributes:
      batch: [N, T] prompts with their targets, except for the last token of each target.
      read: int32 [N, K] columns that predict the target's tokens.
      target_ids: int32 [N, K] tokens that should be predicted there.
      target_mask: bool [N, K], False beyond the end of a target, and everywhere in rows that only fill a minibatch.
    """

    batch: TokenBatch
    read: jax.Array | np.ndarray
    target_ids: jax.Array | np.ndarray
    target_mask: jax.Array | np.ndarray

    def reshape(self, *shape: int) -> TargetInputs:
        """Replaces the leading axis N by others.

        Args:
          *shape: New leading axes.
        """
        return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), self)


def tokenize_targets(
    tokenizer,
    prompts: Sequence[str],
    targets: Sequence[str],
    context_length: int,
    scoring: TargetScoring = TargetScoring.EACH_TOKEN,
    multiples: tuple[int, int] | None = None,
    end: int | None = None,
) -> TargetInputs:
    """Builds the arrays of N prompts and their targets, padded on the right to one of few shapes.

    Args:
      tokenizer: Tokenizer of the model.
      prompts: N texts.
      targets: Text that continues each prompt, with its leading space.
      context_length: Context length of the model, in tokens.
      scoring: Where the tokens of a target are scored.
      multiples: Numbers that T and K are rounded up to a multiple of. None rounds up to the next of few sizes.
      end: Token that is appended to each target, such as the end-of-text token; None appends none.

    Raises:
      SequenceTooLongError: If a prompt with its target does not fit the context.

    Example:
      >>> inputs = tokenize_targets(model.tokenizer, ["The sport is"], [" tennis"], 256)
      >>> inputs.batch.ids.shape, inputs.read.tolist()
      ((1, 3), [[2]])
    """
    rows = prompt_ids(tokenizer, prompts)
    target_ids = continuation_ids(tokenizer, targets)
    if end is not None:
        target_ids = [[*target, end] for target in target_ids]
    ends = np.array([len(row) - 1 for row in rows], np.int32)[:, None]
    each = scoring is TargetScoring.EACH_TOKEN
    if each:
        rows = [row + target[:-1] for row, target in zip(rows, target_ids, strict=True)]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > context_length:
            raise SequenceTooLongError(
                f"the prompt {shown(prompt)} with its target takes {len(row)} tokens, more than the model's context of "
                f"{context_length}: shorten the prompt."
            )
    # Only two sizes per octave: rows are short, so compiling another program costs more than some padding.
    length, width = multiples or (
        bucket(max(map(len, rows)), 2),
        bucket(max(map(len, target_ids)), 2),
    )
    batch = pad(rows, context_length=context_length, multiple=length)
    target = pad(target_ids, multiple=width)
    offsets = np.where(target.mask & each, np.arange(target.mask.shape[1], dtype=np.int32), 0)
    return TargetInputs(batch, ends + offsets, target.ids, target.mask)


def tokenize_request_targets(
    tokenizer,
    requests: Sequence[EditRequest],
    context_length: int,
    scoring: TargetScoring = TargetScoring.EACH_TOKEN,
    end: int | None = None,
) -> TargetInputs:
    """Builds the arrays of N edit requests with their new targets; see `tokenize_targets`."""
    prompts, targets = ([r.text for r in requests], [r.target_text for r in requests])
    return tokenize_targets(tokenizer, prompts, targets, context_length, scoring, end=end)


def target_nll(logits: jax.Array, inputs: TargetInputs) -> jax.Array:
    """Computes the mean negative log-likelihood of each target's tokens, in nats.

    Args:
      logits: [N, K, V] logits of the columns `inputs.read`.
      inputs: Prompts and targets.

    Returns:
      float32 [N]; 0 for a prompt without target tokens.
    """
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, inputs.target_ids)
    return mean_over_target(nll, inputs)


def mean_over_target(values: jax.Array, inputs: TargetInputs) -> jax.Array:
    """Averages values of target tokens [N, K] over each target: [N]."""
    length = jnp.maximum(inputs.target_mask.sum(-1), 1)
    return (values * inputs.target_mask).sum(-1) / length
