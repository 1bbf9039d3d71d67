"""Collects the second moments C = E[k kᵀ] of the keys of some layers, in one pass over a corpus.

    python -m eval.layer_stats
    python -m eval.layer_stats --model_name=gpt2-xl --layers=17 --dataset=wikipedia
    python -m eval.layer_stats --model_name=gpt2-xl --layers=all --dataset=texts.jsonl --num_tokens=1000000
    python -m eval.layer_stats --model_name=gpt2-xl --layers=17 --published

With no flags it reads the corpus of an embedded model. A killed run resumes from its last saved state when the
same command is given again. Files layer_<n>.safetensors go to --output_dir, by default stats/<model>/<corpus>_<limit>.
`--published` downloads the original's statistics instead of collecting. See docs/statistics.md.
"""

from __future__ import annotations

from eval import cli
from eval.flags import method, model, running, statistics
from rome_jax.moments import collect, inputs
from rome_jax.moments import files as moment_files


def main() -> None:
    """Collects or downloads, and reports."""
    name = model.check()
    wanted = inputs.read_layers(statistics.LAYERS.value, method.rome_layers(name), name)
    running.check_output("stats")
    corpus = None if statistics.PUBLISHED.value else statistics.open_dataset(name)
    limit = corpus and inputs.read_limit(statistics.ARTICLES.value, statistics.TOKENS.value, corpus)
    loaded = model.load()
    layers = inputs.check_layers(wanted, loaded.config)
    source = moment_files.PUBLISHED
    if corpus is not None:
        directory = running.check_output(collect.default_directory(loaded, corpus, limit))
        collect.collect(
            loaded,
            corpus,
            layers,
            directory,
            limit=limit,
            sequence_length=statistics.LENGTH.value,
            batch_tokens=statistics.BATCH.value,
            checkpoint_seconds=60 * statistics.CHECKPOINT.value,
        )
        source = str(directory)
    for layer in layers:  # one at a time: they are large
        print(collect.describe(layer, moment_files.read(source, [layer], loaded)[layer]))
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
