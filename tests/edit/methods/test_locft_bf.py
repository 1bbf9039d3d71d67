"""LocFT-BF: epochs over minibatches in float64 NumPy, the end-of-text token, and its configuration.

There are no numbers of the authors' code. The edited layer is the last one, so that the gradient of its kernel can be
written down; see `loss_and_gradient`.
"""

import copy
import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.methods import locft_bf
from rome_jax.edit.methods.locft_bf import LocFTConfig
from rome_jax.edit.stages.targets import tokenize_request_targets
from rome_jax.models import forward
from rome_jax.models.interventions import DenseUpdate, Leaf, Part
from tests.edit.methods import plain_gpt2

LAYER = 2
CONFIG = LocFTConfig((LAYER,), num_steps=3, batch_size=2, loss_threshold=0.0)
REQUESTS = (
    EditRequest("{} lives in", "Ann", "Rome"),
    EditRequest("{} lives in", "Bob", "city"),
    EditRequest("{} speaks", "Eve", "Rome"),
)


def tokens_of(model, request):
    """The tokens of the prompt, and those of the target with the end of the text."""
    prompt, target = model.tokenizer([request.text, request.target_text])["input_ids"]
    return prompt, [*target, model.tokenizer.eos_token_id]


class Rows(NamedTuple):
    """What does not change while the last layer's kernel is trained, at each of R positions that predict a target.

    Attributes:
      keys: [R, F] inputs of the kernel.
      rest: [R, D] final states without the product of key and kernel.
      targets: [R] tokens.
      shares: [R] weights in the loss: one over the number of requests and of the target's tokens.
      num_requests: Number of requests.
    """

    keys: np.ndarray
    rest: np.ndarray
    targets: np.ndarray
    shares: np.ndarray
    num_requests: int


def rows_of(model, params, requests):
    """Runs the prompts and targets of a minibatch."""
    parts = []
    for request in requests:
        prompt, target = tokens_of(model, request)
        states = plain_gpt2.embed(params, (prompt + target)[:-1])
        last = plain_gpt2.run_layers(params, model.config, states, range(LAYER + 1))[LAYER]
        read = slice(len(prompt) - 1, None)
        keys = last.keys[read]
        rest = last.hidden[read] - keys @ params["blocks"]["mlp"]["down"]["kernel"][LAYER]
        shares = np.full(len(target), 1 / len(target) / len(requests))
        parts.append((keys, rest, target, shares))
    return Rows(*map(np.concatenate, zip(*parts, strict=True)), len(requests))


def loss_and_gradient(params, config, rows, kernel):
    """The mean over requests of the mean loss of their tokens, and its gradient by the kernel [F, D], by hand."""
    hidden, final = rows.rest + rows.keys @ kernel, params["ln_f"]
    scores = plain_gpt2.log_softmax(params, plain_gpt2.norm(hidden, final, config))
    chosen = np.arange(len(scores)), rows.targets
    loss = -(rows.shares * scores[chosen]).sum()
    slope = np.exp(scores)
    slope[chosen] -= 1
    slope = rows.shares[:, None] * slope @ params["wte"]["embedding"] * final["scale"]
    # Through the normalization x̂ = (h − mean) / σ: (g − mean(g) − x̂ mean(g x̂)) / σ.
    deviation = np.sqrt(hidden.var(1, keepdims=True) + config.norm_epsilon)
    normed = (hidden - hidden.mean(1, keepdims=True)) / deviation
    slope = slope - slope.mean(1, keepdims=True) - normed * (slope * normed).mean(1, keepdims=True)
    return loss, rows.keys.T @ (slope / deviation)


def trained(model, requests, config):
    """ΔW and the losses of epochs over minibatches with Adam, in float64 and by hand.

    A minibatch below the threshold takes no step, and training ends after an epoch whose mean loss is below it.
    """
    params = plain_gpt2.float64(model.params)
    parts = [
        rows_of(model, params, requests[begin : begin + config.batch_size])
        for begin in range(0, len(requests), config.batch_size)
    ]
    start = kernel = params["blocks"]["mlp"]["down"]["kernel"][LAYER]
    adam, losses = plain_gpt2.Adam(config.lr), []
    for _ in range(config.num_steps):
        for part in parts:
            loss, gradient = loss_and_gradient(params, model.config, part, kernel)
            losses.append(loss)
            if loss >= config.loss_threshold:
                kernel = kernel + adam.step(gradient)
        sizes = [part.num_requests for part in parts]
        if np.average(losses[-len(parts) :], weights=sizes) < config.loss_threshold:
            break
    return kernel - start, losses


def assert_close(update, expected, tolerance=1e-4):
    assert isinstance(update, DenseUpdate)
    assert (update.leaf, update.part, int(update.layer)) == (Leaf.MLP_DOWN, Part.KERNEL, LAYER)
    error = np.linalg.norm(update.change - expected) / np.linalg.norm(expected)
    assert error < tolerance, error


def test_the_gradient_by_hand_is_the_slope_of_the_loss(model):
    params, generator = plain_gpt2.float64(model.params), np.random.default_rng(0)
    rows = rows_of(model, params, REQUESTS)
    kernel = params["blocks"]["mlp"]["down"]["kernel"][LAYER]
    _, gradient = loss_and_gradient(params, model.config, rows, kernel)
    direction = generator.standard_normal(kernel.shape)
    ahead, behind = (
        loss_and_gradient(params, model.config, rows, kernel + step * direction)[0]
        for step in (1e-5, -1e-5)
    )
    assert (gradient * direction).sum() == pytest.approx((ahead - behind) / 2e-5, rel=1e-7)


def test_a_joint_edit_equals_a_loop_by_hand(model):
    delta = locft_bf.compute_joint_delta(model, REQUESTS, CONFIG, check_answers=False)
    (update,) = delta.updates
    assert not delta.batched
    assert_close(update, trained(model, REQUESTS, CONFIG)[0])


def test_the_published_settings_equal_a_loop_by_hand(model):
    """25 epochs over 230 requests in minibatches of 100, 100, and 30, at the rate 5e-4."""
    subjects = [
        f"{first}{second}{end}" for first in "ABDEGH" for second in "aeiou" for end in "dln"
    ]
    requests = [
        EditRequest(prompt, subject, target)
        for subject in subjects
        for prompt, target in (("{} lives in", "Rome"), ("{} speaks", "English"), ("{} is", "city"))
    ][:230]
    config = LocFTConfig((LAYER,))
    delta = locft_bf.compute_joint_delta(model, requests, config, check_answers=False)
    expected, losses = trained(model, requests, config)
    assert len(losses) == 25 * 3 and min(losses) > config.loss_threshold
    assert_close(delta.updates[0], expected)


def test_training_ends_with_an_epoch_below_the_threshold(model):
    config = dataclasses.replace(CONFIG, num_steps=25, lr=3e-2, loss_threshold=5.9)
    delta = locft_bf.compute_joint_delta(model, REQUESTS, config, check_answers=False)
    expected, losses = trained(model, REQUESTS, config)
    assert 3 < len(losses) < 25 * 2
    assert min(losses[:-2]) < 5.9  # one of the minibatches had been learned before
    assert_close(delta.updates[0], expected)


def test_independent_edits_train_each_request_by_itself(model):
    result = locft_bf.compute(model, REQUESTS[:2], CONFIG, chunk_size=2, check_answers=False)
    assert result.losses.shape == (2, 3) and result.steps.tolist() == [3, 3]
    for index in range(2):
        expected, losses = trained(model, REQUESTS[index : index + 1], CONFIG)
        (update,) = result.deltas[index].updates
        assert_close(update, expected)
        np.testing.assert_allclose(result.losses[index], losses, rtol=1e-4)


def test_the_end_of_text_is_learned(model):
    """After the edit, the end of the text is likelier behind the target, which the loss asked for."""
    config = dataclasses.replace(CONFIG, num_steps=25, lr=5e-2)
    request = REQUESTS[0]
    delta = locft_bf.compute_deltas(model, [request], config, check_answers=False)[0]
    prompt, target = model.tokenizer([request.text, request.target_text])["input_ids"]
    ids = np.array([prompt + target])
    batch = TokenBatch(ids, ids > -1)
    before, after = (
        jax.nn.log_softmax(forward.logits(params, model.config, batch)[0, -1])
        for params in (model.params, apply_delta(model.params, delta))
    )
    end = model.tokenizer.eos_token_id
    assert after[end] - before[end] > 1


def test_the_tokens_of_a_target_end_with_the_given_one(model):
    end = model.tokenizer.eos_token_id
    plain = tokenize_request_targets(model.tokenizer, REQUESTS, 64)
    ended = tokenize_request_targets(model.tokenizer, REQUESTS, 64, end=end)
    for row in range(len(REQUESTS)):
        without, found = (
            inputs.target_ids[row][inputs.target_mask[row]].tolist() for inputs in (plain, ended)
        )
        assert found == [*without, end]
        read = ended.read[row][ended.target_mask[row]]
        assert ended.batch.ids[row, read[1:]].tolist() == without


def test_a_tokenizer_without_an_end_of_text_is_refused(model):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no end-of-text token.*set tokenizer\.eos_token"):
        locft_bf.compute_deltas(model.replace(tokenizer=tokenizer), REQUESTS, CONFIG)


def test_configuration():
    config = LocFTConfig((3,))
    assert (config.batch_size, config.num_steps, config.lr) == (100, 25, 5e-4)
    assert config.norm_constraint is None and config.leaves == (Leaf.MLP_DOWN,)
    assert LocFTConfig.from_dict(config.to_dict()) == config
    assert LocFTConfig.for_model("meta-llama/Meta-Llama-3-8B-Instruct").layers == (22,)
    with pytest.raises(ValueError, match="no LocFT-BF configuration is known for model 'gpt5'"):
        LocFTConfig.for_model("gpt5")
