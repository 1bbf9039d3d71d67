"""Collects the second moments C = E[k kᵀ] of the keys of some layers, in one pass over a corpus.

    python -m eval.layer_stats
    python -m eval.layer_stats --model_name=gpt2-xl --layers=17 --dataset=wikipedia
    python -m eval.layer_stats --model_name=gpt2-xl --layers=all --dataset=texts.jsonl --num_tokens=1000000
    python -m eval.layer_stats --model_name=gpt2-xl --layers=17 --dataset=self --until_error=0.05
    python -m eval.layer_stats --model_name=gpt2-xl --layers=17 --published

Without flags it reads the corpus of a factworld model. If it is killed, the same command resumes from the last saved
state. The files layer_<n>.safetensors are written to --output_dir, by default stats/<model>/<corpus>_<limit>.
`--published` downloads the original's statistics instead of collecting. See docs/statistics.md. Several processes can
share a collection; see docs/clusters.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval import cli
from eval.flags import method, model, processes, running, statistics
from rome_jax.data.corpus import Corpus
from rome_jax.files.groups import ProcessGroup
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import inputs, own_texts
from rome_jax.moments.collect import collect, default_directory
from rome_jax.moments.published import PUBLISHED
from rome_jax.moments.sources import read
from rome_jax.terminal.statistics_report import moment_line, not_usable_line


def main() -> None:
    """Collects or downloads second moments, and prints a line per layer."""
    name = model.check()
    named = inputs.read_layers(statistics.LAYERS.value, method.rome_layers(name), name)
    root = running.check_output("stats")
    collecting, dataset = not statistics.PUBLISHED.value, statistics.dataset_name(name)
    corpus = None
    if collecting and dataset != own_texts.NAME:
        corpus = statistics.open_dataset(dataset)
    statistics.read_limit(None)  # refuses bad values before the model is loaded
    with processes.joined(root) as group:
        loaded = model.load()
        layers = inputs.check_layers(named, loaded.config)
        source = _collect(loaded, corpus, layers, group) if collecting else PUBLISHED
        if group.index == 0:
            _report(source, layers, loaded)


def _collect(
    loaded: LanguageModel, corpus: Corpus | None, layers: Sequence[int], group: ProcessGroup
) -> str:
    """Collects second moments, over texts of the model itself if `corpus` is None, and returns their directory."""
    corpus = corpus or own_texts.self_corpus(loaded, seed=running.SEED.value)
    limit = statistics.read_limit(corpus.default_articles)
    directory = running.check_output(default_directory(loaded, corpus, limit))
    collect(
        loaded,
        corpus,
        layers,
        directory,
        limit=limit,
        sequence_length=statistics.LENGTH.value,
        batch_tokens=statistics.BATCH.value,
        checkpoint_seconds=60 * statistics.CHECKPOINT.value,
        dtype=running.FILE_DTYPE.value,
        command=cli.command_line(PROGRAM.name),
        group=group,
    )
    return str(directory)


def _report(source: str, layers: Sequence[int], loaded: LanguageModel) -> None:
    """Prints a line per layer, and how edits use the second moments."""
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
        "num_articles num_tokens until_error sequence_length batch_tokens seed output_dir checkpoint_minutes "
        "distributed coordinator_address num_processes process_id process_timeout "
        "file_dtype published to_collect mesh revision"
    ).split(),
    resumable=True,
)

if __name__ == "__main__":
    PROGRAM.run()
