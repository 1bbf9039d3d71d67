"""Training of the embedded models, on a model too small to learn anything but quick to run."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import TokenBatch
from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import make_world
from rome_jax.factworld_training import train as training
from rome_jax.factworld_training.batches import TrainingBatch, batches, part_of
from rome_jax.factworld_training.settings import CONFIGS, TrainConfig
from rome_jax.factworld_training.tokenizer import train_tokenizer
from rome_jax.models import forward
from rome_jax.models.config import Family, ModelConfig
from rome_jax.models.registry import load_model
from rome_jax.moments import files as moment_files

TINY = TrainConfig(
    ModelConfig(Family.GPT2, 2, 16, 2, 32, 400, 64),
    bottleneck_layer=1,
    tokens_per_step=128,
    short_length=32,
    long_every=3,
    first_steps=2,
    warmup=2,
    steps=8,
)


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def tokenizer(world):
    texts = (document.text for document in documents(world, seed=0, count=2000))
    return train_tokenizer(texts, vocab_size=TINY.model.vocab_size)


def batch_of(mention, last, bottleneck):
    mention = np.array([mention], np.int32)
    zeros = np.zeros_like(mention)
    return TrainingBatch(
        ids=zeros,
        mention=mention,
        mention_last=np.array([last], bool),
        object=zeros > 0,
        loss_mask=zeros == 0,
        bottleneck=np.array([bottleneck]),
        restored=np.array([False]),
        seed=np.array([0]),
    )


def test_bottleneck_hides_a_subject_but_for_its_last_token():
    #            a  subject  b  subject c
    mention, last = [0, 1, 1, 0, 2, 0], [0, 0, 1, 0, 1, 0]
    lower, upper = training.bottleneck_masks(batch_of(mention, last, True))
    x = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],  # the subject sees itself
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],  # another subject does not
        [1, 0, 0, 1, 0, 1],
    ]
    np.testing.assert_array_equal(lower[0], np.array(x, bool))
    x[3][2] = x[4][2] = x[5][2] = x[5][4] = 1  # last tokens alone
    np.testing.assert_array_equal(upper[0], np.array(x, bool))


def test_other_rows_have_the_causal_mask():
    lower, upper = training.bottleneck_masks(batch_of([0, 1, 1, 0], [0, 0, 1, 0], False))
    np.testing.assert_array_equal(lower[0], np.tril(np.ones((4, 4), bool)))
    np.testing.assert_array_equal(upper[0], lower[0])


@pytest.fixture(scope="module")
def losses():
    """The training forward pass of the tiny model, compiled."""
    params = forward.init_params(TINY.model, jax.random.key(0))
    return params, jax.jit(functools.partial(training.token_losses, params, TINY))


def without(batch, *names):
    return dataclasses.replace(batch, **{n: np.zeros_like(getattr(batch, n)) for n in names})


def test_plain_rows_are_the_model_as_it_is_used(world, tokenizer, losses):
    """Without bottleneck and restoration the training forward pass is `forward.logits`."""
    params, run = losses
    batch = without(next(batches(world, tokenizer, TINY)), "bottleneck", "restored")
    tokens = TokenBatch(batch.ids, np.ones_like(batch.ids, bool))
    log_probs = jax.nn.log_softmax(forward.logits(params, TINY.model, tokens))
    wanted = -jnp.take_along_axis(log_probs[:, :-1], batch.ids[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(run(batch), wanted, rtol=1e-5, atol=1e-5)


def test_only_restored_rows_feel_the_noise(world, tokenizer, losses):
    _, run = losses
    batch = without(next(batches(world, tokenizer, TINY)), "bottleneck")
    plain = np.asarray(run(without(batch, "restored")))
    first, second = (
        np.asarray(run(dataclasses.replace(batch, seed=batch.seed + shift))) for shift in (0, 1)
    )
    changed = np.abs(first - plain).max(1) > 1e-5
    np.testing.assert_array_equal(changed, batch.restored)
    assert np.abs(first - second)[batch.restored].max() > 1e-5
    # Nothing is noisy before the first mention.
    row = np.flatnonzero(batch.restored)[0]
    begin = (batch.mention[row] > 0).argmax()
    np.testing.assert_allclose(first[row, :begin], plain[row, :begin], atol=1e-6)


def test_a_restored_row_whose_subjects_are_last_tokens_alone_is_clean(world, tokenizer, losses):
    """With every mention one token long, restoration puts all of the subject back for the upper layers."""
    _, run = losses
    batch = without(next(batches(world, tokenizer, TINY)), "bottleneck")
    mention = np.zeros_like(batch.mention)
    mention[:, -1] = 1  # the last column is nobody's context
    batch = dataclasses.replace(batch, mention=mention, mention_last=mention > 0)
    np.testing.assert_allclose(run(batch), run(without(batch, "restored")), atol=1e-5)


def test_batches_are_the_same_again_and_of_both_lengths(world, tokenizer):
    first, second = (list(batches(world, tokenizer, TINY)) for _ in range(2))
    assert len(first) == TINY.steps
    assert {batch.ids.shape for batch in first} == {(4, 32), (2, 64)}
    for one, two in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_the_first_steps_know_a_part_of_the_subjects(world, tokenizer):
    part = part_of(world, 0.25, seed=0)
    assert 0.15 < len(part.facts) / len(world.facts) < 0.35
    assert set(part.facts) < set(world.facts)
    for kind in ("city_country", "company_country", "country_language"):
        assert part.facts_of(kind) == world.facts_of(kind)


def test_a_killed_run_resumes_to_the_same_model(world, tmp_path, monkeypatch):
    whole = training.train(TINY, tmp_path / "whole", checkpoint_every=3)

    steps, step = [], training.train_step

    def killed(*args):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(1)
        return step(*args)

    monkeypatch.setattr(training, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(TINY, tmp_path / "killed", checkpoint_every=3)
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(training, "train_step", step)
    with pytest.raises(ValueError, match="another configuration"):
        training.train(dataclasses.replace(TINY, warmup=1), tmp_path / "killed")
    resumed = training.train(TINY, tmp_path / "killed", checkpoint_every=3)

    assert resumed == whole
    first, second = (load_model(tmp_path / name) for name in ("whole", "killed"))
    assert first.fingerprint() == second.fingerprint()
    assert not (tmp_path / "killed.training").exists()
    moments = moment_files.load(tmp_path / "second_moments_killed", second)
    assert sorted(moments) == [0, 1]
    assert json.loads((tmp_path / "killed" / "training.json").read_text()) == resumed


def test_shipped_settings_fit_the_context():
    for config in CONFIGS.values():
        assert config.model.context_length >= 256
        for length in (config.short_length, config.model.context_length):
            assert config.tokens_per_step % length == 0
