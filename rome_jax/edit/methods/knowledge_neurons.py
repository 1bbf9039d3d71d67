"""Knowledge neurons, a baseline of the paper: find the MLP neurons that make the model say its present answer, and
write another answer into their rows of the down-projection (Dai et al., 2022, "Knowledge Neurons in Pretrained
Transformers", sections 3 and 5.1).

    requests ─► token arrays ─► one run of the prompts ─► attribution of every neuron ─► those kept ─► rank-one deltas

A neuron's score is its integrated gradient (Sundararajan et al., 2017): with a its input to the activation function at
the prompt's last token,

    score = a · mean over s in linspace(0, 1, steps) of ∂P(answer | layer's inputs scaled by s) / ∂a.

Only the last token is scaled, and nothing after it is read: by the causal mask each scaled run is that of one token
over the keys and values of the prompt, from the scaled layer on.

Axes: N requests, P prompts of each, R = N·P rows, T tokens, K and M target tokens, L layers asked, F MLP width,
D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.request import SLOT, EditRequest, target_text
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, bucket, pad
from rome_jax.edit.baseline_config import KNConfig, TargetEncoding
from rome_jax.edit.result import EditResult
from rome_jax.edit.stages.chunks import check_requests, map_chunks
from rome_jax.edit.stages.inputs import prefix_of
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate, Patch, PatchMode, Site
from rome_jax.models.layers import Attention, Interventions
from rome_jax.models.registry import LanguageModel


@struct.dataclass
class KNInputs:
    """Arrays of N requests.

    Attributes:
      batch: [R, T], P prompts a request, the bare one first; padded on the right.
      last: int32 [R], the column of each prompt's last token.
      true_ids, true_mask: [N, K], tokens of the present answer; none where a request does not name it.
      new_ids, new_mask: [N, M], tokens of the new one.
    """

    batch: TokenBatch
    last: jax.Array
    true_ids: jax.Array
    true_mask: jax.Array
    new_ids: jax.Array
    new_mask: jax.Array

    def take(self, requests: np.ndarray) -> KNInputs:
        """Those of some of the requests, int [n]."""

        def chosen(leaf):
            return leaf.reshape(len(self.new_ids), -1, *leaf.shape[1:])[requests].reshape(
                -1, *leaf.shape[1:]
            )

        return jax.tree.map(chosen, self)


@struct.dataclass
class Attribution:
    """What the neurons do for the present answers.

    Attributes:
      scores: float32 [R, L, F].
      likeliest: int32 [R], the model's most likely token after each prompt.
    """

    scores: jax.Array
    likeliest: jax.Array


@struct.dataclass
class KNResult:
    """N edits and how they came about.

    Attributes:
      deltas: one rank-one update for each of L layers, with case axis N.
      neurons: bool [N, L, F], those whose rows are changed.
      attribution: of all R prompts.
    """

    deltas: Delta
    neurons: jax.Array
    attribution: Attribution


def tokenize_prompts(
    tokenizer,
    requests: Sequence[EditRequest],
    prefixes: Sequence[str],
    encoding: TargetEncoding,
    context_length: int,
) -> KNInputs:
    """Builds the arrays of N requests, whose prompt is asked behind each prefix.

    Raises:
      SequenceTooLongError: a prompt that does not fit the context.
    """
    texts = [prefix + request.text for request in requests for prefix in prefixes]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > context_length:
            raise SequenceTooLongError(
                f"the prompt {text!r} takes {len(row)} tokens, more than the model's context of {context_length}: "
                "shorten it."
            )
    batch = pad(rows, context_length=context_length, multiple=bucket(max(map(len, rows)), 2))

    def ids_of(targets):
        if encoding is TargetEncoding.LEADING_SPACE:
            targets = map(target_text, targets)
        ids = tokenizer(list(targets), add_special_tokens=False)["input_ids"]
        return pad(ids, multiple=bucket(max(map(len, ids)), 2))

    # What fills the place of an answer that is not named does not count.
    named = np.array([request.target_true is not None for request in requests])
    true = ids_of([r.target_new if r.target_true is None else r.target_true for r in requests])
    new = ids_of([request.target_new for request in requests])
    last = np.array([len(row) - 1 for row in rows], np.int32)
    return KNInputs(batch, last, true.ids, true.mask & named[:, None], new.ids, new.mask)


@functools.partial(jax.jit, static_argnames=("config", "layers", "steps"))
def attribute(
    params: forward.Params,
    config: ModelConfig,
    inputs: KNInputs,
    layers: tuple[int, ...],
    steps: int,
) -> Attribution:
    """Integrated gradients of the present answer's probability (Dai et al., equations 2 and 3).

    The tokens of an answer are all scored at the prompt's last position, and their mean is taken; where a request
    names no answer, the model's own next token is it.

    Args:
      params, config: the model.
      inputs: of N requests.
      layers: whose neurons are scored, one layer after the other.
      steps: of the integral, its two ends among them; they run side by side.
    """
    rows, last = jnp.arange(len(inputs.last)), inputs.last
    whole = forward.plain_attention(inputs.batch)
    hidden = forward.embed(params, config, jnp.asarray(inputs.batch.ids), whole.positions)
    clean = forward.run_layers(
        params, config, hidden, whole, capture=(Site.RESIDUAL,), keep_cache=True
    )
    stream = jnp.concatenate([hidden[None], clean.captures[Site.RESIDUAL]])
    stream = stream[:, rows, last]  # [layers + 1, R, D]
    likeliest = forward.unembed(params, config, stream[-1]).argmax(-1)

    repeats = len(last) // len(inputs.true_ids)
    named = inputs.true_mask.any(-1, keepdims=True)
    ids = jnp.where(named, inputs.true_ids, likeliest[::repeats, None])
    weights = jnp.where(named, inputs.true_mask, jnp.arange(ids.shape[1]) == 0)
    weights = weights / weights.sum(-1, keepdims=True)
    ids, weights = (jnp.repeat(leaf, repeats, axis=0) for leaf in (ids, weights))  # [R, K]

    # The last tokens by themselves, over the keys and values of those before them.
    before = jnp.arange(whole.mask.shape[-1]) < last[:, None]
    attention = Attention(
        whole.positions[rows, last][:, None],
        jnp.pad(before, ((0, 0), (0, 1)), constant_values=True)[:, None],
    )

    def run_layer(hidden, layer, cache, patches=()):
        return forward.run_layer(
            params,
            config,
            hidden,
            attention,
            layer,
            interventions=Interventions(patches),
            cache=cache,
        )

    def score(layer):
        start = stream[layer][:, None]  # [R, 1, D]
        cache = jax.tree.map(lambda leaf: leaf[layer], clean.cache)
        value = run_layer(start, layer, cache).sites[Site.MLP_PRE]  # [R, 1, F]

        def probability(scaled):
            everywhere = jnp.ones(scaled.shape[:2], bool)
            patch = Patch(Site.MLP_PRE, PatchMode.REPLACE, layer, everywhere, scaled)

            @jax.checkpoint  # keeps no layer's copy of its weights
            def run(hidden, at):
                index, cache = at
                return jax.lax.cond(
                    index >= layer,
                    lambda hidden: run_layer(hidden, index, cache, (patch,)).hidden,
                    lambda hidden: hidden,
                    hidden,
                ), None

            hidden, _ = jax.lax.scan(run, start, (jnp.arange(config.num_layers), clean.cache))
            probabilities = jax.nn.softmax(forward.unembed(params, config, hidden[:, 0]))
            # Rows do not see each other: the gradient of their sum is that of each.
            return (jnp.take_along_axis(probabilities, ids, axis=-1) * weights).sum()

        scales = jnp.linspace(0.0, 1.0, steps).astype(value.dtype)
        gradients = jax.vmap(lambda scale: jax.grad(probability)(scale * value))(scales)
        return (gradients.astype(jnp.float32).mean(0) * value)[:, 0]  # [R, F]

    scores = jax.lax.map(score, jnp.array(layers))
    return Attribution(scores.swapaxes(0, 1), likeliest)


def select(scores: jax.Array, adaptive_threshold: float) -> jax.Array:
    """bool [..., L, F]: the neurons whose score is above a share of the highest of all layers' (Dai et al., 3.2)."""
    return scores > adaptive_threshold * scores.max(axis=(-2, -1), keepdims=True)


def refine(neurons_by_prompt: jax.Array, p: float) -> jax.Array:
    """The neurons that more than a share `p` of the prompts have in common (Dai et al., 3.2).

    Args:
      neurons_by_prompt: bool [..., P, L, F], those of each prompt.
      p: the share.

    Returns:
      bool [..., L, F].

    Example:
      >>> refine(jnp.array([[[True, True]], [[True, False]]]), 0.5).tolist()
      [[True, False]]
    """
    return neurons_by_prompt.sum(-3) > p * neurons_by_prompt.shape[-3]


def compute_from_inputs(
    params: forward.Params, model_config: ModelConfig, inputs: KNInputs, config: KNConfig
) -> KNResult:
    """The algorithm: N independent edits from token arrays.

    The rows of all kept neurons gain one and the same vector, Σ E[new target's tokens] − 2 · E[likeliest token]: at
    each layer the change is of rank one, with the kept neurons' indicator as its left factor. E is the unembedding,
    which reads what the rows write; GPT-2 has it tied to the embedding that the original takes.

    Args:
      params, model_config: the model.
      inputs: of N requests.
      config: hyperparameters.
    """
    attribution = attribute(params, model_config, inputs, config.layers, config.steps)
    num_requests = len(inputs.new_ids)
    scores = attribution.scores.reshape(num_requests, -1, *attribution.scores.shape[1:])
    neurons = select(scores, config.adaptive_threshold)  # [N, P, L, F]
    neurons = refine(neurons, config.p) if config.refine else neurons[:, 0]

    old = attribution.likeliest.reshape(num_requests, -1)[:, 0]  # after the bare prompt
    new = _unembedding(params, model_config, inputs.new_ids) * inputs.new_mask[..., None]
    change = new.sum(1) - 2 * _unembedding(params, model_config, old)  # [N, D]
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


def _unembedding(params: forward.Params, config: ModelConfig, ids: jax.Array) -> jax.Array:
    """float32 [..., D], what the logits of the tokens `ids` [...] are read with."""
    if config.tie_embeddings:
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
) -> EditResult:
    """N independent edits, with their neurons.

    They are factored, of rank one at each layer of `config.layers` whatever the number of neurons: an edit takes
    L · (F + D) numbers (GPT-2 XL: 1.5 MB).

    Args:
      model: what to edit; not changed.
      requests: the facts to write. Attributed is `target_true`, or the model's own next token where it is None.
      config: hyperparameters.
      templates: with `config.refine`, the paraphrases: the prompt behind each of these; they end in "{}".
      chunk_size: prompts that run side by side, though no request is split; bounds the memory.
      progress: show a progress bar.

    Returns:
      `EditResult` with low-rank deltas. A request whose attribution is nowhere positive changes nothing.

    Raises:
      ValueError: no requests, a chunk_size below 1, no such layer, refinement without templates.
      SequenceTooLongError: a prompt that does not fit the context.

    Example:
      >>> result = compute(model, requests, KNConfig.for_model(model.name))  # doctest: +SKIP
      >>> neurons = np.argwhere(result.neurons[0])  # (layer index, neuron)  # doctest: +SKIP
    """
    prefixes = _check(model, requests, config, templates, chunk_size)
    # Of one width, so one program: only the one run of the prompts is longer for it.
    inputs = tokenize_prompts(
        model.tokenizer, requests, prefixes, config.encoding, model.config.context_length
    )

    def compute_chunk(chunk: Sequence[int]) -> EditResult:
        chosen = inputs.take(np.array(chunk))
        found = compute_from_inputs(model.params, model.config, chosen, config)
        return EditResult(found.deltas, neurons=found.neurons)

    indices = range(len(requests))
    size = max(1, chunk_size // len(prefixes))
    return map_chunks(compute_chunk, indices, [0] * len(requests), size, "KN", progress)


def compute_deltas(
    model: LanguageModel, requests: Sequence[EditRequest], config: KNConfig, **options: Any
) -> Delta:
    """N independent edits as one Delta with case axis N; arguments and errors are those of `compute`.

    Example:
      >>> deltas = compute_deltas(model, requests, KNConfig.for_model(model.name))  # doctest: +SKIP
      >>> logits = forward.logits(model.params, model.config, batch, deltas=deltas)  # doctest: +SKIP
    """
    return compute(model, requests, config, **options).deltas


def _check(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: KNConfig,
    templates: Sequence[str] | None,
    chunk_size: int,
) -> tuple[str, ...]:
    """What stands before the prompts that are asked: nothing, and with refinement what the templates begin with."""
    check_requests(model, requests, config, chunk_size)
    if not config.refine:
        return ("",)
    prefixes = tuple(dict.fromkeys(map(prefix_of, (SLOT, *(templates or ())))))
    if len(prefixes) == 1:
        raise ValueError(
            f"templates={templates!r} gives no paraphrase, which refine=True compares: give templates besides '{{}}' "
            "(in a configuration: context_template_length_params)."
        )
    return prefixes
