"""What a factworld model knows, where it stores it, and how well ROME edits it: `eval.factworld_report`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax

from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.evaluation import counterfact
from rome_jax.evaluation.datasets import CounterFactRecord, parse_counterfact
from rome_jax.factworld.facts import World, make_world
from rome_jax.factworld.records import Role, counterfact_records, known_facts
from rome_jax.factworld_training.recall import recalled
from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.shipped import load_shipped
from rome_jax.trace.averages import TokenClass, average_effects
from rome_jax.trace.facts import parse_facts
from rome_jax.trace.noise import fit_noise, parse_noise
from rome_jax.trace.protocol import Protocol, Series, trace_case


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      held_out: Number of held-out edit requests, at least 2.
      tuning: Number of tuning requests per layer of the sweep; 0 skips the sweep.
      traced: Number of traced facts; 0 skips tracing.
      chunk_size: Number of requests that are optimized together, which bounds the memory.
      seed: Seed of templates, noise, and records.

    Raises:
      ValueError: If there are fewer than 2 held-out requests.
    """

    held_out: int = 300
    tuning: int = 100
    traced: int = 100
    chunk_size: int = 8
    seed: int = 0

    def __post_init__(self):
        if self.held_out < 2:
            raise ValueError(
                f"--num_cases={self.held_out} is too few for a confidence interval: give at least 2."
            )

    def records(self, world: World, role: Role, count: int) -> Sequence[CounterFactRecord]:
        """Returns the first `count` edit requests of a role."""
        return (
            parse_counterfact(counterfact_records(world, self.seed, role, count)) if count else ()
        )


def report(model: LanguageModel, sizes: Sizes) -> None:
    """Prints recall, mean indirect effects, ROME by layer on tuning requests, and ROME on held-out requests.

    Args:
      model: A factworld model.
      sizes: How much is measured.

    Raises:
      ValueError: If the model recalls none of the traced facts.
    """
    begun = time.monotonic()
    world = make_world()
    report_recall(model, world)
    if sizes.traced:
        report_tracing(model, world, sizes.traced, sizes.seed)
    report_edits(model, world, sizes)
    print(f"{time.monotonic() - begun:.0f} s")


def report_recall(model: LanguageModel, world: World) -> None:
    """Prints the share of facts × templates that greedy decoding recalls."""
    recall = recalled(model, world)
    print(f"recall: {100 * recall.mean():.2f} % of {recall.size} prompts ({recall.shape[0]} facts)")


def report_tracing(model: LanguageModel, world: World, num_facts: int, seed: int) -> None:
    """Prints the mean indirect effects of hidden states, by layer and place in the prompt.

    Args:
      model: A factworld model.
      world: Its facts.
      num_facts: Number of traced facts.
      seed: Seed of the choice of facts and of the noise.

    Raises:
      ValueError: If the model recalls none of the facts.
    """
    subjects = [entity.name for entity in world.entities]
    noise = fit_noise(model, parse_noise("s3"), subjects=subjects)
    protocol = Protocol(noise, seed=seed)
    facts = parse_facts(known_facts(world, seed, num_facts))
    cases = [
        result
        for fact in tqdm(facts, unit="prompt", desc="tracing")
        for _, result in trace_case(model, fact, protocol, [Series.HIDDEN], {})
    ]
    averages = average_effects(cases)
    print(
        f"mean indirect effect of hidden states, {averages.num_cases} of {num_facts} facts, "
        f"{protocol.samples} samples:"
    )
    layers = range(model.config.num_layers)
    print(f"  {'layer':25s}" + "".join(f"{layer:7d}" for layer in layers))
    for place, average in averages.indirect.items():
        print(f"  {place.value:25s}" + "".join(f"{value:7.3f}" for value in average.mean))
    layer, peak = averages.indirect[TokenClass.LAST_SUBJECT].peak
    print(f"  best layer of the last subject token: {layer}, {peak:.3f}")


def report_edits(model: LanguageModel, world: World, sizes: Sizes) -> None:
    """Prints ROME's scores on tuning requests for every layer, and on held-out requests with the shipped layer.

    Args:
      model: A factworld model.
      world: Its facts.
      sizes: How much is measured.
    """
    config = ROMEConfig.for_model(model.name)
    tuning = sizes.records(world, Role.TUNING, sizes.tuning)
    held_out = sizes.records(world, Role.HELD_OUT, sizes.held_out)
    moments = load_shipped(model.name)
    key = jax.random.key(sizes.seed)
    templates = sample_templates(model, key, config.context_template_length_params)

    def edit_and_score(
        config: ROMEConfig, records: Sequence[CounterFactRecord]
    ) -> counterfact.Scores:
        requests = [record.request for record in records]
        deltas = rome.compute_deltas(
            model,
            requests,
            config,
            second_moments=moments,
            templates=templates,
            chunk_size=sizes.chunk_size,
            progress=True,
        )
        return counterfact.score(model, records, deltas)

    if tuning:
        print(f"ROME by layer, {len(tuning)} tuning requests:")
        for layer in range(model.config.num_layers):
            scores = edit_and_score(dataclasses.replace(config, layers=(layer,)), tuning)
            print(f"  layer {layer}   {scores}", flush=True)
    print(f"{len(held_out)} held-out requests (mean and 95 % interval):")
    print(f"  before          {counterfact.score(model, held_out)}")
    print(f"  ROME, layer {config.layers[0]}   {edit_and_score(config, held_out)}")
