"""The edits that a hypernetwork of MEND or KE computes: gradients in, low-rank deltas out.

    requests ─► gradient factors ─► network ─► one update per weight
             └► condition tokens ─┘

Axes: N requests, T tokens, X inputs and Y outputs of a projection.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch, encode, pad
from rome_jax.edit.config import MethodName
from rome_jax.edit.hypernetworks.networks import (
    Config,
    Hypernetwork,
    load_shipped,
    training_command,
)
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.answers import add_answers
from rome_jax.edit.stages.chunks import check_requests, map_chunks
from rome_jax.edit.stages.gradients import GradientFactors, gradient_factors, projection_sizes
from rome_jax.edit.stages.targets import tokenize_request_targets
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.models.registry import LanguageModel

# Hyperparameters that may differ from those of the training, because they do not change the network's shape.
_FREE = ("lr_scale", "rate_order", "max_scale")


def choose(
    kind: MethodName, model: LanguageModel, config: Config, hypernetwork: Hypernetwork | None
) -> Hypernetwork:
    """Returns the given hypernetwork, or else the one that comes with the model, if it fits the configuration.

    Args:
      kind: The method, MEND or KE.
      model: The model to edit.
      config: The hyperparameters to edit with.
      hypernetwork: A trained hypernetwork; None takes the one that comes with the model.

    Returns:
      The hypernetwork.

    Raises:
      ValueError: If none was given and none comes with the model, or it is of another method, shape or model. A model
        that edits changed is accepted.

    Example:
      >>> from rome_jax import MENDConfig
      >>> choose(MethodName.MEND, model, MENDConfig.for_model(model.name), None).model
      'factworld-gpt2'
    """
    hypernetwork = hypernetwork or load_shipped(kind, model)
    check_shape(config, hypernetwork)
    return hypernetwork.check_related(model)


def check_shape(config: Config, hypernetwork: Hypernetwork) -> None:
    """Refuses a hypernetwork of another method or shape.

    Args:
      config: The hyperparameters to edit with. Those that do not change the network's shape, such as `lr_scale`, may
        differ from those of the training.
      hypernetwork: The trained hypernetwork.

    Raises:
      ValueError: If the method or a hyperparameter differs, with its name and both values.
    """
    trained = hypernetwork.config
    if type(config) is not type(trained):
        requested = type(config).__name__.removesuffix("Config")
        raise ValueError(
            f"the hypernetwork is for {hypernetwork.kind}: give {requested} a hypernetwork that was trained for it."
        )
    for field in dataclasses.fields(config):
        requested, own = getattr(config, field.name), getattr(trained, field.name)
        if field.name not in _FREE and requested != own:
            raise ValueError(
                f"{field.name}={requested} differs from {own}, which the hypernetwork was trained with: use the "
                "hypernetwork's own config."
            )


def compute(
    kind: MethodName,
    build: Callable[[Hypernetwork], nn.Module],
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: Config,
    *,
    hypernetwork: Hypernetwork | None = None,
    chunk_size: int = 8,
    progress: bool = False,
    check_answers: bool = True,
) -> EditResult:
    """Computes N independent edits, each by a single pass through the network of MEND or KE: gradients in, deltas out.

    `mend.compute` and `ke.compute` call it with the first two arguments; the others are theirs.

    Args:
      kind: The method, MEND or KE.
      build: Returns the linen module, `mend.MEND` or `ke.KE`, of a hypernetwork.
      model: The model to edit; it is not changed.
      requests: The facts to write.
      config: Hyperparameters. Those that determine the network's shape must be the network's own.
      hypernetwork: A network trained for this model; None takes the network that comes with the model.
      chunk_size: Requests that run side by side, which bounds the memory.
      progress: Whether to show a progress bar.
      check_answers: Whether to run the edited model once per request, which sets `is_answer` and warns about edits that
        did not make their target the model's answer.

    Returns:
      An `EditResult` with low-rank deltas, one update per weight.

    Raises:
      ValueError: If there are no requests, `chunk_size` is below 1, a layer does not exist, or there is no
        hypernetwork of this method, shape and model.
      SequenceTooLongError: If a request does not fit into the context.
    """
    hypernetwork = choose(kind, model, config, hypernetwork)
    network = build(hypernetwork)
    check_requests(model, requests, config, chunk_size)
    check_sizes(network, model, hypernetwork)
    # All chunks share one shape, because the number of tokens is the rank of their updates.
    arrays = (
        tokenize_request_targets(model.tokenizer, requests, model.config.context_length),
        condition_tokens(model.tokenizer, requests),
    )

    def compute_chunk(chunk: Sequence[int]) -> EditResult:
        inputs, condition = jax.tree.map(lambda leaf: leaf[np.array(chunk)], arrays)
        factors = gradient_factors(model.params, model.config, inputs, config.layers, config.leaves)
        return EditResult(_apply(network, hypernetwork.variables, factors, condition))

    rows, label = range(len(requests)), hypernetwork.kind.value
    result = map_chunks(compute_chunk, rows, rows, chunk_size, label, progress)
    # The warning points past this function and that of the method.
    return add_answers(model, requests, result.finite(requests), check_answers)


@functools.partial(jax.jit, static_argnames="network")
def _apply(
    network: nn.Module,
    variables: Mapping[str, Any],
    factors: Mapping[str, GradientFactors],
    condition: TokenBatch,
) -> Delta:
    """Runs the network."""
    deltas = network.apply(variables, factors, condition)
    assert isinstance(deltas, Delta)
    return deltas


def check_sizes(network: nn.Module, model: LanguageModel, hypernetwork: Hypernetwork) -> None:
    """Refuses a hypernetwork that was trained for a model of other sizes.

    Args:
      network: The linen module of the hypernetwork.
      model: The model to edit.
      hypernetwork: The trained variables of the network.

    Raises:
      ValueError: If a variable is missing, or has another shape than the network would have for this model.
    """

    def factor(size):
        return jax.ShapeDtypeStruct((1, len(network.config.layers), 1, size), jnp.float32)

    factors = {
        leaf.name: GradientFactors(*map(factor, projection_sizes(model.config, leaf)))
        for leaf in network.config.leaves
    }
    own = jax.eval_shape(network.init, jax.random.key(0), factors, pad([[0]]))
    if jax.tree.map(np.shape, own) != jax.tree.map(np.shape, hypernetwork.variables):
        raise ValueError(
            f"the hypernetwork was trained for {hypernetwork.model}, which has MLPs of another size than "
            f"{model.name}: train one with `{training_command(hypernetwork.kind, model.name)}`."
        )


def condition_tokens(
    tokenizer, requests: Sequence[EditRequest], length: int | None = None
) -> TokenBatch:
    """Tokenizes prompts together with their new targets, which KE reads.

    Args:
      tokenizer: The model's tokenizer.
      requests: N requests.
      length: The number of columns T; None rounds the longest row up to a multiple of 8.

    Returns:
      Tokens [N, T], padded on the right.

    Example:
      >>> tokens = condition_tokens(model.tokenizer, [request])
      >>> model.tokenizer.decode(tokens.ids[0][tokens.mask[0]])
      'Gothulf Punby plays the sport of tennis'
    """
    return encode(tokenizer, [r.text + r.target_text for r in requests], multiple=length or 8)


def token_update(leaf: Leaf, layer: int, left: jax.Array, right: jax.Array) -> LowRankUpdate:
    """Builds ΔW = Σ_t left_t ⊗ right_t of N requests at one weight.

    Args:
      leaf: The projection.
      layer: Its layer.
      left: [N, T, X] the factors on the side of the inputs.
      right: [N, T, Y] the factors on the side of the outputs.

    Returns:
      An update with case axis N and rank T.
    """
    layers = jnp.full(len(left), layer, jnp.int32)
    return LowRankUpdate(leaf, layers, left.swapaxes(1, 2), right.swapaxes(1, 2))
