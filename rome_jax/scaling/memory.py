"""Peak memory of each job on one device, in bytes, counted from shapes.

A job is a sequence of compiled programs. At each moment a device holds

    weights + what one program hands to the next (kept) + what the running program computes (temporary),

and the peak of a job is the largest such sum. The terms follow the programs: what stays alive is read off the code of
`rome_jax.edit.stages`, `rome_jax.trace`, and `rome_jax.evaluation`, and the numbers of copies that XLA makes agree with
its own account, `compiled.memory_analysis()`. `python -m benchmarks.plan` compares both with measured peaks.

Axes: N requests, K context templates, R = (K + 1)·N rows, P prefix and S suffix columns, M target tokens, L layers,
D width, F MLP width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rome_jax.data.tokens import bucket, round_up
from rome_jax.edit.baseline_config import FTConfig, MENDConfig, TokenConfig
from rome_jax.edit.config import Hyperparameters, ROMEConfig
from rome_jax.edit.spread_config import Modifier, SpreadConfig
from rome_jax.edit.stages.shared_contexts import MOST_IN_GROUP
from rome_jax.evaluation.scoring import PLACES
from rome_jax.scaling.setup import Platform, Setup
from rome_jax.trace.sweep import COLUMNS_PER_PLACE

_FLOAT32 = 4
_LAYERS_IN_STEP = 1  # all layers run in loops, which take one out of the stack at a time
_LOGITS_IN_STEP = 2  # of v*: the logits and their gradient
_LOGITS_IN_GRADIENT = 3  # of MEND and UltraEdit: the logits, log-probabilities, their gradient
_PARTS = 3  # of a float32 input of bfloat16 weights on a CPU; each is multiplied by the weights
_HEADS_IN_STEP = 2  # converted for the forward and for the backward pass
_LAYERS_IN_LOOP = 2  # the layer that runs, and the next one
_FT_KERNELS = 7  # change, gradient, two averages of Adam, update, merged weights, result


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The numbers of tokens that the memory of a job depends on. The defaults cover the requests of CounterFact.

    Attributes:
      contexts: Context templates, K; 21 in ROME's and 6 in MEMIT's configurations.
      shared: Tokens that all requests share at the beginning of the longest context.
      prefix: Columns before the first one that an edit changes, P.
      suffix: Columns from there on, S.
      target: Tokens of a target, M.
      prompt: Columns of a prompt with its target, in traces and gradients.
      samples: Noise samples of a trace.
      scored: Columns of a packed row of scored queries.
      sequence: Columns of a row of statistics; at most the model's context.
    """

    contexts: int = 21
    shared: int = 10
    prefix: int = 24
    suffix: int = 10
    target: int = 2
    prompt: int = 16
    samples: int = 10
    scored: int = 64
    sequence: int = 2048


COUNTERFACT = Lengths()


@dataclasses.dataclass(frozen=True)
class Peak:
    """The memory of one device at the peak of a job, in bytes.

    Attributes:
      weights: The model's weights.
      kept: Arrays that outlive a program: states, caches, and results.
      temporary: Arrays inside the program that runs at the peak.
    """

    weights: int
    kept: int
    temporary: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.kept + self.temporary


def _largest(*peaks: Peak) -> Peak:
    """Returns the largest of the peaks of several programs."""
    return max(peaks, key=lambda peak: peak.total)


def _in_layer(setup: Setup, tokens: int, seen: int, *, cached: bool = False) -> int:
    """Counts what the layer that runs computes: attention or MLP, whichever takes more.

    Args:
      setup: The model and its devices.
      tokens: Columns that run, in all rows of a device.
      seen: Columns that each of them may attend to.
      cached: Whether some of these come from a cache, whose scores are joined with the others by a copy.
    """
    scores = (1 + cached) * setup.heads * seen * _FLOAT32
    projections = 2 + setup.config.gated
    mlp = projections * setup.mlp_width * setup.computed
    return tokens * (max(scores, mlp) + setup.width * setup.computed)


def _head_or_layers(setup: Setup, in_layers: int, logits: int) -> int:
    """Counts the temporaries of a forward pass, which holds either the layers of its loop or the head."""
    return max(_LAYERS_IN_LOOP * setup.layer + in_layers, setup.head + logits)


def _logits(setup: Setup, places: int) -> int:
    """Counts the float32 logits of some places."""
    return _FLOAT32 * places * setup.vocabulary


# Edits


def edit_peak(
    setup: Setup, config: Hyperparameters, chunk: int, lengths: Lengths = COUNTERFACT
) -> Peak:
    """Counts the peak of independent edits in chunks.

    Args:
      setup: The model and its devices.
      config: Configuration of ROME, MEMIT or one of its descendants, MEND, UltraEdit, or one of the forms of
        fine-tuning.
      chunk: Number of requests that are optimized together.
      lengths: Numbers of tokens of the requests.

    Raises:
      ValueError: If the memory of the method is not counted.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> setup = Setup(PRESETS["gpt2-xl"])
      >>> round(edit_peak(setup, ROMEConfig.for_model("gpt2-xl"), 8).total / 1e9, 1)
      11.6
    """
    requests = setup.rows(chunk)
    match config:
        case ROMEConfig():
            return _with_moments(setup, _value_peak(setup, config.layers[-1], requests, lengths), 1)
        case SpreadConfig():
            # BLUE also finds z at the first layer, which has more layers above it.
            layer = config.layers[0 if config.has(Modifier.BLUE) else -1]
            peak = _value_peak(setup, layer, requests, lengths)
            merged = Peak(setup.weights, setup.down_stack, setup.layer)  # for the layers above
            return _with_moments(setup, _largest(peak, merged), len(config.written_layers))
        case FTConfig():
            kernels = sum(_leaf_size(setup, leaf.value) for leaf in config.leaves)
            trained = requests * len(config.layers) * kernels * _FLOAT32
            return Peak(setup.weights, trained, (_FT_KERNELS - 1) * trained + setup.layer)
        case MENDConfig():
            return _gradient_peak(setup, config, requests, lengths, _networks(setup, config))
        case TokenConfig():
            return _gradient_peak(setup, config, requests, lengths)
    raise ValueError(
        f"the memory of {type(config).__name__} is not counted: use ROME, MEMIT, MEND, UltraEdit, or fine-tuning."
    )


def is_counted(config: Hyperparameters) -> bool:
    """Returns whether `edit_peak` counts the memory of a method.

    Example:
      >>> is_counted(config)
      True
    """
    return isinstance(config, ROMEConfig | SpreadConfig | FTConfig | MENDConfig | TokenConfig)


def _with_moments(setup: Setup, peak: Peak, layers: int) -> Peak:
    """Adds the second moments of some layers if the host's memory is the device's."""
    if setup.platform is not Platform.CPU:
        return peak
    return dataclasses.replace(peak, kept=peak.kept + layers * setup.host_moment)


def _leaf_size(setup: Setup, path: tuple[str, str]) -> int:
    """Counts the numbers of one layer's kernel."""
    module, name = path
    if module == "mlp":
        return setup.width * setup.mlp_width
    widths = {"qkv": setup.qkv_width, "key": setup.kv_width // 2, "value": setup.kv_width // 2}
    return setup.width * widths.get(name, setup.qkv_width - setup.kv_width)


def _value_peak(setup: Setup, layer: int, requests: int, lengths: Lengths) -> Peak:
    """Counts the peak of the optimization of v* or z at a layer: the states below, the prefix, and the steps."""
    config = setup.config
    rows = (lengths.contexts + 1) * requests
    columns, above = lengths.prefix + lengths.suffix, config.num_layers - layer - 1
    packed_rows, packed = _packed(requests, lengths.contexts, lengths.shared, columns)
    prefix_rows, prefix = _packed(requests, lengths.contexts, lengths.shared, lengths.prefix)

    # The states up to the edited layer, whose activations are float32.
    states = rows * columns * setup.width * setup.itemsize
    states += rows * (setup.config.mlp_width + setup.width) * _FLOAT32
    in_layers = _in_layer(setup, packed_rows * packed, packed)
    below = Peak(setup.weights, states, 2 * setup.layer + in_layers)

    # Keys and values of the prefix, packed and then per row.
    def cache(count: int, width: int) -> int:
        return above * count * width * setup.kv_width * setup.itemsize

    kept = states + cache(rows, lengths.prefix)
    kept += rows * lengths.suffix * setup.width * setup.itemsize
    in_layers = _in_layer(setup, prefix_rows * prefix, prefix)
    copied = cache(prefix_rows, prefix) if requests > 1 else 0
    frozen = Peak(setup.weights, kept, setup.layer + in_layers + copied)

    # A step keeps the matrix products of all layers above for its backward pass.
    products = 3 * setup.width + setup.qkv_width + (1 + config.gated) * setup.mlp_width
    suffix = rows * lengths.suffix
    # A product with bfloat16 weights is rounded to bfloat16, on CPUs too.
    saved = setup.itemsize if setup.is_split else setup.computed
    residuals = above * suffix * products * saved
    read = lengths.contexts * requests * lengths.target + requests
    temporary = residuals + _LOGITS_IN_STEP * _logits(setup, read) + _HEADS_IN_STEP * setup.head
    temporary += _LAYERS_IN_STEP * setup.layer
    temporary += _in_layer(setup, suffix, columns, cached=True)
    return _largest(below, frozen, Peak(setup.weights, kept, temporary))


def _packed(requests: int, contexts: int, shared: int, columns: int) -> tuple[int, int]:
    """Returns the rows and columns of requests that share the beginnings of their contexts."""
    if requests == 1:
        return contexts + 1, columns
    groups = -(-requests // MOST_IN_GROUP)
    together = -(-requests // groups)
    width = shared + together * max(columns - shared, 0)
    return (contexts + 1) * groups, bucket(round_up(width, 16))


def _networks(setup: Setup, config: MENDConfig) -> int:
    """Counts MEND's networks, one for each leaf."""
    size = setup.width + setup.config.mlp_width
    matrices = 2 * size * min(config.rank, size) * (config.num_hidden + 1)
    return len(config.leaves) * matrices * _FLOAT32


def _gradient_peak(
    setup: Setup,
    config: MENDConfig | TokenConfig,
    requests: int,
    lengths: Lengths,
    networks: int = 0,
) -> Peak:
    """Counts the peak of the gradients of the layers from the lowest edited one on, beside a method's networks."""
    weights = setup.weights
    if setup.platform is Platform.CPU:  # XLA converts the weights of this backward pass
        setup = dataclasses.replace(setup, dtype="float32")
    above = setup.config.num_layers - config.layers[0]
    products = 3 * setup.width + setup.qkv_width + (1 + setup.config.gated) * setup.mlp_width
    tokens = requests * lengths.prompt
    size = setup.width + setup.config.mlp_width
    factors = len(config.leaves) * len(config.layers) * tokens * size * _FLOAT32
    temporary = (above + 1) * setup.layer + above * tokens * products * setup.computed
    logits = _LOGITS_IN_GRADIENT * _logits(setup, requests * lengths.target)
    return Peak(weights, networks + factors, temporary + logits + setup.head)


# Traces, scores, statistics, generation, merging


def trace_peak(setup: Setup, columns: int, lengths: Lengths = COUNTERFACT) -> Peak:
    """Counts the peak of a trace of one prompt with `columns` packed columns per noise sample.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> round(trace_peak(Setup(PRESETS["gpt2-xl"]), 256).total / 1e9, 1)
      6.9
    """
    config, samples = setup.config, setup.rows(lengths.samples)
    # Three sites of the clean run and of the corrupted runs, whose keys and values are kept too.
    per_token = 3 * (1 + samples) * setup.width + samples * setup.kv_width
    states = config.num_layers * lengths.prompt * per_token * setup.itemsize
    seen = columns + lengths.prompt
    in_layers = _in_layer(setup, samples * columns, seen, cached=True)
    places = samples * max(1, columns // COLUMNS_PER_PLACE)  # one token of the answer each
    return Peak(
        setup.weights, states, _head_or_layers(setup, in_layers, 2 * _logits(setup, places))
    )


def scoring_peak(setup: Setup, tokens: int, lengths: Lengths = COUNTERFACT) -> Peak:
    """Counts the peak of scoring with `tokens` columns in one forward pass.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> round(scoring_peak(Setup(PRESETS["gpt2-xl"]), 16_384).total / 1e9, 1)
      7.5
    """
    columns = setup.rows(tokens)
    in_layers = _in_layer(setup, columns, lengths.scored)
    kept = columns * setup.width * setup.computed
    return Peak(setup.weights, kept, _head_or_layers(setup, in_layers, _logits(setup, PLACES)))


def statistics_peak(
    setup: Setup, tokens: int, layers: int = 1, lengths: Lengths = COUNTERFACT
) -> Peak:
    """Counts the peak of the collection of second moments with `tokens` columns per batch.

    Args:
      setup: The model and its devices.
      tokens: Columns per batch.
      layers: Number of layers that are collected. Their sums are on the host, two float64 matrices per layer.
      lengths: Numbers of tokens.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> round(statistics_peak(Setup(PRESETS["gpt2-xl"]), 4096).total / 1e9, 1)
      7.0
    """
    length = min(lengths.sequence, setup.config.context_length, tokens)
    rows = setup.rows(max(1, tokens // length))
    # The keys are computed in float32 whatever the dtype is.
    wide = dataclasses.replace(setup, dtype="float32")
    in_layer = _in_layer(wide, rows * length, length)
    temporary = setup.wide_layer + in_layer
    if setup.is_split:
        mlp = (_PARTS + setup.config.gated) * setup.mlp_width * _FLOAT32
        inputs = setup.width * (_FLOAT32 + _PARTS * setup.itemsize)
        temporary = setup.layer + max(in_layer, rows * length * (mlp + inputs))
    kept = 2 * rows * length * setup.width * setup.itemsize + setup.moment
    if setup.platform is Platform.CPU:
        kept += layers * setup.host_moment
    return Peak(setup.weights, kept, temporary)


def generation_peak(setup: Setup, tokens: int) -> Peak:
    """Counts the peak of a generation whose cache has `tokens` columns in all rows.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> round(generation_peak(Setup(PRESETS["gpt2-xl"]), 8192).total / 1e9, 1)
      11.4
    """
    columns = setup.rows(tokens)
    cache = setup.config.num_layers * columns * setup.kv_width * setup.itemsize
    rows = max(1, columns // 128)
    return Peak(setup.weights, cache, setup.layer + max(setup.head, 2 * _logits(setup, rows)))


def merging_peak(setup: Setup) -> Peak:
    """Counts the peak of merging an edit without donation: a copy of the stacked down-projections.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> round(merging_peak(Setup(PRESETS["gpt2-xl"])).total / 1e9, 1)
      8.2
    """
    return Peak(setup.weights, setup.down_stack, setup.mlp_width * setup.width * _FLOAT32)


def largest(peak: Callable[[int], Peak], memory: float, limit: int) -> int:
    """Finds the largest size of a job that fits, or 0 if the size 1 does not.

    Args:
      peak: The peak for each size, which grows with the size.
      memory: Bytes that the job may use.
      limit: Largest size to consider.

    Example:
      >>> largest(lambda size: Peak(100, 0, 10 * size), 155, 1000)
      5
    """
    fits, fails = 0, limit + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if peak(middle).total <= memory:
            fits = middle
        else:
            fails = middle
    return fits
