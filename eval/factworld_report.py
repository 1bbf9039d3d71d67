"""What the embedded models know, where they keep it, and how well ROME edits them.

    python -m eval.factworld_report --model_name=factworld-gpt2

prints the recall of all facts on all templates, the indirect effect of hidden states at the subject's last token by
layer, ROME's success on tuning requests for every layer, and on held-out requests with the shipped configuration.
"""

from __future__ import annotations

import dataclasses
import time

import jax
from absl import flags
from tqdm import tqdm

from eval import cli
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages.contexts import sample_templates
from rome_jax.evaluation import counterfact
from rome_jax.evaluation.datasets import parse_counterfact
from rome_jax.factworld.facts import World, make_world
from rome_jax.factworld.records import Role, counterfact_records, known_facts
from rome_jax.factworld_training.recall import recalled
from rome_jax.models.registry import SHIPPED, LanguageModel, load_model
from rome_jax.moments import files as moment_files
from rome_jax.trace.averages import TokenClass, average_effects
from rome_jax.trace.facts import parse_facts
from rome_jax.trace.noise import fit_noise, parse_noise
from rome_jax.trace.protocol import Protocol, Series, trace_case

_MODEL = flags.DEFINE_string("model_name", "factworld-gpt2", "factworld-gpt2 or factworld-gptj.")
_CASES = flags.DEFINE_integer("num_cases", 300, "Held-out edit requests.", lower_bound=2)
_SWEEP = flags.DEFINE_integer(
    "num_sweep_cases",
    100,
    "Tuning requests for each layer of the sweep; 0 skips it.",
    lower_bound=0,
)
_TRACED = flags.DEFINE_integer("num_traced", 100, "Facts traced; 0 skips it.", lower_bound=0)
_CHUNK = flags.DEFINE_integer(
    "chunk_size", 8, "Requests optimised together; bounds the memory.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of templates, noise and records.")


def report_recall(model: LanguageModel, world: World) -> None:
    """Prints the share of facts × templates that greedy decoding recalls."""
    recall = recalled(model.params, model.config, model.tokenizer.backend_tokenizer, world)
    print(f"recall: {100 * recall.mean():.2f} % of {recall.size} prompts ({recall.shape[0]} facts)")


def report_tracing(model: LanguageModel, world: World, num_facts: int, seed: int) -> None:
    """Prints mean indirect effects by layer and place in the prompt.

    Raises:
      ValueError: the model has none of the facts right.
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


def main() -> None:
    """Prints the report."""
    begun = time.monotonic()
    if _MODEL.value not in SHIPPED:
        raise ValueError(f"unknown model {_MODEL.value!r}: give one of {', '.join(SHIPPED)}.")
    world = make_world()
    tuning, held_out = (
        parse_counterfact(counterfact_records(world, _SEED.value, role, count)) if count else ()
        for role, count in ((Role.TUNING, _SWEEP.value), (Role.HELD_OUT, _CASES.value))
    )
    model = load_model(_MODEL.value)
    moments = moment_files.load_shipped(model.name)
    config = ROMEConfig.for_model(model.name)
    key = jax.random.key(_SEED.value)
    templates = sample_templates(model, key, config.context_template_length_params)

    report_recall(model, world)
    if _TRACED.value:
        report_tracing(model, world, _TRACED.value, _SEED.value)

    def edit_and_score(config: ROMEConfig, records) -> counterfact.Scores:
        requests = [record.request for record in records]
        deltas = rome.compute_deltas(
            model,
            requests,
            config,
            second_moments=moments,
            templates=templates,
            chunk_size=_CHUNK.value,
            progress=True,
        )
        return counterfact.score(model, records, deltas)

    if _SWEEP.value:
        print(f"ROME by layer, {len(tuning)} tuning requests:")
        for layer in range(model.config.num_layers):
            scores = edit_and_score(dataclasses.replace(config, layers=(layer,)), tuning)
            print(f"  layer {layer}   {scores}", flush=True)
    print(f"{len(held_out)} held-out requests (mean ± 95 % interval):")
    print(f"  before          {counterfact.score(model, held_out)}")
    print(f"  ROME, layer {config.layers[0]}   {edit_and_score(config, held_out)}")
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    cli.run(main)
