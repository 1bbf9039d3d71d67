"""The forward pass of training: attention bottleneck, restoration, plain rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import TokenBatch
from rome_jax.factworld.facts import make_world
from rome_jax.factworld_training.batches import TrainingBatch, batches
from rome_jax.factworld_training.bottleneck import bottleneck_masks, token_losses
from rome_jax.models import forward, transformer
from tests.factworld_training.tiny import TINY, tiny_tokenizer


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def tokenizer(world):
    return tiny_tokenizer(world)


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


def test_the_bottleneck_hides_all_of_a_subject_except_its_last_token():
    #            a  subject  b  subject c
    mention, last = [0, 1, 1, 0, 2, 0], [0, 0, 1, 0, 1, 0]
    lower, upper = bottleneck_masks(batch_of(mention, last, True))
    x = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],  # The subject sees itself.
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],  # Another subject does not.
        [1, 0, 0, 1, 0, 1],
    ]
    np.testing.assert_array_equal(lower[0], np.array(x, bool))
    x[3][2] = x[4][2] = x[5][2] = x[5][4] = 1  # The upper layers also see last tokens.
    np.testing.assert_array_equal(upper[0], np.array(x, bool))


def test_other_rows_have_the_causal_mask():
    lower, upper = bottleneck_masks(batch_of([0, 1, 1, 0], [0, 0, 1, 0], False))
    np.testing.assert_array_equal(lower[0], np.tril(np.ones((4, 4), bool)))
    np.testing.assert_array_equal(upper[0], lower[0])


@pytest.fixture(scope="module")
def losses():
    """The training forward pass of the tiny model, compiled."""
    params = transformer.init_params(TINY.model, jax.random.key(0))
    return params, jax.jit(functools.partial(token_losses, params, TINY))


def without(batch, *names):
    return dataclasses.replace(batch, **{n: np.zeros_like(getattr(batch, n)) for n in names})


def test_plain_rows_are_the_forward_pass_of_inference(world, tokenizer, losses):
    """Without bottleneck and restoration, the training forward pass equals `forward.logits`."""
    params, run = losses
    batch = without(next(batches(world, tokenizer, TINY)), "bottleneck", "restored")
    tokens = TokenBatch(batch.ids, np.ones_like(batch.ids, bool))
    log_probs = jax.nn.log_softmax(forward.logits(params, TINY.model, tokens))
    wanted = -jnp.take_along_axis(log_probs[:, :-1], batch.ids[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(run(batch), wanted, rtol=1e-5, atol=1e-5)


def test_noise_only_reaches_restored_rows(world, tokenizer, losses):
    _, run = losses
    batch = without(next(batches(world, tokenizer, TINY)), "bottleneck")
    plain = np.asarray(run(without(batch, "restored")))
    first, second = (
        np.asarray(run(dataclasses.replace(batch, seed=batch.seed + shift))) for shift in (0, 1)
    )
    changed = np.abs(first - plain).max(1) > 1e-5
    np.testing.assert_array_equal(changed, batch.restored)
    assert np.abs(first - second)[batch.restored].max() > 1e-5
    # There is no noise before the first mention.
    row = np.flatnonzero(batch.restored)[0]
    begin = (batch.mention[row] > 0).argmax()
    np.testing.assert_allclose(first[row, :begin], plain[row, :begin], atol=1e-6)


def test_restoring_subjects_of_one_token_gives_the_clean_row(world, tokenizer, losses):
    """If every mention is one token long, restoration puts the whole subject back for the upper layers."""
    _, run = losses
    batch = without(next(batches(world, tokenizer, TINY)), "bottleneck")
    mention = np.zeros_like(batch.mention)
    mention[:, -1] = 1  # No position attends to the last column.
    batch = dataclasses.replace(batch, mention=mention, mention_last=mention > 0)
    np.testing.assert_allclose(run(batch), run(without(batch, "restored")), atol=1e-5)
