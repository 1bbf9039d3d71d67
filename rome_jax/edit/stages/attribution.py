"""Attribution of a prompt's answer to MLP neurons by integrated gradients (Dai et al., 2022, "Knowledge Neurons in
Pretrained Transformers", section 3.1).

    requests ─► `tokenize_prompts` ─► one run of the prompts ─► `attribute`: a score per prompt, layer and neuron

A neuron is an entry of the key, the input of the down-projection. Its score is its integrated gradient (Sundararajan et
al., 2017). With a = the neuron's input to the activation function at the prompt's last token,

    score = a · mean over s in linspace(0, 1, steps) of ∂P(answer | the layer's activations scaled by s) / ∂a.

In a gated MLP the activation function is applied to the gate projection: a is the output of the gate, and the
up-projection that multiplies the activated gate keeps its value.

Only the last token is scaled, and the model reads nothing after it. By the causal mask, each scaled run is therefore a
run of one token over the keys and values of the prompt, starting at the scaled layer.

Axes: N requests, P prompts per request, R = N·P rows, T tokens, K tokens of the present answer, M tokens of the new
answer, L scored layers, F MLP width, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rome_jax.data.request import EditRequest, target_text
from rome_jax.data.tokenization import continuation_ids, prompt_ids
from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, bucket, pad
from rome_jax.edit.baseline_config import TargetEncoding
from rome_jax.files.checked import shown
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Site, activation_site
from rome_jax.models.layers import Attention, BlockOutput, Interventions, KVCache
from rome_jax.models.patches import Patch, PatchMode


@struct.dataclass
class KNInputs:
    """The token arrays of N requests.

    Attributes:
      batch: [R, T] the P prompts of each request, the bare prompt first, padded on the right.
      last: int32 [R] the column of each prompt's last token.
      true_ids: int32 [N, K] the tokens of the present answer.
      true_mask: bool [N, K] which of them count; all False if the request does not name its present answer.
      new_ids: int32 [N, M] the tokens of the new answer.
      new_mask: bool [N, M] which of them count.
    """

    batch: TokenBatch
    last: jax.Array | np.ndarray
    true_ids: jax.Array | np.ndarray
    true_mask: jax.Array | np.ndarray
    new_ids: jax.Array | np.ndarray
    new_mask: jax.Array | np.ndarray

    def take(self, requests: np.ndarray) -> KNInputs:
        """Returns the arrays of some of the requests, given by their indices, int [n]."""
        num_requests = len(self.new_ids)

        def taken(leaf):
            by_request = leaf.reshape(num_requests, -1, *leaf.shape[1:])
            return by_request[requests].reshape(-1, *leaf.shape[1:])

        return jax.tree.map(taken, self)


def tokenize_prompts(
    tokenizer,
    requests: Sequence[EditRequest],
    prefixes: Sequence[str],
    encoding: TargetEncoding,
    context_length: int,
) -> KNInputs:
    """Builds the token arrays of N requests.

    Args:
      tokenizer: The model's tokenizer.
      requests: N requests.
      prefixes: P texts. Each is put before every request's prompt; the first is empty for the bare prompt.
      encoding: Whether an answer is tokenized with its leading space.
      context_length: The most tokens that a prompt may have.

    Returns:
      The arrays, padded to one of few shapes.

    Raises:
      SequenceTooLongError: If a prompt has more than `context_length` tokens.

    Example:
      >>> from rome_jax.edit.baseline_config import TargetEncoding
      >>> inputs = tokenize_prompts(model.tokenizer, [request], ("", "Yes. "), TargetEncoding.LEADING_SPACE, 64)
      >>> inputs.batch.ids.shape[0], inputs.new_ids.shape[0]
      (2, 1)
    """
    texts = [prefix + request.text for request in requests for prefix in prefixes]
    rows = prompt_ids(tokenizer, texts)
    for text, row in zip(texts, rows, strict=True):
        if len(row) > context_length:
            raise SequenceTooLongError(
                f"the prompt {shown(text)} takes {len(row)} tokens, more than the model's context of {context_length}: "
                "shorten it."
            )
    batch = pad(rows, context_length=context_length, multiple=bucket(max(map(len, rows)), 2))
    last = np.array([len(row) - 1 for row in rows], np.int32)

    # A request without a present answer gets its new one as a placeholder, which the mask disables.
    named = np.array([request.target_true is not None for request in requests])
    true = _tokenize_answers(
        tokenizer,
        (r.target_new if r.target_true is None else r.target_true for r in requests),
        encoding,
    )
    new = _tokenize_answers(tokenizer, (r.target_new for r in requests), encoding)
    return KNInputs(batch, last, true.ids, true.mask & named[:, None], new.ids, new.mask)


def _tokenize_answers(tokenizer, answers: Iterable[str], encoding: TargetEncoding) -> TokenBatch:
    """Tokenizes answers and pads them to one of few widths."""
    if encoding is TargetEncoding.LEADING_SPACE:
        answers = map(target_text, answers)
    ids = continuation_ids(tokenizer, list(answers))
    return pad(ids, multiple=bucket(max(map(len, ids)), 2))


@struct.dataclass
class Attribution:
    """How much each neuron contributes to the present answers.

    Attributes:
      scores: float32 [R, L, F] the integrated gradient of each neuron.
      most_likely: int32 [R] the model's most likely token after each prompt.
    """

    scores: jax.Array
    most_likely: jax.Array


@struct.dataclass
class _PromptRun:
    """The unmodified run of R prompts, as their last tokens see it.

    Attributes:
      stream: [layers + 1, R, D] the last tokens' residual stream before each layer, and after the last layer.
      cache: The keys and values of all tokens in every layer.
      attention: The positions of the last tokens, and the mask over the earlier columns and themselves.
    """

    stream: jax.Array
    cache: KVCache
    attention: Attention


@struct.dataclass
class _Answers:
    """The tokens whose weighted probability is attributed.

    Attributes:
      ids: int32 [R, K].
      weights: float32 [R, K]; each row sums to 1.
    """

    ids: jax.Array
    weights: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "layers", "steps"))
def attribute(
    params: forward.Params,
    config: ModelConfig,
    inputs: KNInputs,
    layers: tuple[int, ...],
    steps: int,
) -> Attribution:
    """Computes the integrated gradients of the present answer's probability (Dai et al., section 3.1).

    All tokens of an answer are scored at the prompt's last position, and the mean of their probabilities is
    attributed. If a request does not name its present answer, the model's own next token takes its place.

    Args:
      params: The model's parameters.
      config: The model's configuration.
      inputs: The token arrays of N requests.
      layers: The layers whose neurons are scored, one layer after another.
      steps: The number of points of the Riemann sum, both ends included. They run side by side.

    Returns:
      The scores of all neurons, and the model's most likely next tokens.

    Example:
      >>> from rome_jax.edit.baseline_config import TargetEncoding
      >>> inputs = tokenize_prompts(model.tokenizer, [request], ("",), TargetEncoding.LEADING_SPACE, 64)
      >>> found = attribute(model.params, model.config, inputs, (0, 1, 2, 3, 4, 5), 3)
      >>> found.scores.shape, model.tokenizer.decode(int(found.most_likely[0]))
      ((1, 6, 512), ' rowing')
    """
    run = _run_prompts(params, config, inputs)
    most_likely = forward.unembed(params, config, run.stream[-1]).argmax(-1)
    answers = _present_answers(inputs, most_likely)
    integrate = functools.partial(_integrated_gradients, params, config, run, answers, steps)
    scores = jax.lax.map(integrate, jnp.array(layers))  # [L, R, F]
    return Attribution(scores.swapaxes(0, 1), most_likely)


def _run_prompts(params: forward.Params, config: ModelConfig, inputs: KNInputs) -> _PromptRun:
    """Runs the prompts once and keeps what a later run of their last tokens needs."""
    rows, last = jnp.arange(len(inputs.last)), inputs.last
    whole = forward.plain_attention(inputs.batch)
    hidden = forward.embed(params, config, jnp.asarray(inputs.batch.ids), whole.positions)
    clean = forward.run_layers(
        params, config, hidden, whole, capture=(Site.RESIDUAL,), keep_cache=True
    )
    assert clean.cache is not None  # because of keep_cache
    stream = jnp.concatenate([hidden[None], clean.captures[Site.RESIDUAL]])
    before = jnp.arange(whole.mask.shape[-1]) < last[:, None]
    attention = Attention(
        whole.positions[rows, last][:, None],
        jnp.pad(before, ((0, 0), (0, 1)), constant_values=True)[:, None],
    )
    return _PromptRun(stream[:, rows, last], clean.cache, attention)


def _present_answers(inputs: KNInputs, most_likely: jax.Array) -> _Answers:
    """Returns the named answers, or the most likely token after the bare prompt; each token has the same weight."""
    num_prompts = len(inputs.last) // len(inputs.true_ids)
    named = inputs.true_mask.any(-1, keepdims=True)
    ids = jnp.where(named, inputs.true_ids, most_likely[::num_prompts, None])
    weights = jnp.where(named, inputs.true_mask, jnp.arange(ids.shape[1]) == 0)
    weights = weights / weights.sum(-1, keepdims=True)
    return _Answers(*(jnp.repeat(leaf, num_prompts, axis=0) for leaf in (ids, weights)))


def _integrated_gradients(
    params: forward.Params,
    config: ModelConfig,
    run: _PromptRun,
    answers: _Answers,
    steps: int,
    layer: jax.Array,
) -> jax.Array:
    """Computes the scores of one layer's neurons, float32 [R, F], by a Riemann sum of gradients."""
    start, cache = run.stream[layer][:, None], _cache_of(run, layer)
    block = _run_layer(params, config, run.attention, start, layer, cache)
    activations = block.sites[activation_site(config)]  # [R, 1, F]
    scales = jnp.linspace(0.0, 1.0, steps).astype(activations.dtype)
    gradient_at = jax.grad(_answer_probability)
    gradients = jax.vmap(
        lambda scale: gradient_at(scale * activations, params, config, run, answers, layer)
    )(scales)
    return (gradients.astype(jnp.float32).mean(0) * activations)[:, 0]


def _answer_probability(
    activations: jax.Array,
    params: forward.Params,
    config: ModelConfig,
    run: _PromptRun,
    answers: _Answers,
    layer: jax.Array,
) -> jax.Array:
    """Computes P(answer) if a layer's neurons have these activations [R, 1, F], summed over the rows.

    Rows do not see each other, so the gradient of the sum holds the gradient of each row.
    """
    everywhere = jnp.ones(activations.shape[:2], bool)
    # The up-projection of a gated MLP reads the layer's input, which no patch changes, so it keeps its value.
    site = activation_site(config)
    patch = Patch(site, PatchMode.REPLACE, layer, everywhere, activations)
    # The checkpoint keeps no copy of any layer's weights for the backward pass.
    step = jax.checkpoint(
        functools.partial(_run_layer_from, layer, patch, params, config, run.attention)
    )
    numbered_caches = (jnp.arange(config.num_layers), run.cache)
    hidden, _ = jax.lax.scan(step, run.stream[layer][:, None], numbered_caches)
    probabilities = jax.nn.softmax(forward.unembed(params, config, hidden[:, 0]))
    return (jnp.take_along_axis(probabilities, answers.ids, axis=-1) * answers.weights).sum()


def _run_layer_from(
    first: jax.Array,
    patch: Patch,
    params: forward.Params,
    config: ModelConfig,
    attention: Attention,
    hidden: jax.Array,
    numbered_cache: tuple[jax.Array, KVCache],
) -> tuple[jax.Array, None]:
    """Runs one layer of a scan over all layers, or skips it if it is below the layer `first`."""
    layer, cache = numbered_cache

    def run(hidden):
        return _run_layer(params, config, attention, hidden, layer, cache, (patch,)).hidden

    return jax.lax.cond(layer >= first, run, lambda hidden: hidden, hidden), None


def _run_layer(
    params: forward.Params,
    config: ModelConfig,
    attention: Attention,
    hidden: jax.Array,
    layer: jax.Array,
    cache: KVCache,
    patches: tuple[Patch, ...] = (),
) -> BlockOutput:
    """Runs the last tokens [R, 1, D] through one layer, over that layer's cache."""
    interventions = Interventions(patches)
    return forward.run_layer(
        params, config, hidden, attention, layer, interventions=interventions, cache=cache
    )


def _cache_of(run: _PromptRun, layer: jax.Array) -> KVCache:
    """Returns the keys and values of one layer."""
    return jax.tree.map(lambda leaf: leaf[layer], run.cache)
