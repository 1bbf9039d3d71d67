"""What is corrupted and restored in a causal trace, and how it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

from eval.flags import running
from rome_jax.models.interventions import PatchMode
from rome_jax.models.registry import LanguageModel
from rome_jax.trace import inputs as trace_inputs
from rome_jax.trace.facts import KnownFacts
from rome_jax.trace.protocol import Protocol, Series
from rome_jax.trace.restore import DEFAULT_WINDOW, Measure
from rome_jax.trace.sweep import CHUNK_COLUMNS, check_window, default_window

FACTS = flags.DEFINE_string(
    "fact_file",
    None,
    "Known facts in the layout of known_1000.json; factworld, the embedded models' own and their default; published to "
    "download the original's.",
)
KINDS = flags.DEFINE_list("kinds", ["hidden", "mlp", "attn"], "What is restored.")
SEVERED = flags.DEFINE_bool(
    "severed",
    False,
    "Also restore hidden states at the last subject token with its MLPs, or its attention, held corrupted.",
)
TOKENS = flags.DEFINE_enum(
    "tokens", "all", ["all", "subject_last"], "Where to restore.", case_sensitive=False
)
SCREEN = flags.DEFINE_integer(
    "screen",
    0,
    "Restore only so many states of each kind, those that a backward pass ranks first; 0: all.",
    lower_bound=0,
)
TOP = flags.DEFINE_integer("top", 20, "States that are verified.", lower_bound=1)
NOISE = flags.DEFINE_string(
    "noise_level",
    "s3",
    "s3: 3 × the deviation of all subjects' embeddings; 0.1: Gaussian; u0.1: uniform; t3: Student's t and m: "
    "multivariate Gaussian, both fitted to the embeddings of a text.",
)
CORPUS = flags.DEFINE_string(
    "noise_corpus",
    None,
    "Text for m and t3, as --dataset of eval.layer_stats; default: factworld for the embedded models, else wikipedia.",
)
MODE = flags.DEFINE_enum(
    "noise_mode",
    "add",
    ["add", "replace"],
    "What noise does to embeddings.",
    case_sensitive=False,
)
REPLACE = flags.DEFINE_integer(
    "replace", None, "Of the original: 1 is --noise_mode=replace.", lower_bound=0, upper_bound=1
)
SAMPLES = flags.DEFINE_integer("samples", 10, "Noise samples a prompt.", lower_bound=1)
WINDOW = flags.DEFINE_integer(
    "window",
    None,
    f"Layers of MLP or attention outputs; default: {DEFAULT_WINDOW}, or half of a shallow model's layers, of which "
    "all windows would be alike.",
)
MEASURE = flags.DEFINE_enum(
    "measure",
    "probability",
    [m.value for m in Measure],
    "Of the answer, averaged over samples.",
    case_sensitive=False,
)
CHUNK = flags.DEFINE_integer(
    "chunk_columns",
    CHUNK_COLUMNS,
    "Token columns run together: more for a GPU; bounds the memory.",
    lower_bound=1,
)
CASE_FIGURES = flags.DEFINE_bool("case_figures", False, "Draw a heatmap of every case too.")


def read_facts(model_name: str, prompt: str | None) -> KnownFacts | None:
    """The facts of --fact_file, or the model's own; None for one prompt and a model without.

    Raises:
      ValueError, OSError: facts that cannot be read or fetched, or none, and no prompt.
    """
    facts = trace_inputs.read_facts(FACTS.value, model_name)
    if facts is None and prompt is None:
        raise ValueError(
            f"no facts come with model {model_name!r}: give --fact_file, or --prompt and --subject."
        )
    return facts


def read_window(series: Sequence[Series], num_layers: int) -> int:
    """The window of --window, or that of a model with so many layers.

    Raises:
      ValueError: If the model has no room for it.
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
    """How traces are made, and all settings that decide them, but for the facts.

    Args:
      model: whose embeddings the noise is fitted to.
      subjects: for a relative level of noise.
      series: what is traced.
      contrast: second answer; the log-probabilities of two are compared.

    Raises:
      ValueError: noise that is not known, or a window that the model has no room for.
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
