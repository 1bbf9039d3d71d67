"""Many ROME edits into one embedded model, one after another: what stays of them, and what they cost.

    python -m eval.sequential_edits
    python -m eval.sequential_edits --model_name=factworld-gptj --num_edits=100 --output_dir=sequential

Each edit is computed on the model that holds all earlier ones, with both choices of the key that the update divides by
(KeyMode). After every 10 edits it measures how many edits so far still hold, whether their neighbors do, and the
perplexity of texts about other subjects. Writes sequential.json and sequential.png.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
from absl import flags
from tqdm import tqdm

from eval import cli
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.evaluation.datasets import parse_counterfact
from rome_jax.evaluation.scoring import perplexity
from rome_jax.evaluation.sequence import run, unedited_texts
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.models.registry import SHIPPED, load_model
from rome_jax.plots.sequences import plot
from rome_jax.version import __version__

_MODEL = flags.DEFINE_string("model_name", "factworld-gpt2", "factworld-gpt2 or factworld-gptj.")
_EDITS = flags.DEFINE_integer("num_edits", 200, "Held-out edit requests.", lower_bound=1)
_EVERY = flags.DEFINE_integer("every", 10, "Edits between two measurements.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output_dir", "sequential", "Directory of the figures.")
_LAYER = flags.DEFINE_integer(
    "layer", None, "Edited layer; default: the shipped one.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the context templates and the requests.")


def main() -> None:
    """Measures both key modes, writes the figures, prints the last rows."""
    if _MODEL.value not in SHIPPED:
        raise ValueError(f"unknown model {_MODEL.value!r}: give one of {', '.join(SHIPPED)}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the figure needs matplotlib: pip install -e '.[plot]'.")
    world, model = make_world(), load_model(_MODEL.value)
    records = parse_counterfact(
        counterfact_records(world, _SEED.value, Role.HELD_OUT, _EDITS.value)
    )
    config = ROMEConfig.for_model(model.name)
    if _LAYER.value is not None:
        config = dataclasses.replace(config, layers=(_LAYER.value,))
    key = jax.random.key(_SEED.value)
    templates = sample_templates(model, key, config.context_template_length_params)
    texts = unedited_texts(world, records, _SEED.value)
    runs = {}
    for mode in KeyMode:
        varied = dataclasses.replace(config, key_mode=mode)
        steps = run(model, world, records, varied, templates, texts, _EVERY.value)
        runs[mode.value] = list(tqdm(steps, total=len(records), unit="edit", desc=mode.value))
    report = {
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "configuration": config.to_dict(),
        "templates": list(templates),
        "seed": _SEED.value,
        "versions": {"rome_jax": __version__, "jax": jax.__version__},
        "perplexity_before": perplexity(model, texts),
        "runs": runs,
    }
    directory = Path(_OUTPUT.value)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sequential.json").write_text(json.dumps(report, indent=1))
    plot(report, directory / "sequential.png")
    for name, steps in runs.items():
        print(name, *(f"{k} {v:.4g}" for k, v in steps[-1]["after"].items()), sep="   ")
    print(f"Wrote {directory / 'sequential.json'} and {directory / 'sequential.png'}")


if __name__ == "__main__":
    cli.run(main)
