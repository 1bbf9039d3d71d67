"""The quality of ROME's edits with second moments computed from few and from many tokens, on an embedded model."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from rome_jax.data.corpus import factworld
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.evaluation import counterfact
from rome_jax.evaluation.datasets import CounterFactRecord, parse_counterfact
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import collect
from rome_jax.moments import files as moment_files
from rome_jax.moments.second_moment import SecondMoment


def lines(
    model: LanguageModel, limits: Sequence[collect.Limit | None], num_cases: int, seed: int = 0
) -> Iterator[str]:
    """Yields the lines of the table in docs/statistics.md: one row for each number of tokens used for C.

    Args:
      model: An embedded model.
      limits: The numbers of tokens; None uses the identity in place of C.
      num_cases: The number of held-out edit requests, at least 2.
      seed: Seed of the context templates and the records.

    Raises:
      ValueError: If there are fewer than 2 requests.
    """
    if num_cases < 2:
        raise ValueError(
            f"--num_cases={num_cases}: give at least 2, because the table has intervals."
        )
    records = parse_counterfact(counterfact_records(make_world(), seed, Role.HELD_OUT, num_cases))
    config = ROMEConfig.for_model(model.name)
    (layer,) = config.layers
    key = jax.random.key(seed)
    templates = sample_templates(model, key, config.context_template_length_params)
    yield f"{model.name}, layer {layer}, width {model.config.mlp_width}, {len(records)} requests"
    yield "| tokens used for C | condition number | S | efficacy | paraphrase | neighborhood |"
    yield "|---|---|---|---|---|---|"
    for limit in limits:
        yield f"| {' | '.join(_row(model, records, config, templates, limit))} |"


def moment_of(model: LanguageModel, layer: int, limit: collect.Limit) -> SecondMoment:
    """Returns C of a layer over part of factworld's corpus, with the rounding of a statistics file.

    Args:
      model: An embedded model.
      layer: Index of the layer.
      limit: How much of the corpus to use.
    """
    with tempfile.TemporaryDirectory() as directory:
        collect.collect(model, factworld(), [layer], Path(directory), limit=limit, progress=False)
        return moment_files.load(directory, model)[layer]


def _row(
    model: LanguageModel,
    records: Sequence[CounterFactRecord],
    config: ROMEConfig,
    templates: Sequence[str],
    limit: collect.Limit | None,
) -> tuple[str, ...]:
    """Returns the cells of one row."""
    (layer,) = config.layers
    moment = None if limit is None else moment_of(model, layer, limit)
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
