"""How good edits are with second moments from few and from many tokens, on an embedded model.

    python -m eval.statistics_table --model_name=factworld-gpt2

prints the table of docs/statistics.md: ROME's success on requests of factworld for each number of tokens behind C, from
none (the identity instead of C) to all of the corpus.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from eval import cli
from rome_jax.data.corpus import factworld
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.evaluation import counterfact
from rome_jax.evaluation.datasets import parse_counterfact
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, counterfact_records
from rome_jax.models.registry import SHIPPED, LanguageModel, load_model
from rome_jax.moments import collect as statistics
from rome_jax.moments import files as moment_files

_MODEL = flags.DEFINE_string("model_name", "factworld-gpt2", "factworld-gpt2 or factworld-gptj.")
_TOKENS = flags.DEFINE_list(
    "num_tokens",
    ["0", "1000", "3000", "10000", "30000", "100000", "all"],
    "Tokens behind C: numbers, 0 for the identity, or all.",
)
_CASES = flags.DEFINE_integer("num_cases", 60, "Held-out edit requests.", lower_bound=2)
_SEED = flags.DEFINE_integer("seed", 0, "Of templates and records.")


def read_limits(values: Sequence[str]) -> list[statistics.Limit | None]:
    """The limits that --num_tokens names; None for the identity.

    Raises:
      ValueError: something that is no number of tokens.
    """
    limits: list[statistics.Limit | None] = []
    for value in values:
        if value != "all" and not value.isdecimal():
            raise ValueError(f"--num_tokens has {value!r}: give numbers of tokens, or all.")
        if value == "all":
            limits.append(statistics.Limit())
        else:
            limits.append(statistics.Limit(tokens=int(value)) if int(value) else None)
    return limits


def moment_of(
    model: LanguageModel, layer: int, limit: statistics.Limit
) -> moment_files.SecondMoment:
    """C of a layer over so much of factworld's corpus, as a file would keep it."""
    with tempfile.TemporaryDirectory() as directory:
        statistics.collect(
            model, factworld(), [layer], Path(directory), limit=limit, progress=False
        )
        return moment_files.load(directory, model)[layer]


def main() -> None:
    """Prints the table."""
    limits = read_limits(_TOKENS.value)
    if _MODEL.value not in SHIPPED:
        raise ValueError(f"unknown model {_MODEL.value!r}: give one of {', '.join(SHIPPED)}.")
    model = load_model(_MODEL.value)
    records = parse_counterfact(
        counterfact_records(make_world(), _SEED.value, Role.HELD_OUT, _CASES.value)
    )
    requests = [record.request for record in records]
    config = ROMEConfig.for_model(model.name)
    (layer,) = config.layers
    key = jax.random.key(_SEED.value)
    templates = sample_templates(model, key, config.context_template_length_params)

    def row(limit: statistics.Limit | None) -> tuple[str, ...]:
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
            requests,
            dataclasses.replace(config, mom2_adjustment=moment is not None),
            second_moments={layer: moment},
            templates=templates,
        )
        scores = counterfact.score(model, records, deltas)
        rates = (scores.efficacy, scores.paraphrase, scores.neighborhood)
        return tokens, condition, f"{scores.score:.1f}", *map(str, rates)

    print(f"{model.name}, layer {layer}, width {model.config.mlp_width}, {len(requests)} requests")
    print("| tokens behind C | condition number | S | efficacy | paraphrase | neighborhood |")
    print("|---|---|---|---|---|---|")
    for limit in limits:
        print(f"| {' | '.join(row(limit))} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
