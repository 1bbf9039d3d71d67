"""Collects the second moments C = E[k kᵀ] of the keys of some layers, in one pass over a corpus.

    python -m eval.layer_stats
    python -m eval.layer_stats --model_name=gpt2-xl --layers=17 --dataset=wikipedia
    python -m eval.layer_stats --model_name=gpt2-xl --layers=all --dataset=texts.jsonl --num_tokens=1000000
    python -m eval.layer_stats --model_name=gpt2-xl --layers=17 --published

With no flags it reads the corpus of an embedded model. A run that was killed goes on from its last saved state when the
same command is given again. `--published` downloads the original's statistics instead of collecting. See
docs/statistics.md.
"""

from __future__ import annotations

import re
from pathlib import Path

from absl import flags

from eval import cli
from rome_jax.data.corpus import open_corpus
from rome_jax.edit.config import ROMEConfig
from rome_jax.models.config import ModelConfig
from rome_jax.models.registry import SHIPPED, load_model
from rome_jax.moments import collect as statistics
from rome_jax.moments import files as moment_files

_MODEL = flags.DEFINE_string(
    "model_name",
    "factworld-gpt2",
    "factworld-gpt2, factworld-gptj, a local directory or a hub name.",
)
_LAYERS = flags.DEFINE_string(
    "layers",
    None,
    "One (17), several (5,6,7), a range (3-8) or all; by default those that ROME edits in this model.",
)
_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "factworld; a .txt, .jsonl or .parquet file or a folder of them; wikipedia (wikimedia/wikipedia 20231101.en); or "
    "another dataset of the Hugging Face hub. By default factworld for the embedded models, wikipedia for others.",
)
_CONFIG = flags.DEFINE_string("dataset_config", None, "Configuration of a dataset of the hub.")
_SPLIT = flags.DEFINE_string("dataset_split", "train", "Split of a dataset of the hub.")
_REVISION = flags.DEFINE_string(
    "dataset_revision", None, "Branch, tag or commit of a dataset of the hub; default: its newest."
)
_TEXT_KEY = flags.DEFINE_string("text_key", "text", "Field that holds the text, except in .txt.")
_SAMPLE_BY = flags.DEFINE_enum(
    "sample_by", "document", ["document", "paragraph", "line"], "What an article is in a .txt file."
)
_ARTICLES = flags.DEFINE_integer(
    "num_articles",
    None,
    "Articles to read; 0 is all. Default: 100,000 of a dataset of the hub, as the original, and all of others.",
)
_TOKENS = flags.DEFINE_integer("num_tokens", None, "Tokens to read, instead of --num_articles.")
_LENGTH = flags.DEFINE_integer(
    "sequence_length", None, "Tokens after which an article is cut; default: the model's context."
)
_BATCH = flags.DEFINE_integer(
    "batch_tokens", 4096, "Tokens in a batch, whatever the sequence length; more for a GPU."
)
_OUTPUT = flags.DEFINE_string(
    "output_dir",
    None,
    "Where layer_<n>.safetensors go; default: stats/<model>/<corpus>_<limit> in the working directory.",
)
_CHECKPOINT = flags.DEFINE_float(
    "checkpoint_minutes", 5.0, "Between saved states, from which a killed run goes on."
)
_DTYPE = flags.DEFINE_string("dtype", None, "Of the weights, such as bfloat16; default: as stored.")
_PUBLISHED = flags.DEFINE_bool(
    "published", False, "Download the original's Wikipedia statistics, and report on them."
)


def read_layers(text: str | None, name: str, config: ModelConfig) -> list[int]:
    """The layers that --layers names.

    Raises:
      ValueError: text that names no layers, a layer that the model does not have, or no text and a model whose ROME
        layers are not known.
    """
    if text is None:
        try:
            return list(ROMEConfig.for_model(name).layers)
        except ValueError:
            raise ValueError(f"no ROME layer is known for model {name!r}: give --layers.") from None
    if text == "all":
        return list(range(config.num_layers))
    layers: list[int] = []
    for part in text.split(","):
        if (match := re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())) is None:
            layers = []
            break
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not layers:
        raise ValueError(f"--layers={text}: give one (17), several (5,6,7), a range (3-8) or all.")
    return [config.check_layer(layer, "--layers") for layer in layers]


def main() -> None:
    """Collects or downloads, and reports."""
    model = load_model(_MODEL.value, dtype=_DTYPE.value)
    layers = read_layers(_LAYERS.value, _MODEL.value, model.config)
    if _PUBLISHED.value:
        for layer in layers:
            print(
                statistics.describe(
                    layer, moment_files.read(moment_files.PUBLISHED, [layer], model)[layer]
                )
            )
        print("Use them: python -m eval.edit --second_moments=published")
        return
    corpus = open_corpus(
        _DATASET.value or ("factworld" if model.name in SHIPPED else "wikipedia"),
        config=_CONFIG.value,
        split=_SPLIT.value,
        revision=_REVISION.value,
        text_key=_TEXT_KEY.value,
        sample_by=_SAMPLE_BY.value,
    )
    articles = _ARTICLES.value
    if articles is None and _TOKENS.value is None:
        articles = corpus.default_articles
    limit = statistics.Limit(articles or None, _TOKENS.value)
    output = Path(_OUTPUT.value or statistics.default_directory(model, corpus, limit))
    statistics.collect(
        model,
        corpus,
        layers,
        output,
        limit=limit,
        sequence_length=_LENGTH.value,
        batch_tokens=_BATCH.value,
        checkpoint_seconds=60 * _CHECKPOINT.value,
    )
    for layer in layers:  # one at a time: they are large
        print(statistics.describe(layer, moment_files.load(output, layers=[layer])[layer]))
    print(f"Written to {output}. Use them: python -m eval.edit --second_moments={output}")


if __name__ == "__main__":
    cli.run(main)
