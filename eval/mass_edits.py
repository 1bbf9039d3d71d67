"""Up to 1,000 edits in one embedded model: by MEMIT at once, by ROME one after another.

    python -m eval.mass_edits
    python -m eval.mass_edits --model_name=factworld-gptj --counts=1,10,100 --output_dir=mass_gptj

At each count it measures how many of the edits hold, on their prompts and on paraphrases, whether neighbors that were
not edited themselves do, and the perplexity of texts about other subjects. Requests are the held-out ones in their
order, and from the 877th on tuning requests. A count that is in the output directory is not measured again. Writes
mass_edits.json and mass_edits.png.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from absl import flags

from eval import cli
from rome_jax.edit.method import METHODS, Algorithm, Editor
from rome_jax.evaluation.mass_edits import MOST, MassEdits, read_counts
from rome_jax.factworld.facts import make_world
from rome_jax.models import runs
from rome_jax.models.registry import SHIPPED, load_model
from rome_jax.plots.sequences import plot_mass

_MODEL = flags.DEFINE_string("model_name", "factworld-gpt2", "factworld-gpt2 or factworld-gptj.")
_COUNTS = flags.DEFINE_list(
    "counts", ["1", "10", "30", "100", "300", "1000"], f"Edits, from 1 to {MOST}."
)
_OUTPUT = flags.DEFINE_string("output_dir", "mass_edits", "Directory of the figures.")
_CHUNK = flags.DEFINE_integer(
    "chunk_size", 8, "Requests that MEMIT optimises side by side.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the context templates and the requests.")


def main() -> None:
    """Measures what is missing, writes the figures, prints a row a measurement."""
    if _MODEL.value not in SHIPPED:
        raise ValueError(f"unknown model {_MODEL.value!r}: give one of {', '.join(SHIPPED)}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the figure needs matplotlib: pip install -e '.[plot]'.")
    counts = read_counts(_COUNTS.value)
    model = load_model(_MODEL.value)
    editors = [
        Editor.prepare(
            algorithm,
            model,
            METHODS[algorithm].for_model(model.name),
            seed=_SEED.value,
            chunk_size=_CHUNK.value,
        )
        for algorithm in (Algorithm.ROME, Algorithm.MEMIT)
    ]
    mass = MassEdits.open(_OUTPUT.value, editors, make_world(), _SEED.value)
    mass.measure(counts)
    report = mass.report(counts)
    directory = Path(_OUTPUT.value)
    runs.write_json(directory / "mass_edits.json", report)
    plot_mass(report, directory / "mass_edits.png")
    for name, rows in {"unedited": [report["before"]], **report["runs"]}.items():
        for row in rows:
            print(name, *(f"{key} {value:.4g}" for key, value in row.items()), sep="   ")
    print(f"Wrote {directory / 'mass_edits.json'} and {directory / 'mass_edits.png'}")


if __name__ == "__main__":
    cli.run(main)
