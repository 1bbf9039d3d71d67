"""The settings of a causal trace: facts, noise, restored states and the measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

from eval.flags import define, running
from rome_jax.models.patches import PatchMode
from rome_jax.models.registry import LanguageModel
from rome_jax.trace import inputs as trace_inputs
from rome_jax.trace.corruption import Measure
from rome_jax.trace.facts import KnownFacts
from rome_jax.trace.protocol import Protocol, Series
from rome_jax.trace.restore import DEFAULT_WINDOW
from rome_jax.trace.sweep import CHUNK_COLUMNS, check_window, default_window

FACTS = flags.DEFINE_string(
    "fact_file",
    None,
    "Facts to trace: a JSON file in the layout of known_1000.json, the word factworld for the facts of the factworld "
    "models, the word sample for 20 well-known facts, or published to download the original's. Default: factworld "
    "for the factworld models, sample for smollm2-135m.",
)
KINDS = flags.DEFINE_list(
    "kinds",
    ["hidden", "mlp", "attn"],
    "States to restore: hidden (one hidden state), mlp or attn (the outputs of a window of layers).",
)
SEVERED = flags.DEFINE_bool(
    "severed",
    False,
    "Also restore the hidden states at the last subject token while the MLPs, or the attention modules, at this token "
    "keep their corrupted outputs.",
)
TOKENS = flags.DEFINE_enum(
    "tokens",
    "all",
    ["all", "subject_last"],
    "Tokens at which states are restored.",
    case_sensitive=False,
)
SCREEN = flags.DEFINE_integer(
    "screen",
    0,
    "Number of states per kind to restore, the ones that a backward pass ranks highest; 0 restores all.",
    lower_bound=0,
    upper_bound=define.MOST,
)
TOP = flags.DEFINE_integer(
    "top",
    20,
    "Number of top-ranked states to verify by restoring them.",
    lower_bound=1,
    upper_bound=define.MOST,
)
NOISE = flags.DEFINE_string(
    "noise_level",
    "s3",
    "Noise added to the subject's embeddings. s3: Gaussian, with 3 times the standard deviation of the embeddings of "
    "all subjects; 0.1: Gaussian with this standard deviation; u0.1: uniform on [-0.1, 0.1]; t3: Student's t with 3 "
    "degrees of freedom; m: multivariate Gaussian. The last two are fitted to the embeddings of --noise_corpus.",
)
CORPUS = flags.DEFINE_string(
    "noise_corpus",
    None,
    "Text that the noise levels m and t3 are fitted to, named as in --dataset of eval.layer_stats. Default: factworld "
    "for the factworld models, self for smollm2-135m, wikipedia for others.",
)
MODE = flags.DEFINE_enum(
    "noise_mode",
    "add",
    ["add", "replace"],
    "Whether the noise is added to the embeddings or replaces them.",
    case_sensitive=False,
)
REPLACE = flags.DEFINE_integer(
    "replace",
    None,
    "Flag of the original code: 1 is the same as --noise_mode=replace.",
    lower_bound=0,
    upper_bound=1,
)
SAMPLES = flags.DEFINE_integer(
    "samples", 10, "Number of noise samples per prompt.", lower_bound=1, upper_bound=10_000
)
WINDOW = flags.DEFINE_integer(
    "window",
    None,
    f"Number of consecutive layers whose MLP or attention outputs are restored together. Default: {DEFAULT_WINDOW}, "
    "or half of the layers in a model so shallow that all windows would cover the same layers.",
)
MEASURE = flags.DEFINE_enum(
    "measure",
    "probability",
    [m.value for m in Measure],
    "Measure of the answer, averaged over the noise samples.",
    case_sensitive=False,
)
CHUNK = flags.DEFINE_integer(
    "chunk_columns",
    CHUNK_COLUMNS,
    "Number of token columns that are computed together; more are faster on a GPU and need more memory.",
    lower_bound=1,
    upper_bound=define.MOST,
)
CASE_FIGURES = flags.DEFINE_bool("case_figures", False, "Also draw a heatmap of each case.")


def read_facts(model_name: str, prompt: str | None) -> KnownFacts | None:
    """Returns the facts of --fact_file or, by default, those of the model.

    Args:
      model_name: Name of the model.
      prompt: A single prompt to trace, or None to trace the facts.

    Returns:
      The facts; None if the model has none and a prompt is given.

    Raises:
      ValueError: If there are neither facts nor a prompt, or the facts are malformed.
      OSError: If the file cannot be read or downloaded.
    """
    facts = trace_inputs.read_facts(FACTS.value, model_name)
    if facts is None and prompt is None:
        raise ValueError(
            f"no facts come with model {model_name!r}: give --fact_file, or --prompt and --subject."
        )
    return facts


def read_window(series: Sequence[Series], num_layers: int) -> int:
    """Returns the number of layers of --window or, by default, that of a model with `num_layers` layers.

    Raises:
      ValueError: If the window does not fit the model.
    """
    window = default_window(num_layers) if WINDOW.value is None else WINDOW.value
    for one in series:
        check_window(one.kind, window, num_layers)
    return window


def read_protocol(
    model: LanguageModel,
    subjects: Sequence[str],
    series: Sequence[Series],
    contrast: str | None = None,
) -> tuple[Protocol, dict[str, Any]]:
    """Returns the protocol of the traces and the settings that determine their results, except for the facts.

    Args:
      model: The model whose embeddings the noise is fitted to.
      subjects: Subjects whose embeddings define a relative noise level.
      series: The kinds of traces to make.
      contrast: Second answer, or None; with one, log-probabilities are compared.

    Raises:
      ValueError: If the noise level is unknown or the window does not fit the model.
    """
    window = read_window(series, model.config.num_layers)
    noise, corpus = trace_inputs.read_noise(model, NOISE.value, subjects, CORPUS.value)
    protocol = Protocol(
        noise,
        samples=SAMPLES.value,
        seed=running.SEED.value,
        mode=PatchMode.REPLACE if REPLACE.value else PatchMode(MODE.value),
        window=window,
        measure=Measure.LOG_PROBABILITY if contrast else Measure(MEASURE.value),
        subject_last=TOKENS.value == "subject_last",
        screen=SCREEN.value,
        chunk_columns=CHUNK.value,
    )
    return protocol, trace_inputs.describe(model, protocol, NOISE.value, corpus)
