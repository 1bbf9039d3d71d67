"""Collects the second moments C = E[k kᵀ] of the keys of some layers, in one pass over a corpus.

    python -m eval.layer_stats
    python -m eval.layer_stats --model_name=gpt2-xl --layers=17 --dataset=wikipedia
    python -m eval.layer_stats --model_name=gpt2-xl --layers=all --dataset=texts.jsonl --num_tokens=1000000
    python -m eval.layer_stats --model_name=gpt2-xl --layers=17 --published

Without flags it reads the corpus of a factworld model. If it is killed, the same command resumes from the last saved
state. The files layer_<n>.safetensors are written to --output_dir, by default stats/<model>/<corpus>_<limit>.
`--published` downloads the original's statistics instead of collecting. See docs/statistics.md.
"""

from __future__ import annotations

from eval import cli
from eval.flags import method, model, running, statistics
from rome_jax.moments import inputs
from rome_jax.moments.collect import collect, default_directory
from rome_jax.moments.published import PUBLISHED
from rome_jax.moments.sources import read
from rome_jax.terminal.statistics_report import moment_line, not_usable_line


def main() -> None:
    """Collects or downloads second moments, and prints a line per layer."""
    name = model.check()
    named = inputs.read_layers(statistics.LAYERS.value, method.rome_layers(name), name)
    running.check_output("stats")
    corpus = None if statistics.PUBLISHED.value else statistics.open_dataset(name)
    limit = corpus and inputs.read_limit(statistics.ARTICLES.value, statistics.TOKENS.value, corpus)
    loaded = model.load()
    layers = inputs.check_layers(named, loaded.config)
    source = PUBLISHED
    if corpus is not None:
        directory = running.check_output(default_directory(loaded, corpus, limit))
        sizes = {"limit": limit, "sequence_length": statistics.LENGTH.value}
        sizes |= {"batch_tokens": statistics.BATCH.value}
        seconds = 60 * statistics.CHECKPOINT.value
        collect(loaded, corpus, layers, directory, **sizes, checkpoint_seconds=seconds)
        source = str(directory)
    singular = []
    for layer in layers:  # One at a time, because they are large.
        moment = read(source, [layer], loaded)[layer]
        print(moment_line(layer, moment))
        singular += [] if moment.is_definite else [layer]
    if singular:
        print(not_usable_line(singular, loaded.config.mlp_width))
    else:
        print(f"Use them: python -m eval.edit --second_moments={source}")


PROGRAM = cli.Program(
    main,
    takes=(
        "model_name dtype precision layers dataset dataset_config dataset_split dataset_revision text_key sample_by "
        "num_articles num_tokens sequence_length batch_tokens output_dir checkpoint_minutes published to_collect"
    ).split(),
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
