"""The logit lens against the forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import encode, pad
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate, Site
from rome_jax.models.logit_lens import logit_lens, top_tokens
from tests.models.checkpoints import FAMILIES, tiny_model

PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 1, 4, 1, 5, 9, 2, 6]]


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request):
    """(params, config) of a small random model."""
    return tiny_model(request.param)


@pytest.mark.parametrize("left", [False, True])
def test_the_last_layer_is_the_model(tiny, left):
    params, config = tiny
    batch = pad(PROMPTS, left=left)
    lens = logit_lens(params, config, batch)
    last = jnp.array([[7], [7], [7]] if left else [[4], [0], [7]])
    want = forward.logits(params, config, batch, positions=last)[:, 0]
    assert lens.shape == (config.num_layers, 3, config.vocab_size)
    np.testing.assert_allclose(lens[-1], want, atol=1e-5)


def test_a_layer_is_the_model_cut_after_it(tiny):
    params, config = tiny
    batch = pad(PROMPTS)
    positions = jnp.array([2, 0, 5])
    lens = logit_lens(params, config, batch, positions=positions)
    cut = forward.capture(params, config, batch, (Site.RESIDUAL,), stop=2)[Site.RESIDUAL][-1]
    want = np.asarray(forward.unembed(params, config, cut))[np.arange(3), positions]
    np.testing.assert_allclose(lens[1], want, atol=1e-5)


def test_padding_changes_nothing(tiny):
    params, config = tiny
    want = logit_lens(params, config, pad(PROMPTS))
    got = logit_lens(params, config, pad(PROMPTS, left=True, multiple=13))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_deltas_act_in_their_layer_and_after_it(tiny):
    params, config = tiny
    right = np.stack([np.zeros(18), np.arange(18)])[..., None].astype(np.float32)
    left = np.ones((2, config.mlp_width, 1), np.float32)
    deltas = Delta((LowRankUpdate(Leaf.MLP_DOWN, np.array([1, 1]), left, right),))
    batch = pad(PROMPTS).replace(case=np.array([0, 1, 1]))
    changed = np.asarray(logit_lens(params, config, batch, deltas=deltas))
    changed = changed - np.asarray(logit_lens(params, config, pad(PROMPTS)))
    moved = np.abs(changed).max(-1) > 1e-3
    np.testing.assert_array_equal(moved, [[False] * 3, [False, True, True], [False, True, True]])


def test_golden_states_and_logits(golden, golden_model):
    model, numbers = golden_model("gpt2"), golden("forward_gpt2")
    mask = numbers.arrays["attention_mask"].astype(bool)
    batch = pad([row[real] for row, real in zip(numbers.arrays["input_ids"], mask, strict=True)])
    lens = logit_lens(model.params, model.config, batch)
    want = numbers.arrays["logits"][np.arange(3), mask.sum(-1) - 1]
    np.testing.assert_allclose(lens[-1], want, atol=1e-5 * np.abs(want).max())


def test_top_tokens_are_words_with_probabilities(golden_model):
    model = golden_model("gpt2")
    lens = logit_lens(model.params, model.config, encode(model.tokenizer, ["The file"]))
    table = top_tokens(lens[:, 0], model.tokenizer, k=3)
    assert len(table) == model.config.num_layers and all(len(row) == 3 for row in table)
    text, probability = table[-1][0]
    assert text == model.tokenizer.decode([int(lens[-1, 0].argmax())])
    np.testing.assert_allclose(probability, jax.nn.softmax(lens[-1, 0]).max(), rtol=1e-5)


def test_positions_of_a_wrong_shape_are_an_error(tiny):
    params, config = tiny
    with pytest.raises(ValueError, match="one column per row"):
        logit_lens(params, config, pad(PROMPTS), positions=jnp.zeros((3, 1), int))
