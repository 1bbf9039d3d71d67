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
from absl import flags
from ml_collections import config_flags

from eval import cli
from eval.edit_report import Comparison, Prompts, factworld_prompts, print_report, provenance, talk
from rome_jax import covariance
from rome_jax.edit import rome
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.contexts import sample_templates
from rome_jax.edit.delta import save_delta
from rome_jax.models.registry import SHIPPED, load_model
from rome_jax.request import EditRequest

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
      ValueError: some of --prompt, --subject and --target_new without the others, or a bad one.
    """
    values = (_PROMPT.value, _SUBJECT.value, _TARGET_NEW.value)
    if all(value is None for value in values) and _MODEL.value in SHIPPED:
        values = EXAMPLE
    if any(value is None for value in values):
        raise ValueError("give --prompt, --subject and --target_new together.")
    return EditRequest(*values, target_true=_TARGET_TRUE.value)


def read_config() -> ROMEConfig:
    """Hyperparameters of --config, or else those of the model."""
    if _CONFIG.value is not None:
        return ROMEConfig.from_dict(_CONFIG.value.to_dict())
    try:
        return ROMEConfig.for_model(_MODEL.value)
    except ValueError:
        raise ValueError(
            f"no ROME layer is known for model {_MODEL.value!r}: name one, as in "
            '--config=configs/rome.py:gpt2-xl --config.layers="(5,)", or give a known model, such as '
            f"{', '.join(SHIPPED)}."
        ) from None


def read_covariance(config: ROMEConfig) -> dict[int, covariance.SecondMoment] | None:
    """Second moments for the edit, from --covariance or from the package; None if the edit uses none."""
    if not config.mom2_adjustment:
        return None
    if _COVARIANCE.value is None and _MODEL.value not in SHIPPED:
        raise ValueError(
            f"no second moments come with model {_MODEL.value!r}: give --covariance=STATS.npz, or edit without them, "
            "--config=configs/rome.py:gpt2-xl --config.mom2_adjustment=False."
        )
    if _COVARIANCE.value is None:
        return covariance.load_shipped(_MODEL.value)
    path = Path(_COVARIANCE.value)
    try:
        return covariance.load(path)
    except ValueError:  # not ours
        moment = covariance.load_reference(path)
    if len(config.layers) > 1:
        raise ValueError(
            f"{path} holds the second moment of one layer, but layers={config.layers} are edited: give "
            "one layer, or a file that rome_jax.covariance.save wrote."
        )
    return {config.layers[0]: moment}


def main() -> None:
    """Edits, saves, prints, and talks if asked to."""
    request, config = read_request(), read_config()
    moments = read_covariance(config)
    model = load_model(_MODEL.value, dtype=_DTYPE.value)
    key = jax.random.key(_SEED.value)
    templates = sample_templates(model, key, config.context_template_length_params)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = rome.compute(model, [request], config, covariance=moments, templates=templates)
    for warning in caught:
        print(f"Warning: {warning.message}", file=sys.stderr)
    delta = result.deltas[0]
    if _SAVE.value:
        metadata = provenance(model, request, config, templates, _SEED.value, result)
        print(f"Saved   {save_delta(_SAVE.value, delta, metadata)}")

    known = factworld_prompts(model.name, request)
    prompts = Prompts(
        [*known.paraphrases, *_PARAPHRASES.value], [*known.neighbors, *_NEIGHBORS.value]
    )
    comparison = Comparison(model, delta)
    print_report(comparison, request, result, prompts)
    if _INTERACTIVE.value:
        talk(comparison)


if __name__ == "__main__":
    cli.run(main)
