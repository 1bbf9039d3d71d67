"""ROME: Rank-One Model Editing (Meng et al., 2022, "Locating and Editing Factual Associations in GPT", section 3).

ROME reads the down-projection W of an MLP as a linear associative memory, which maps keys to values. It inserts the
pair (k*, v*), where k* stands for the subject and v* makes the model produce the target:

    minimize ‖Ŵ K − V‖ subject to Ŵ k* = v*, solved by Ŵ = W + Λ (C⁻¹ k*)ᵀ        (equation 2)

C is the second moment of the keys. The steps are those of section 3.1:

    requests, templates -> token arrays -> states at layer l -> 1. k* and u = C⁻¹ k* / ‖C⁻¹ k*‖
                                                             -> 2. v*
                                                             -> 3. ΔW = u Λᵀ with Λ = (v* − W k) / (k · u)

Kernels are stored [in, out], so ΔW here is the transpose of the paper's. Every step is a pure function of arrays and
works on N independent requests at once. `compute_from_inputs` calls them in order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.request import EditRequest
from rome_jax.edit import edit_warnings
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.delta import apply_delta, rank_one_update, weight_of
from rome_jax.edit.renamed import accept_covariance
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.answers import add_answers
from rome_jax.edit.stages.chunks import (
    check_moments,
    check_requests,
    length_from_subject,
    map_chunks,
    moment_of,
)
from rome_jax.edit.stages.contexts import given_or_sampled
from rome_jax.edit.stages.inputs import EditInputs, tokenize_requests
from rome_jax.edit.stages.key import layer_states, whitened_direction
from rome_jax.edit.stages.value import ValueResult, optimize_value
from rome_jax.edit.warm_start import EarlierEdits, FindStarts, find_starts
from rome_jax.files.checked import shown
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import SecondMoment

# Sound edits of the shipped models have ‖ΔW‖ / ‖W‖ of 0.2 to 3. Edits that disable a model (arXiv 2403.07175) are far
# above this ratio.
EXPLOSION_RATIO = 10.0


@struct.dataclass
class LayerEdit:
    """The update of one layer and its intermediate results, for N requests.

    Attributes:
      layer: Index of the layer (static).
      key: float32 [N, F] k*, the mean key over the contexts.
      u: float32 [N, F] whitened direction, with norm 1.
      value: float32 [N, D] v*.
      optimization: Losses and δ of the optimization of v*.
      division_factor: float32 [N] k · u.
      norm: float32 [N] ‖ΔW‖ (Frobenius).
      norm_ratio: float32 [N] ‖ΔW‖ / ‖W‖.
      prompt_key: float32 [N, F] key of the bare prompt, which the update divides by in `KeyMode.REFERENCE`.
    """

    layer: int = struct.field(pytree_node=False)
    key: jax.Array
    u: jax.Array
    value: jax.Array
    optimization: ValueResult
    division_factor: jax.Array
    norm: jax.Array
    norm_ratio: jax.Array
    prompt_key: jax.Array


@accept_covariance
def compute_from_inputs(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    config: ROMEConfig,
    second_moments: Mapping[int, SecondMoment | jax.typing.ArrayLike] | None = None,
    starts: FindStarts | None = None,
) -> EditResult:
    """Computes N independent edits from token arrays. This is the algorithm; its steps are compiled one by one.

    If `second_moments` holds factors, the function can also be traced as a whole: `jax.jit` it with `params`, `inputs`
    and the factors as arguments and everything else closed over.

    Args:
      params: Weights of the model; they are not changed.
      model_config: Configuration of the model.
      inputs: Token arrays of N requests, as built by `tokenize_requests`.
      config: Hyperparameters.
      second_moments: Second moment C of each edited layer, or inside a `jit` its factor (`SecondMoment.factor`,
        float32 [F, F]). Required if `config.mom2_adjustment` is set.
      starts: Function that finds the δ of earlier edits to begin at; None begins at 0.

    Returns:
      The edits with case axis N, and a `LayerEdit` for each edited layer.

    Example:
      >>> from rome_jax.edit import rome, tokenize_requests
      >>> inputs = tokenize_requests(model.tokenizer, [request], ["{}"], config.fact_token, 256)
      >>> result = rome.compute_from_inputs(model.params, model.config, inputs, config, moments)
      >>> result.layers[0].value.shape
      (1, 128)
    """
    updates: list[LowRankUpdate] = []
    edits: list[LayerEdit] = []
    for layer in config.layers:
        # The requests share the states of their contexts until edits of lower layers make them differ.
        deltas, shared = (Delta(tuple(updates)), None) if updates else (None, inputs.shared)
        states = layer_states(
            params, model_config, inputs.batch, inputs.fact, layer, deltas, shared
        )
        keys, values = inputs.by_context(states.key), inputs.by_context(states.value)  # [K, N, ...]

        # Step 1: k*, the mean key over the contexts (equation 3), and u = C⁻¹ k* / ‖C⁻¹ k*‖.
        mean_key = keys.mean(axis=0)
        u = whitened_direction(mean_key, moment_of(config, second_moments, layer))

        # Step 2: v* = v₀ + δ (equation 4), where v₀ is the present value of the bare prompt.
        v0 = values[0]
        start = None if starts is None else starts(layer, np.asarray(v0), 1)
        optimization = optimize_value(
            params, model_config, config, inputs, states.hidden, v0, layer, shared, start
        )
        v_star = v0 + optimization.delta

        # Step 3: ΔW = u Λᵀ with Λ = (v* − W k) / (k · u) (equation 2).
        if config.key_mode is KeyMode.REFERENCE:
            k, wk = keys[0], v0
        else:  # W k + b is affine, so the mean value is the value of the mean key
            k, wk = mean_key, values.mean(axis=0)
        update, factor = rank_one_update(layer, u, k, wk, v_star)
        updates.append(update)

        norm = jnp.linalg.norm(update.right[..., 0], axis=-1)  # ‖ΔW‖ = ‖u‖ ‖Λ‖, and ‖u‖ = 1
        ratio = norm / jnp.linalg.norm(weight_of(params, layer, Leaf.MLP_DOWN))
        numbers = (optimization, factor, norm, ratio)
        edits.append(LayerEdit(layer, mean_key, u, v_star, *numbers, prompt_key=keys[0]))
    first = edits[0].optimization
    return EditResult(
        Delta(tuple(updates)),
        losses=first.loss,
        steps=first.steps,
        keys=tuple(edit.key for edit in edits),
        was_answer=first.present,
        layers=tuple(edits),
    )


@accept_covariance
def edit(
    params: forward.Params,
    model_config: ModelConfig,
    inputs: EditInputs,
    config: ROMEConfig,
    second_moments: Mapping[int, SecondMoment | jax.typing.ArrayLike] | None = None,
) -> forward.Params:
    """Computes one edit and merges it into the weights: from params to params, without a host callback.

    Args:
      params, model_config, config, second_moments: As in `compute_from_inputs`.
      inputs: Token arrays of one request.

    Returns:
      New params; the old ones stay valid.

    Raises:
      ValueError: If `inputs` holds more than one request.

    Example:
      >>> from rome_jax.edit import rome, tokenize_requests
      >>> inputs = tokenize_requests(model.tokenizer, [request], ["{}"], config.fact_token, 256)
      >>> factors = {layer: moments[layer].factor for layer in config.layers}
      >>> step = jax.jit(lambda params, factors: rome.edit(params, model.config, inputs, config, factors))
      >>> edited = model.replace(params=step(model.params, factors))
      >>> rome_jax.generate_text(edited, [request.text], max_new_tokens=2)
      ['Gothulf Punby plays the sport of tennis.']
    """
    if inputs.num_requests != 1:
        raise ValueError(
            f"inputs hold {inputs.num_requests} requests: edit them one after another, or use compute_deltas to "
            "compute independent edits."
        )
    result = compute_from_inputs(params, model_config, inputs, config, second_moments)
    return apply_delta(params, result.deltas[0])


@accept_covariance
def compute(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: ROMEConfig,
    *,
    second_moments: Mapping[int, SecondMoment] | None = None,
    templates: Sequence[str] | None = None,
    key: jax.Array | None = None,
    chunk_size: int = 8,
    progress: bool = False,
    check_answers: bool = True,
    earlier: Mapping[int, EarlierEdits] | None = None,
) -> EditResult:
    """Computes N independent edits, with all intermediate results.

    Args:
      model: Model to edit; it is not changed.
      requests: N facts to write.
      config: Hyperparameters.
      second_moments: Second moment C of each edited layer. Required if `config.mom2_adjustment` is set.
      templates: Context templates. Each ends in "{}", and the first is "{}". None samples them from the model.
      key: PRNG key of that sampling.
      chunk_size: Number of requests that are optimized at once; it bounds the memory. 8 is fastest on CPUs, and GPUs
        can take more.
      progress: Whether to show a progress bar.
      check_answers: Whether to run the edited model once per request, which sets `is_answer` and warns about edits that
        did not make their target the model's answer.
      earlier: δ of earlier edits by layer, which an editor gives so that v* may begin there; None begins at v₀.

    Returns:
      The edits with case axis N, and a `LayerEdit` for each edited layer.

    Raises:
      ValueError: If there are no requests, `chunk_size` is below 1, the model does not have a layer, a second moment is
        missing, `templates` and `key` are both None, or the first template is not "{}".
      NotFiniteError: If an edit holds a number that is not finite.
      SequenceTooLongError: If a request does not fit the context.

    Example:
      >>> from rome_jax.edit import rome
      >>> result = rome.compute(model, [request], config, second_moments=moments, templates=["{}"])
      >>> result.deltas.updates[0].left.shape, bool(result.layers[0].norm_ratio[0] < 3)
      ((1, 512, 1), True)
    """
    check_requests(model, requests, config, chunk_size)
    check_moments(model, config, second_moments)
    lengths = config.context_template_length_params
    templates = given_or_sampled(model, templates, key, lengths)

    def compute_chunk(chunk: Sequence[EditRequest]) -> EditResult:
        context_length = model.config.context_length
        inputs = tokenize_requests(
            model.tokenizer, chunk, templates, config.fact_token, context_length
        )
        starts = None if earlier is None else functools.partial(find_starts, earlier, chunk)
        return compute_from_inputs(
            model.params, model.config, inputs, config, second_moments, starts
        )

    result = map_chunks(
        compute_chunk,
        requests,
        list(map(length_from_subject, requests)),
        chunk_size,
        "ROME",
        progress,
    ).finite(requests)
    _warn(result, requests, config, stacklevel=4)  # past the decorator
    result = add_answers(model, requests, result, check_answers)
    return dataclasses.replace(result, templates=tuple(templates))


@accept_covariance
def compute_deltas(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: ROMEConfig,
    *,
    second_moments: Mapping[int, SecondMoment] | None = None,
    templates: Sequence[str] | None = None,
    key: jax.Array | None = None,
    chunk_size: int = 8,
    progress: bool = False,
    check_answers: bool = True,
) -> Delta:
    """Computes N independent edits as one `Delta` with case axis N. Arguments and errors are as in `compute`.

    Example:
      >>> from rome_jax.edit import apply_delta, rome
      >>> deltas = rome.compute_deltas(model, [request], config, second_moments=moments, templates=["{}"])
      >>> edited = model.replace(params=apply_delta(model.params, deltas[0]))
      >>> rome_jax.generate_text(edited, [request.text], max_new_tokens=2)
      ['Gothulf Punby plays the sport of tennis.']
    """
    return compute(
        model,
        requests,
        config,
        second_moments=second_moments,
        templates=templates,
        key=key,
        chunk_size=chunk_size,
        progress=progress,
        check_answers=check_answers,
    ).deltas


@accept_covariance
def compute_sequence(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: ROMEConfig,
    *,
    second_moments: Mapping[int, SecondMoment] | None = None,
    templates: Sequence[str] | None = None,
    key: jax.Array | None = None,
    check_answers: bool = True,
    donate: bool = False,
) -> Iterator[tuple[LanguageModel, EditResult]]:
    """Yields edits made one after another, each computed on the model that holds all earlier ones.

    Args:
      model: Model to start from; it stays valid.
      requests, config, second_moments, templates, key, check_answers: As in `compute`. Templates are sampled once,
        from the unedited model, and the second moments are also those of the unedited model throughout.
      donate: Whether to overwrite the changed weights of a yielded model when the next one is requested. This saves a
        copy per edit, 2 GB for GPT-2 XL in float32: read or copy what you need of a model before you go on.

    Yields:
      After each edit, the model so far and the result of the edit, with a case axis of 1. The yielded models share the
      weights that the edits do not change, and all of them stay valid unless `donate` is set.

    Raises:
      ValueError: As in `compute`.
      SequenceTooLongError: As in `compute`.

    Example:
      >>> from rome_jax.edit import rome
      >>> for edited, result in rome.compute_sequence(
      ...     model, [request], config, second_moments=moments, templates=["{}"]
      ... ):
      ...     print(result.steps.tolist())
      [4]
    """
    lengths = config.context_template_length_params
    templates = given_or_sampled(model, templates, key, lengths)
    for index, request in enumerate(requests):
        result = compute(
            model,
            [request],
            config,
            second_moments=second_moments,
            templates=templates,
            check_answers=check_answers,
        )
        params = apply_delta(model.params, result.deltas[0], donate=donate and index > 0)
        model = model.replace(params=params)
        yield model, result


def _warn(
    result: EditResult, requests: Sequence[EditRequest], config: ROMEConfig, stacklevel: int
) -> None:
    """Warns of the edits that are unnecessary, and of those that will harm the model."""

    remedy = "another layer"
    if config.key_mode is not KeyMode.CONSISTENT:
        remedy = f"key_mode=KeyMode.CONSISTENT or {remedy}"

    def describe_answer(index: int) -> str:
        request = requests[index]
        return (
            f"target_new={shown(request.target_new)} is already the model's answer to {shown(request.text)}: the edit "
            "changes little."
        )

    def describe_size(index: int) -> str:
        edit = result.layers[int(ratios[:, index].argmax())]
        return (
            f"the edit of {shown(requests[index].subject)} changes layer {edit.layer} by "
            f"{float(edit.norm_ratio[index]):.2g} times the norm of its weights (division factor "
            f"{float(edit.division_factor[index]):.2g}) and will likely disable the model; try {remedy}."
        )

    if result.was_answer is not None:
        answers = np.asarray(result.was_answer)
        edit_warnings.warn(
            "change little", answers, np.zeros(len(answers)), describe_answer, stacklevel + 1
        )
    ratios = np.array([edit.norm_ratio for edit in result.layers])  # [layers, N]
    worst = ratios.max(0)
    edit_warnings.warn(
        "are too large", ~(worst < EXPLOSION_RATIO), worst, describe_size, stacklevel + 1
    )
