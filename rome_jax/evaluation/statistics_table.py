"""The quality of ROME's edits with second moments computed from few and from many tokens."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from rome_jax.data.corpus import Corpus, factworld
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.evaluation import counterfact
from rome_jax.evaluation.datasets import CounterFactRecord, DatasetName, load_dataset
from rome_jax.models.registry import IN_WHEELS, LanguageModel
from rome_jax.moments import collect, own_texts
from rome_jax.moments import files as moment_files
from rome_jax.moments.second_moment import SecondMoment


def lines(
    model: LanguageModel, limits: Sequence[collect.Limit | None], num_cases: int, seed: int = 0
) -> Iterator[str]:
    """Yields the lines of the table in docs/statistics.md: one row for each number of tokens used for C.

    Args:
      model: A model that comes with its records: a factworld model or one of `IN_WHEELS`.
      limits: The numbers of tokens; None uses the identity in place of C.
      num_cases: The number of edit requests, at least 2; held-out ones of factworld.
      seed: Seed of the context templates, of factworld's records, and of texts that the model samples.

    Raises:
      ValueError: If fewer than 2 requests are asked for, or there are fewer than asked for.
    """
    if num_cases < 2:
        raise ValueError(
            f"--num_cases={num_cases}: give at least 2, because the table has intervals."
        )
    dataset = load_dataset(DatasetName.CF, model_name=model.name, limit=num_cases, seed=seed)
    records = [record for record in dataset.records if isinstance(record, CounterFactRecord)]
    if len(records) < num_cases:
        raise ValueError(
            f"--num_cases={num_cases}: {dataset.source} has {len(records)} records, give at most that many."
        )
    corpus = own_texts.self_corpus(model, seed=seed) if model.name in IN_WHEELS else factworld()
    config = ROMEConfig.for_model(model.name)
    (layer,) = config.layers
    key = jax.random.key(seed)
    templates = sample_templates(model, key, config.context_template_length_params)
    yield f"{model.name}, layer {layer}, width {model.config.mlp_width}, {len(records)} requests"
    yield "| tokens used for C | condition number | S | efficacy | paraphrase | neighborhood |"
    yield "|---|---|---|---|---|---|"
    for limit in limits:
        if limit == collect.Limit():
            limit = collect.Limit(articles=corpus.default_articles)
        moment = None if limit is None else moment_of(model, corpus, layer, limit)
        yield f"| {' | '.join(_row(model, records, config, templates, moment))} |"


def moment_of(
    model: LanguageModel, corpus: Corpus, layer: int, limit: collect.Limit
) -> SecondMoment:
    """Returns C of a layer over part of a corpus, with the rounding of a statistics file.

    Args:
      model: The model.
      corpus: The texts.
      layer: Index of the layer.
      limit: How much of the corpus to use.
    """
    with tempfile.TemporaryDirectory() as directory:
        collect.collect(model, corpus, [layer], Path(directory), limit=limit, progress=False)
        return moment_files.load(directory, model)[layer]


def _row(
    model: LanguageModel,
    records: Sequence[CounterFactRecord],
    config: ROMEConfig,
    templates: Sequence[str],
    moment: SecondMoment | None,
) -> tuple[str, ...]:
    """Returns the cells of one row; without a second moment, the identity takes its place."""
    (layer,) = config.layers
    tokens, condition = "none", "1"
    if moment is not None:
        tokens = f"{moment.count:,}"
        try:
            condition = f"{moment.condition_number():.1e}"
        except ValueError:
            return tokens, "not positive definite", "", "", "", ""
    deltas = rome.compute_deltas(
        model,
        [record.request for record in records],
        dataclasses.replace(config, mom2_adjustment=moment is not None),
        second_moments=None if moment is None else {layer: moment},
        templates=templates,
    )
    scores = counterfact.score(model, records, deltas)
    rates = (scores.efficacy, scores.paraphrase, scores.neighborhood)
    return tokens, condition, f"{scores.score:.1f}", *map(str, rates)
