"""How good ROME's edits are with second moments from few and from many tokens, on an embedded model."""

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


def lines(
    model: LanguageModel, limits: Sequence[collect.Limit | None], num_cases: int, seed: int = 0
) -> Iterator[str]:
    """The table of docs/statistics.md, in Markdown: a row for each number of tokens behind C.

    Args:
      model: an embedded one.
      limits: the numbers of tokens; None for the identity in place of C.
      num_cases: held-out edit requests, two at least.
      seed: of templates and records.

    Raises:
      ValueError: fewer requests.
    """
    if num_cases < 2:
        raise ValueError(f"--num_cases={num_cases}: give at least 2, as an interval needs them.")
    records = parse_counterfact(counterfact_records(make_world(), seed, Role.HELD_OUT, num_cases))
    config = ROMEConfig.for_model(model.name)
    (layer,) = config.layers
    key = jax.random.key(seed)
    templates = sample_templates(model, key, config.context_template_length_params)
    yield f"{model.name}, layer {layer}, width {model.config.mlp_width}, {len(records)} requests"
    yield "| tokens behind C | condition number | S | efficacy | paraphrase | neighborhood |"
    yield "|---|---|---|---|---|---|"
    for limit in limits:
        yield f"| {' | '.join(_row(model, records, config, templates, limit))} |"


def moment_of(model: LanguageModel, layer: int, limit: collect.Limit) -> moment_files.SecondMoment:
    """C of a layer over so much of factworld's corpus, as a file would keep it."""
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
        second_moments={layer: moment},
        templates=templates,
    )
    scores = counterfact.score(model, records, deltas)
    rates = (scores.efficacy, scores.paraphrase, scores.neighborhood)
    return tokens, condition, f"{scores.score:.1f}", *map(str, rates)
