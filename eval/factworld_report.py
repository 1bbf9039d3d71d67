"""What the embedded models know, where they keep it, and how well ROME edits them.

    python -m eval.factworld_report --model_name=factworld-gpt2

prints the recall of all facts on all templates, the indirect effect of hidden states at the subject's last token by
layer, ROME's success on tuning requests for every layer, and on held-out requests with the shipped configuration.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from eval import cli, counterfact
from rome_jax import covariance
from rome_jax.edit import rome
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.contexts import sample_templates
from rome_jax.factworld.facts import World, make_world
from rome_jax.factworld.recall import recalled
from rome_jax.factworld.records import Role, counterfact_records, known_facts
from rome_jax.models.registry import SHIPPED, LanguageModel, load_model
from rome_jax.request import target_text
from rome_jax.tokens import pad, token_span
from rome_jax.trace.noise import gaussian_noise, subject_embedding_std
from rome_jax.trace.restore import restore_hidden_states

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

SAMPLES = 10  # noise samples a prompt, as in the paper


def report_recall(model: LanguageModel, world: World) -> None:
    """Prints the share of facts × templates that greedy decoding recalls."""
    recall = recalled(model.params, model.config, model.tokenizer.backend_tokenizer, world)
    print(f"recall: {100 * recall.mean():.2f} % of {recall.size} prompts ({recall.shape[0]} facts)")


def indirect_effects(
    model: LanguageModel, world: World, num_facts: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Mean indirect effect by layer at the subject's last token, at the prompt's last token and at all other tokens of
    all prompts, [L] each, over the facts whose answer is right; and how many those are.

    Raises:
      ValueError: the model has none of the facts right.
    """
    std = subject_embedding_std(model, [entity.name for entity in world.entities])
    at_subject, at_last, elsewhere = [], [], []
    for record in tqdm(known_facts(world, seed, num_facts), unit="prompt", desc="tracing"):
        encoded = model.tokenizer(
            record["prompt"], add_special_tokens=False, return_offsets_mapping=True
        )
        ids = encoded["input_ids"]
        start = record["template"].index("{}")
        first, stop = token_span(encoded["offset_mapping"], start, start + len(record["subject"]))
        batch = pad([ids], context_length=model.config.context_length, multiple=8)
        key = jax.random.fold_in(jax.random.key(seed), record["known_id"])
        noise = np.zeros((SAMPLES, batch.ids.shape[1], model.config.width), np.float32)
        noise[:, first:stop] = gaussian_noise(
            key, SAMPLES, model.config.width, stop - first, 3 * std
        )
        effects = restore_hidden_states(
            model.params, model.config, batch.ids[0], batch.mask[0], noise
        )
        attribute = target_text(record["attribute"])
        wanted = model.tokenizer(attribute, add_special_tokens=False)["input_ids"]
        if int(effects.answer) != wanted[0]:
            continue
        indirect = np.asarray(effects.restored - effects.corrupted)[: len(ids)]  # [T, L]
        at_subject.append(indirect[stop - 1])
        at_last.append(indirect[-1])
        others = [t for t in range(len(ids)) if t not in (stop - 1, len(ids) - 1)]
        elsewhere.append(indirect[others])
    if not at_subject:
        raise ValueError(
            f"{model.name} has none of the {num_facts} traced facts right: trace more (--num_traced), or none "
            "(--num_traced=0)."
        )
    other = np.concatenate(elsewhere).mean(0)
    return np.mean(at_subject, 0), np.mean(at_last, 0), other, len(at_subject)


def report_tracing(model: LanguageModel, world: World, num_facts: int, seed: int) -> None:
    """Prints mean indirect effects by layer."""
    subject, last, other, count = indirect_effects(model, world, num_facts, seed)
    print(
        f"mean indirect effect of hidden states, {count} of {num_facts} facts, {SAMPLES} samples:"
    )
    print("  layer                " + "".join(f"{layer:7d}" for layer in range(len(subject))))
    for name, row in (
        ("last subject token", subject),
        ("last prompt token", last),
        ("all others", other),
    ):
        print(f"  {name:20s} " + "".join(f"{value:7.3f}" for value in row))
    print(f"  best layer of the last subject token: {subject.argmax()}, {subject.max():.3f}")


def main() -> None:
    """Prints the report."""
    begun = time.monotonic()
    if _MODEL.value not in SHIPPED:
        raise ValueError(f"unknown model {_MODEL.value!r}: give one of {', '.join(SHIPPED)}.")
    world = make_world()
    tuning = counterfact_records(world, _SEED.value, Role.TUNING, _SWEEP.value)
    held_out = counterfact_records(world, _SEED.value, Role.HELD_OUT, _CASES.value)
    model = load_model(_MODEL.value)
    moments = covariance.load_shipped(model.name)
    config = ROMEConfig.for_model(model.name)
    key = jax.random.key(_SEED.value)
    templates = sample_templates(model, key, config.context_template_length_params)

    report_recall(model, world)
    if _TRACED.value:
        report_tracing(model, world, _TRACED.value, _SEED.value)

    def edit_and_score(config: ROMEConfig, records) -> counterfact.Scores:
        requests = [counterfact.to_request(record) for record in records]
        deltas = rome.compute_deltas(
            model,
            requests,
            config,
            covariance=moments,
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
