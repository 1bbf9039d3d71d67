"""Fine-tuning (FT), a baseline of the ROME paper: a few steps of Adam on some weights until the model gives the target.

FT leaves the change free (Meng et al., 2022, appendix E.1). FT-L keeps it in an L∞ ball around the original weights by
projection after each step (Zhu et al., 2020, "Modifying Memories in Transformer Models").

    requests ─► token arrays ─► minibatches ─► `train_weights` ─► dense delta

`train_weights` runs passes of loss, Adam step and projection until the loss is low enough; see `weight_training`.

Axes: N edits, M minibatches of B requests, R requests, S passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.request import EditRequest
from rome_jax.data.tokenization import end_of_text
from rome_jax.edit.baseline_config import FTConfig
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.result import EditResult, check_finite
from rome_jax.edit.stages.answers import add_answers, target_answers, warn_of_failures
from rome_jax.edit.stages.chunks import check_requests, map_chunks
from rome_jax.edit.stages.targets import TargetInputs, tokenize_request_targets
from rome_jax.edit.stages.weight_training import Settings, Weight, train_weights
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta, DenseUpdate
from rome_jax.models.registry import LanguageModel


@struct.dataclass
class FTResult:
    """N edits and the course of their training.

    Attributes:
      deltas: Dense updates with case axis N, ordered by layer, projection and part.
      loss: float32 [N, S, M] the loss of each minibatch before its step; NaN after the end of training.
      steps: int32 [N] the passes that each edit took.
    """

    deltas: Delta
    loss: jax.Array
    steps: jax.Array


def compute_from_inputs(
    params: forward.Params, model_config: ModelConfig, inputs: TargetInputs, config: FTConfig
) -> FTResult:
    """Trains N independent edits, each on its own M minibatches.

    Args:
      params: The model's parameters.
      model_config: The model's configuration.
      inputs: Token arrays with leading axes N, M and B; see `minibatches`.
      config: Hyperparameters. Values that change no shape, such as `lr`, do not cause a compilation.

    Returns:
      The edits with their losses.
    """
    trained = _trained_weights(params, config)
    changes, loss, steps = train_weights(
        params, model_config, trained, config.num_steps, Settings.of(config), inputs
    )
    updates = tuple(
        DenseUpdate(leaf, part, jnp.full(len(steps), layer, jnp.int32), change)
        for (layer, leaf, part), change in zip(trained, changes, strict=True)
    )
    return FTResult(Delta(updates), loss, steps)


def _trained_weights(params: forward.Params, config: FTConfig) -> tuple[Weight, ...]:
    """Lists the trained arrays, lowest layer first; a projection may have no bias."""
    return tuple(
        (layer, leaf, part)
        for layer in config.layers
        for leaf in config.leaves
        for part in config.parts
        if part.value in params["blocks"][leaf.value[0]][leaf.value[1]]
    )


def compute(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: FTConfig,
    *,
    chunk_size: int = 1,
    progress: bool = False,
    check_answers: bool = True,
) -> EditResult:
    """Trains N independent edits, each on its own request.

    The deltas are dense: N edits take N times the memory of the trained weights (41 MB each for GPT-2 XL). If there
    are many requests, compute a few at a time.

    Args:
      model: The model to edit; it is not changed.
      requests: The facts to write.
      config: Hyperparameters.
      chunk_size: Requests that are trained side by side. Each takes about seven times the memory of the trained
        weights.
      progress: Whether to show a progress bar.
      check_answers: Whether to run the edited model once per request, which sets `is_answer` and warns about edits that
        did not make their target the model's answer.

    Returns:
      An `EditResult` with dense deltas, which have to be merged one at a time, and one loss per pass.

    Raises:
      ValueError: If there are no requests, `chunk_size` is below 1, or a layer or weight does not exist.
      SequenceTooLongError: If a request does not fit into the context.

    Example:
      >>> from rome_jax import FTConfig, apply_delta
      >>> result = compute(model, [request], FTConfig((5,), lr=5e-3))
      >>> bool(result.losses[0, 0] > 1), bool(np.nanmin(result.losses) < 0.01)
      (True, True)
      >>> edited = apply_delta(model.params, result.deltas[0])
    """
    check_requests(model, requests, config, chunk_size)

    def compute_chunk(chunk: Sequence[EditRequest]) -> EditResult:
        inputs = _tokenize(model, chunk, config).reshape(len(chunk), 1, 1)
        found = compute_from_inputs(model.params, model.config, inputs, config)
        return EditResult(found.deltas, losses=found.loss[..., 0], steps=found.steps)

    lengths = [len(request.text) + len(request.target_text) for request in requests]
    result = map_chunks(compute_chunk, requests, lengths, chunk_size, "FT", progress)
    return add_answers(model, requests, result.finite(requests), check_answers, stacklevel=3)


def compute_deltas(
    model: LanguageModel, requests: Sequence[EditRequest], config: FTConfig, **options: Any
) -> Delta:
    """Returns the deltas of `compute`, N independent edits with case axis N. Takes and raises the same.

    Example:
      >>> from rome_jax import FTConfig
      >>> compute_deltas(model, [request], FTConfig((5,), lr=5e-3))
      Delta(1 edits: MLP_DOWN kernel [512, 128] at layer 5, MLP_DOWN bias [128] at layer 5)
    """
    return compute(model, requests, config, **options).deltas


def compute_joint_delta(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: FTConfig,
    *,
    check_answers: bool = True,
) -> Delta:
    """Trains one edit on all requests, in minibatches that keep their order.

    Args:
      model: The model to edit; it is not changed.
      requests: The facts to write.
      config: Hyperparameters; `batch_size` is the size of a minibatch.
      check_answers: Whether to run the edited model once per request and warn if a target is not its answer.

    Returns:
      A dense Delta without a case axis.

    Raises:
      ValueError: As in `compute`.
      SequenceTooLongError: As in `compute`.

    Example:
      >>> from rome_jax import FTConfig
      >>> compute_joint_delta(model, [request], FTConfig((5,), lr=5e-3)).batched
      False
    """
    check_requests(model, requests, config)
    inputs = minibatches(_tokenize(model, requests, config), config.batch_size)
    joint = compute_from_inputs(model.params, model.config, inputs, config).deltas[0]
    check_finite(joint, requests)
    if check_answers:
        edited = model.replace(params=apply_delta(model.params, joint))
        warn_of_failures(requests, *target_answers(edited, requests), stacklevel=3)
    return joint


def minibatches(inputs: TargetInputs, batch_size: int) -> TargetInputs:
    """Splits R requests into the M minibatches of one edit.

    The last minibatch is filled with rows that do not count: their target masks are all False.

    Args:
      inputs: Token arrays with leading axis R.
      batch_size: The number of requests B in a minibatch, or R if that is smaller.

    Returns:
      Token arrays with leading axes 1, M and B.
    """
    num_requests = len(inputs.target_mask)
    size = min(batch_size, num_requests)
    filler = -num_requests % size
    filled = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:filler]]), inputs)
    filled.target_mask[num_requests:] = False
    return filled.reshape(1, -1, size)


def _tokenize(
    model: LanguageModel, requests: Sequence[EditRequest], config: FTConfig
) -> TargetInputs:
    """Builds the token arrays of requests, with leading axis R."""
    end = end_of_text(model.tokenizer) if config.ends_targets else None
    return tokenize_request_targets(
        model.tokenizer, requests, model.config.context_length, config.scoring, end
    )
