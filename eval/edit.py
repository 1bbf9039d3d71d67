"""Edits one fact with ROME and shows what changed and what did not.

    python -m eval.edit
    python -m eval.edit --model_name=factworld-gptj --prompt="{} plays the sport of" --subject=... --target_new=...
    python -m eval.edit --model_name=gpt2-xl --covariance=STATS.npz --prompt=... --subject=... --target_new=...

With no flags it edits a default example of an embedded model. Paraphrases and neighbors of factworld's facts are
known; for other models name them with --paraphrase and --neighbor.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from eval.edit_report import Comparison, Prompts, factworld_prompts, print_lens, print_report
from rome_jax import covariance
from rome_jax.edit import rome
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.contexts import sample_templates
from rome_jax.edit.delta import save_delta
from rome_jax.models.registry import SHIPPED, LanguageModel, load_model
from rome_jax.request import EditRequest
from rome_jax.version import __version__

_MODEL = flags.DEFINE_string(
    "model_name",
    "factworld-gpt2",
    "factworld-gpt2, factworld-gptj, a local directory or a hub name.",
)
_PROMPT = flags.DEFINE_string("prompt", None, "Text with one {} where the subject stands.")
_SUBJECT = flags.DEFINE_string("subject", None, "What the fact is about.")
_TARGET_NEW = flags.DEFINE_string("target_new", None, "What the model shall say next.")
_TARGET_TRUE = flags.DEFINE_string(
    "target_true", None, "What it says now, for the report; greedy decoding finds it if not given."
)
_PARAPHRASES = flags.DEFINE_multi_string("paraphrase", [], "Another way to ask; repeatable.")
_NEIGHBORS = flags.DEFINE_multi_string(
    "neighbor", [], "A prompt about another subject, whose answer must stay; repeatable."
)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Hyperparameters, such as configs/rome.py:gpt2-xl; by default those of the model.",
)
_COVARIANCE = flags.DEFINE_string(
    "covariance", None, "Second moments (.npz, ours or the original's) of the edited layer."
)
_SAVE = flags.DEFINE_string("save", None, "Directory that keeps the edit, a small file.")
_INTERACTIVE = flags.DEFINE_bool(
    "interactive", False, "Type prompts against the old and the new model, with the logit lens."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the context templates.")
_DTYPE = flags.DEFINE_string("dtype", None, "Of the weights, such as bfloat16; default: as stored.")

# A held-out fact of factworld, which both embedded models know.
EXAMPLE = ("{} plays the sport of", "Gothulf Punby", "tennis")


def read_request() -> EditRequest:
    """The request of the flags, or the model's default example.

    Raises:
      UsageError: some of --prompt, --subject and --target_new without the others.
    """
    values = (_PROMPT.value, _SUBJECT.value, _TARGET_NEW.value)
    if all(value is None for value in values) and _MODEL.value in SHIPPED:
        values = EXAMPLE
    if any(value is None for value in values):
        raise app.UsageError("give --prompt, --subject and --target_new together.")
    return EditRequest(*values, target_true=_TARGET_TRUE.value)


def read_covariance(model: LanguageModel, config: ROMEConfig):
    """Second moments for the edit, from --covariance or from the package."""
    if not config.mom2_adjustment:
        return None
    if _COVARIANCE.value is None:
        return covariance.load_shipped(model.name)
    path = Path(_COVARIANCE.value)
    try:
        return covariance.load(path)
    except ValueError:  # not ours
        return {layer: covariance.load_reference(path) for layer in config.layers}


def main(argv) -> None:
    """Edits, prints, saves, and talks if asked to."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    request = read_request()
    model = load_model(_MODEL.value, dtype=_DTYPE.value)
    if _CONFIG.value is None:
        config = ROMEConfig.for_model(model.name)
    else:
        config = ROMEConfig.from_dict(_CONFIG.value.to_dict())
    moments = read_covariance(model, config)
    key = jax.random.key(_SEED.value)
    templates = sample_templates(model, key, config.context_template_length_params)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = rome.compute(model, [request], config, covariance=moments, templates=templates)
    for warning in caught:
        print(f"Warning: {warning.message}", file=sys.stderr)

    prompts = factworld_prompts(model.name, request)
    prompts = Prompts(
        [*prompts.paraphrases, *_PARAPHRASES.value], [*prompts.neighbors, *_NEIGHBORS.value]
    )
    comparison = Comparison(model, result.deltas[0])
    print_report(comparison, request, result, prompts)
    if _SAVE.value:
        metadata = {
            "method": "ROME",
            "request": vars(request),
            "configuration": config.to_dict(),
            "templates": templates,
            "seed": _SEED.value,
            "model": {
                "name": model.name,
                "source": model.source,
                "fingerprint": model.fingerprint(),
            },
            "versions": {"rome_jax": __version__, "jax": jax.__version__},
        }
        print(f"\nSaved: {save_delta(_SAVE.value, result.deltas[0], metadata)}")
    if _INTERACTIVE.value:
        print("\nType a prompt; an empty line ends.")
        while line := _read_line():
            print_lens(comparison, line)


def _read_line() -> str:
    try:
        return input("> ").rstrip()
    except EOFError:
        return ""


def run() -> None:
    """The command line; bad input is one sentence, not a traceback."""

    def guarded(argv):
        try:
            main(argv)
        except (ValueError, OSError) as error:
            sys.exit(f"Error: {error}")

    app.run(guarded)


if __name__ == "__main__":
    run()
