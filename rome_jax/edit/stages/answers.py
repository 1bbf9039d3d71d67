"""Whether an edited model gives the target as its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.request import EditRequest
from rome_jax.edit import edit_warnings
from rome_jax.edit.delta import apply_delta, place_delta
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.chunks import map_chunks
from rome_jax.edit.stages.targets import TargetInputs, tokenize_request_targets
from rome_jax.files.checked import shown
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, DenseUpdate
from rome_jax.models.registry import LanguageModel


def target_is_answer(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    deltas: Delta | None = None,
    chunk_size: int = 32,
) -> np.ndarray:
    """Checks whether greedy decoding of each request's prompt gives its new target.

    Args:
      model: Unedited model.
      requests: N requests.
      deltas: N edits, one per request. None checks the unedited model.
      chunk_size: Number of requests that run at once; it bounds the memory.

    Returns:
      bool [N].

    Raises:
      SequenceTooLongError: If a prompt with its target does not fit the context.

    Example:
      >>> target_is_answer(model, [request]).tolist()
      [False]
    """
    return target_answers(model, requests, deltas, chunk_size)[0]


def target_answers(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    deltas: Delta | None = None,
    chunk_size: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Checks the requests as `target_is_answer`, and also computes the probabilities of their targets.

    Returns:
      bool [N], whether the target is the answer, and float32 [N], the joint probability of its tokens.
    """
    inputs = tokenize_request_targets(model.tokenizer, requests, model.config.context_length)
    dense = deltas is not None and any(isinstance(u, DenseUpdate) for u in deltas.updates)
    size = 1 if dense else chunk_size  # dense edits are merged into the weights one at a time

    def ask(rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        chosen: TargetInputs = jax.tree.map(lambda leaf: leaf[np.array(rows)], inputs)
        params, own = model.params, None
        if deltas is not None and dense:
            params = apply_delta(params, deltas[rows[0]])
        elif deltas is not None:
            own = jax.tree.map(lambda leaf: leaf[np.array(rows)], deltas)
        case = np.arange(len(rows), dtype=np.int32)
        batch = dataclasses.replace(chosen.batch, case=case)
        logits = forward.logits(params, model.config, batch, positions=chosen.read, deltas=own)
        log_probs = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)))
        target = np.take_along_axis(log_probs, np.asarray(chosen.target_ids)[..., None], -1)[..., 0]
        # The comparison is False for NaN, which argmax would take for the largest logit.
        right = (log_probs.argmax(-1) == chosen.target_ids) & (target <= 0)
        joint = np.where(chosen.target_mask, target, 0).sum(-1)
        return (right | ~chosen.target_mask).all(-1), np.exp(joint)

    indices = range(len(requests))
    return map_chunks(ask, indices, [0] * len(requests), size, "answers")


def add_answers(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    result: EditResult,
    check_answers: bool = True,
    stacklevel: int = 4,
) -> EditResult:
    """Adds `is_answer` to the result of a method, and warns if an edit did not make its target the model's answer.

    On a mesh, the factors of the edits are also split like the weights that they change; see `place_delta`.

    Args:
      model: Unedited model.
      requests: N requests.
      result: Their edits.
      check_answers: Whether to do so; the edited model has to run once for every request.
      stacklevel: Number of calls from here up to the user's code, for the warning.

    Returns:
      The result with `is_answer`.
    """
    result = dataclasses.replace(result, deltas=place_delta(result.deltas, model.params))
    if not check_answers:
        return result
    is_answer, probability = target_answers(model, requests, result.deltas)
    warn_of_failures(requests, is_answer, probability, stacklevel + 1)
    return dataclasses.replace(result, is_answer=jnp.asarray(is_answer))


def warn_of_failures(
    requests: Sequence[EditRequest],
    is_answer: np.ndarray,
    probability: np.ndarray,
    stacklevel: int = 3,
) -> None:
    """Warns in one sentence about the edits that did not make their target the model's answer.

    Args:
      requests: N requests.
      is_answer: bool [N], whether the target is the answer.
      probability: float [N] of the target.
      stacklevel: As in `add_answers`.
    """

    def describe(index: int) -> str:
        request = requests[index]
        return (
            f"target_new={shown(request.target_new)} is not the model's answer to {shown(request.text)} after the edit "
            f"(probability {probability[index]:.2g}); try other hyperparameters, such as more steps, or a "
            "shorter target."
        )

    edit_warnings.warn("failed", ~is_answer, -probability, describe, stacklevel + 1)
