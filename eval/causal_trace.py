"""Traces which states of a model carry its facts (paper, section 2): averages over many prompts, or one prompt.

    python -m eval.causal_trace
    python -m eval.causal_trace --model_name=gpt2-xl --fact_file=published --num_prompts=1000 --severed
    python -m eval.causal_trace --prompt="{} plays the sport of" --subject="Gothulf Punby"

With no flags it traces facts of an embedded model. A run that was stopped goes on when the same command is given again;
more prompts or kinds, or --severed, add to what is there. With --prompt it shows one prompt in the terminal.

With --screen=20 one backward pass ranks the states of each case and only the best 20 are restored: quicker, but without
averages, as the other states are not known. eval.screening_report says how well that ranks.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from eval import cli
from rome_jax.models.interventions import PatchMode
from rome_jax.models.registry import load_model
from rome_jax.terminal.trace_report import report_run, show_prompt
from rome_jax.trace import inputs as trace_inputs
from rome_jax.trace.folder import RunFolder
from rome_jax.trace.protocol import Protocol, find_prompt
from rome_jax.trace.restore import DEFAULT_WINDOW, Measure
from rome_jax.trace.sweep import CHUNK_COLUMNS, check_window, default_window

_MODEL = flags.DEFINE_string("model_name", "factworld-gpt2", "Shipped or hub name, or directory.")
_DTYPE = flags.DEFINE_string("dtype", None, "Of the weights, such as bfloat16; default: as stored.")
_FACTS = flags.DEFINE_string(
    "fact_file",
    None,
    "Known facts in the layout of known_1000.json; factworld, the embedded models' own and their default; published to "
    "download the original's.",
)
_PROMPTS = flags.DEFINE_integer(
    "num_prompts", 100, "First facts of the file to trace; all if it has fewer.", lower_bound=1
)
_KINDS = flags.DEFINE_list("kinds", ["hidden", "mlp", "attn"], "What is restored.")
_SEVERED = flags.DEFINE_bool(
    "severed",
    False,
    "Also restore hidden states at the last subject token with its MLPs, or its attention, held corrupted.",
)
_TOKENS = flags.DEFINE_enum("tokens", "all", ["all", "subject_last"], "Where to restore.")
_SCREEN = flags.DEFINE_integer(
    "screen",
    0,
    "Restore only so many states of each kind, those that a backward pass ranks first; 0: all.",
    lower_bound=0,
)
_NOISE = flags.DEFINE_string(
    "noise_level",
    "s3",
    "s3: 3 × the deviation of all subjects' embeddings; 0.1: Gaussian; u0.1: uniform; t3: Student's t and m: "
    "multivariate Gaussian, both fitted to the embeddings of a text.",
)
_CORPUS = flags.DEFINE_string(
    "noise_corpus",
    None,
    "Text for m and t3, as --dataset of eval.layer_stats; default: factworld for the embedded models, else wikipedia.",
)
_MODE = flags.DEFINE_enum("noise_mode", "add", ["add", "replace"], "What noise does to embeddings.")
_SAMPLES = flags.DEFINE_integer("samples", 10, "Noise samples a prompt.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0)
_WINDOW = flags.DEFINE_integer(
    "window",
    None,
    f"Layers of MLP or attention outputs; default: {DEFAULT_WINDOW}, or half of a shallow model's layers, of which "
    "all windows would be alike.",
)
_MEASURE = flags.DEFINE_enum(
    "measure", "probability", [m.value for m in Measure], "Of the answer, averaged over samples."
)
_CHUNK = flags.DEFINE_integer(
    "chunk_columns",
    CHUNK_COLUMNS,
    "Token columns run together: more for a GPU; bounds the memory.",
    lower_bound=1,
)
_OUTPUT = flags.DEFINE_string("output_dir", None, "Default: results/causal_trace/<model>.")
_FORMAT = flags.DEFINE_enum("figure_format", "pdf", ["pdf", "svg", "png"], "Of all figures.")
_CASE_FIGURES = flags.DEFINE_bool("case_figures", False, "Draw a heatmap of every case too.")
_PROMPT = flags.DEFINE_string(
    "prompt", None, "One prompt to trace instead, with the subject in it or {} in its place."
)
_SUBJECT = flags.DEFINE_string("subject", None, "What --prompt is about.")
_TARGET = flags.DEFINE_string(
    "target", None, "Answer to --prompt to measure, of any length; default: the model's own."
)
_CONTRAST = flags.DEFINE_string(
    "contrast", None, "Second answer to --prompt: measures the difference of log-probabilities."
)


def main() -> None:
    """Traces one prompt, or many and their averages."""
    given = {name for name in flags.FLAGS if flags.FLAGS[name].present}
    trace_inputs.check_flags(given if _SCREEN.value else given - {"screen"})
    series = trace_inputs.read_series(_KINDS.value, _SEVERED.value)
    facts = trace_inputs.read_facts(_FACTS.value, _MODEL.value)
    if facts is None and _PROMPT.value is None:
        raise ValueError(
            f"no facts come with model {_MODEL.value!r}: give --fact_file, or --prompt and --subject."
        )
    model = load_model(_MODEL.value, dtype=_DTYPE.value)
    num_layers = model.config.num_layers
    window = default_window(num_layers) if _WINDOW.value is None else _WINDOW.value
    for one in series:
        check_window(one.kind, window, num_layers)
    subjects = facts.subjects if facts else [_SUBJECT.value]
    noise, corpus = trace_inputs.read_noise(model, _NOISE.value, subjects, _CORPUS.value)
    protocol = Protocol(
        noise,
        samples=_SAMPLES.value,
        seed=_SEED.value,
        mode=PatchMode(_MODE.value),
        window=window,
        measure=Measure.LOG_PROBABILITY if _CONTRAST.value else Measure(_MEASURE.value),
        subject_last=_TOKENS.value == "subject_last",
        screen=_SCREEN.value,
        chunk_columns=_CHUNK.value,
    )
    settings = trace_inputs.describe(model, protocol, _NOISE.value, corpus)
    settings |= {"facts": facts.name, "facts_sha256": facts.sha256} if facts else {}
    output = Path(_OUTPUT.value or trace_inputs.default_directory(model))
    print(f"Model       {model!r}")
    print(f"Noise       {_NOISE.value}: {noise.distribution.value} {noise.value:.4g}")
    if _PROMPT.value is None:
        chosen = facts.facts[: _PROMPTS.value]
        folder = RunFolder.open(output, settings, {"noise_value": noise.value})
        folder.run(model, chosen, protocol, series)
        report_run(folder, chosen, series, _FORMAT.value, _CASE_FIGURES.value)
        return
    fact = trace_inputs.read_prompt(_PROMPT.value, _SUBJECT.value)
    answers = [_TARGET.value] + [_CONTRAST.value] * (_CONTRAST.value is not None)
    prompts = [find_prompt(model, fact, answer) for answer in answers]
    show_prompt(model, prompts, protocol, series, output / "prompts", settings, _FORMAT.value)


if __name__ == "__main__":
    cli.run(main)
