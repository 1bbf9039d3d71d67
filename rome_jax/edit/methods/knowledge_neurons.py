"""Knowledge neurons (KN), a baseline of the ROME paper: find the MLP neurons that express the model's present answer
and write another answer into their rows of the down-projection.

The method is from Dai et al., 2022, "Knowledge Neurons in Pretrained Transformers", sections 3 (finding the neurons)
and 5.1 (updating a fact). Meng et al., 2022, compare ROME with it.

    requests ─► token arrays ─► `attribute` ─► `select` ─► `refine` ─► rank-one deltas
                                scores of      coarse      neurons that
                                all neurons    threshold   prompts share

Axes: N requests, P prompts per request, R = N·P rows, L scored layers, F MLP width, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.request import SLOT, EditRequest
from rome_jax.edit.baseline_config import KNConfig, RowVectors
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.answers import add_answers
from rome_jax.edit.stages.attribution import Attribution, KNInputs, attribute, tokenize_prompts
from rome_jax.edit.stages.chunks import check_requests, map_chunks
from rome_jax.edit.stages.inputs import prefix_of
from rome_jax.files.checked import shown
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.models.registry import LanguageModel


def select(scores: jax.Array, adaptive_threshold: float) -> jax.Array:
    """Selects the neurons whose score exceeds a share of the highest score (Dai et al., section 3.2: coarse set).

    Args:
      scores: float [..., L, F] the attribution scores of one prompt. The highest is taken over all layers.
      adaptive_threshold: The share of the highest score.

    Returns:
      bool [..., L, F].

    Example:
      >>> select(jnp.array([[0.5, 4.0], [2.0, 2.1]]), 0.5).tolist()
      [[False, True], [False, True]]
    """
    return scores > adaptive_threshold * scores.max(axis=(-2, -1), keepdims=True)


def refine(neurons_by_prompt: jax.Array, p: float) -> jax.Array:
    """Keeps the neurons that more than a share `p` of the prompts have in common (Dai et al., section 3.2).

    Args:
      neurons_by_prompt: bool [..., P, L, F] the coarse set of each prompt.
      p: The share of the prompts.

    Returns:
      bool [..., L, F].

    Example:
      >>> refine(jnp.array([[[True, True]], [[True, False]]]), 0.5).tolist()
      [[True, False]]
    """
    return neurons_by_prompt.sum(-3) > p * neurons_by_prompt.shape[-3]


@struct.dataclass
class KNResult:
    """N edits and how they were found.

    Attributes:
      deltas: One rank-one update per scored layer, with case axis N.
      neurons: bool [N, L, F] the neurons whose rows are changed.
      attribution: The scores and next tokens of all R prompts.
    """

    deltas: Delta
    neurons: jax.Array
    attribution: Attribution


def compute_from_inputs(
    params: forward.Params, model_config: ModelConfig, inputs: KNInputs, config: KNConfig
) -> KNResult:
    """Computes N independent edits from token arrays (Dai et al., section 5.1).

    The rows of all kept neurons gain the same vector, so the change at each layer has rank one. Its left factor is
    the indicator of the kept neurons.

    Args:
      params: The model's parameters.
      model_config: The model's configuration.
      inputs: The token arrays of N requests.
      config: Hyperparameters.

    Returns:
      The edits with their neurons and scores.
    """
    attribution = attribute(params, model_config, inputs, config.layers, config.steps)
    num_requests = len(inputs.new_ids)
    scores = attribution.scores.reshape(num_requests, -1, *attribution.scores.shape[1:])
    by_prompt = select(scores, config.adaptive_threshold)  # [N, P, L, F]
    neurons = refine(by_prompt, config.p) if config.refine else by_prompt[:, 0]
    change = _row_change(params, model_config, inputs, attribution.most_likely, config.row_vectors)
    updates = tuple(
        LowRankUpdate(
            Leaf.MLP_DOWN,
            jnp.full(num_requests, layer, jnp.int32),
            neurons[:, index, :, None].astype(jnp.float32),
            change[..., None],
        )
        for index, layer in enumerate(config.layers)
    )
    return KNResult(Delta(updates), neurons, attribution)


def _row_change(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: KNInputs,
    most_likely: jax.Array,
    row_vectors: RowVectors,
) -> jax.Array:
    """Returns what each kept row gains, [N, D]: Σ E[tokens of the new answer] − 2 · E[most likely token]."""
    after_bare_prompt = most_likely.reshape(len(inputs.new_ids), -1)[:, 0]
    vectors = functools.partial(_vectors, params, model_config, row_vectors)
    new = vectors(inputs.new_ids) * inputs.new_mask[..., None]
    return new.sum(1) - 2 * vectors(after_bare_prompt)


def _vectors(
    params: forward.Params,
    model_config: ModelConfig,
    row_vectors: RowVectors,
    ids: jax.Array | np.ndarray,
) -> jax.Array:
    """Returns the vectors of the tokens `ids` [...], float32 [..., D]."""
    if model_config.tie_embeddings or row_vectors is RowVectors.REFERENCE:
        vectors = params["wte"]["embedding"][ids]
    else:
        vectors = jnp.moveaxis(params["lm_head"]["kernel"][:, ids], 0, -1)
    return vectors.astype(jnp.float32)


def compute(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: KNConfig,
    *,
    templates: Sequence[str] | None = None,
    chunk_size: int = 8,
    progress: bool = False,
    check_answers: bool = True,
) -> EditResult:
    """Computes N independent edits and the neurons that they change.

    The deltas are factored, with rank one at each layer of `config.layers` whatever the number of neurons: one edit
    takes L · (F + D) numbers (1.5 MB for GPT-2 XL).

    Args:
      model: The model to edit; it is not changed.
      requests: The facts to write. The answer whose neurons are sought is `target_true`, or the model's own next
        token if `target_true` is None.
      config: Hyperparameters.
      templates: With `config.refine`, context templates that end in "{}". Each is filled with the prompt to give a
        paraphrase.
      chunk_size: Prompts that run side by side, which bounds the memory. A request is never split.
      progress: Whether to show a progress bar.
      check_answers: Whether to run the edited model once per request, which sets `is_answer` and warns about edits that
        did not make their target the model's answer.

    Returns:
      An `EditResult` with low-rank deltas. A request without any positive score changes nothing.

    Raises:
      ValueError: If there are no requests, `chunk_size` is below 1, a layer does not exist, or `config.refine` is set
        without templates.
      SequenceTooLongError: If a prompt does not fit into the context.

    Example:
      >>> from rome_jax import KNConfig
      >>> result = compute(model, [request], KNConfig.for_model(model.name, steps=3))
      >>> result.neurons.shape, result.deltas
      ((1, 6, 512), Delta(1 edits: MLP_DOWN [512, 128] rank 1 at layer 0, ...))
    """
    check_requests(model, requests, config, chunk_size)
    prefixes = _prefixes(config, templates)
    # One width for all chunks makes one program; only the single run of the prompts is longer because of it.
    inputs = tokenize_prompts(
        model.tokenizer, requests, prefixes, config.encoding, model.config.context_length
    )

    def compute_chunk(chunk: Sequence[int]) -> EditResult:
        chosen = inputs.take(np.array(chunk))
        found = compute_from_inputs(model.params, model.config, chosen, config)
        return EditResult(found.deltas, neurons=found.neurons)

    indices = range(len(requests))
    size = max(1, int(chunk_size) // len(prefixes))
    result = map_chunks(compute_chunk, indices, [0] * len(requests), size, "KN", progress)
    return add_answers(model, requests, result.finite(requests), check_answers, stacklevel=3)


def compute_deltas(
    model: LanguageModel, requests: Sequence[EditRequest], config: KNConfig, **options: Any
) -> Delta:
    """Returns the deltas of `compute`, N independent edits with case axis N. Takes and raises the same.

    Example:
      >>> from rome_jax import KNConfig
      >>> deltas = compute_deltas(model, [request], KNConfig.for_model(model.name, steps=3))
      >>> len(deltas), deltas.factored
      (1, True)
    """
    return compute(model, requests, config, **options).deltas


def _prefixes(config: KNConfig, templates: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the texts before the prompts: none, and with refinement also those of the templates."""
    if not config.refine:
        return ("",)
    prefixes = tuple(dict.fromkeys(map(prefix_of, (SLOT, *(templates or ())))))
    if len(prefixes) == 1:
        raise ValueError(
            f"templates={shown(templates)} gives no paraphrase, which refine=True compares: give templates in addition "
            "to '{}' (in a configuration: context_template_length_params)."
        )
    return prefixes
