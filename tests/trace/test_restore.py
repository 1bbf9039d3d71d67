"""Restoration of hidden states: the original's numbers, and where the facts of factworld are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import known_facts
from rome_jax.models.registry import load_model
from rome_jax.tokens import pad, token_span
from rome_jax.trace.noise import gaussian_noise, subject_embedding_std
from rome_jax.trace.restore import restore_hidden_states


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_scores_are_those_of_the_original(family, golden, golden_model):
    case, model = golden(f"trace_{family}_one_token"), golden_model(family)
    arrays = case.arrays
    ids = np.ravel(arrays["input_ids"])
    first, stop = arrays["subject_range"]
    for padding in (0, 5):  # what is behind the prompt must not matter
        length = len(ids) + padding
        noise = np.zeros((10, length, model.config.width), np.float32)
        noise[:, first:stop] = arrays["noise_unit"] * case.info["noise"]
        effects = restore_hidden_states(
            model.params,
            model.config,
            jnp.asarray(np.pad(ids, (0, padding)), jnp.int32),
            jnp.arange(length) < len(ids),
            noise,
        )
        assert int(effects.answer) == int(arrays["answer_id"])
        np.testing.assert_allclose(
            effects.restored[: len(ids)], arrays["default_scores"], atol=1e-5
        )
        assert float(effects.corrupted) == pytest.approx(
            float(arrays["default_low_score"]), abs=1e-5
        )
        assert float(effects.clean) == pytest.approx(float(arrays["default_high_score"]), abs=1e-5)


def test_noise_level_is_that_of_the_original(golden, golden_model):
    case = golden("trace_gpt2_s3")
    std = subject_embedding_std(golden_model("gpt2"), case.info["subjects"])
    assert std == pytest.approx(float(case.arrays["embedding_std"]), rel=1e-6)


def test_no_subjects_is_an_error(golden_model):
    with pytest.raises(ValueError, match="subjects is empty"):
        subject_embedding_std(golden_model("gpt2"), [])


def test_gaussian_noise_has_its_standard_deviation():
    noise = gaussian_noise(jax.random.key(0), samples=64, width=64, tokens=3, std=2.5)
    assert noise.shape == (64, 3, 64)
    assert float(noise.std()) == pytest.approx(
        2.5, rel=0.03
    )  # 12,288 draws: σ of the estimate is 0.6 %


@pytest.mark.parametrize("name", ["factworld-gpt2", "factworld-gptj"])
def test_the_planted_place_of_the_facts_is_found(name):
    """Facts lie at the subject's last token below the upper layers, by construction of the training."""
    model, world = load_model(name), make_world()
    std = subject_embedding_std(model, [entity.name for entity in world.entities])
    at_subject, at_last = [], []
    for record in known_facts(world, seed=1, count=12):
        encoded = model.tokenizer(record["prompt"], return_offsets_mapping=True)
        start = record["template"].index("{}")
        first, stop = token_span(encoded["offset_mapping"], start, start + len(record["subject"]))
        batch = pad([encoded["input_ids"]], multiple=24)
        key = jax.random.fold_in(jax.random.key(0), record["known_id"])
        noise = np.zeros((10, batch.ids.shape[1], model.config.width), np.float32)
        noise[:, first:stop] = gaussian_noise(key, 10, model.config.width, stop - first, 3 * std)
        effects = restore_hidden_states(
            model.params, model.config, batch.ids[0], batch.mask[0], noise
        )
        indirect = np.asarray(effects.restored - effects.corrupted)
        at_subject.append(indirect[stop - 1])
        at_last.append(indirect[len(encoded["input_ids"]) - 1])
    at_subject, at_last = np.mean(at_subject, 0), np.mean(at_last, 0)
    half = model.config.num_layers // 2
    assert at_subject.argmax() < half
    assert at_subject.max() > 0.4
    assert at_subject[:half].max() > at_last[:half].max() + 0.3
    assert at_last[half:].max() > at_subject[half:].max()
