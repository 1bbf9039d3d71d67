"""LocFT-BF: epochs over minibatches against a plain loop of optax, the end-of-text token, and its configuration."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.delta import apply_delta
from rome_jax.edit.methods import locft_bf
from rome_jax.edit.methods.locft_bf import LocFTConfig
from rome_jax.edit.stages.targets import tokenize_request_targets
from rome_jax.models import forward
from rome_jax.models.interventions import DenseUpdate, Leaf, Part

LAYER = 2
CONFIG = LocFTConfig((LAYER,), num_steps=3, batch_size=2, loss_threshold=0.0)
REQUESTS = (
    EditRequest("{} lives in", "Ann", "Rome"),
    EditRequest("{} lives in", "Bob", "city"),
    EditRequest("{} speaks", "Eve", "Rome"),
)


def with_kernel(params, kernel):
    stack = params["blocks"]["mlp"]["down"]["kernel"].at[LAYER].set(kernel)
    down = params["blocks"]["mlp"]["down"] | {"kernel": stack}
    blocks = params["blocks"] | {"mlp": params["blocks"]["mlp"] | {"down": down}}
    return params | {"blocks": blocks}


def loss_of(model, requests):
    """A function of the kernel: the mean over requests of the mean loss of target tokens and the end-of-text token."""
    rows = []
    for request in requests:
        prompt, target = model.tokenizer([request.text, request.target_text])["input_ids"]
        rows.append((prompt, [*target, model.tokenizer.eos_token_id]))
    length = max(len(prompt) + len(target) for prompt, target in rows)
    ids, scored = np.zeros((2, len(rows), length), int)
    for index, (prompt, target) in enumerate(rows):
        ids[index, : len(prompt) + len(target)] = prompt + target
        scored[index, len(prompt) : len(prompt) + len(target)] = 1
    batch = TokenBatch(ids, ids > -1)  # the padding is at the end, where no token sees it

    def loss(kernel):
        logits = forward.logits(with_kernel(model.params, kernel), model.config, batch)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], 2)[..., 0]
        return ((nll * scored[:, 1:]).sum(1) / scored[:, 1:].sum(1)).mean()

    return jax.jit(jax.value_and_grad(loss))


def trained(model, requests, config):
    """ΔW and the losses of a plain loop over epochs and minibatches."""
    parts = [
        loss_of(model, requests[begin : begin + config.batch_size])
        for begin in range(0, len(requests), config.batch_size)
    ]
    start = kernel = model.params["blocks"]["mlp"]["down"]["kernel"][LAYER]
    adam = optax.adam(config.lr)
    state, losses = adam.init(kernel), []
    for _ in range(config.num_steps):
        for part in parts:
            loss, gradient = part(kernel)
            update, state = adam.update(gradient, state)
            kernel = optax.apply_updates(kernel, update)
            losses.append(float(loss))
    return np.asarray(kernel - start), losses


def assert_close(update, expected, tolerance=1e-3):
    assert isinstance(update, DenseUpdate)
    assert (update.leaf, update.part, int(update.layer)) == (Leaf.MLP_DOWN, Part.KERNEL, LAYER)
    error = np.linalg.norm(update.change - expected) / np.linalg.norm(expected)
    assert error < tolerance, error


def test_a_joint_edit_equals_a_plain_loop(model):
    delta = locft_bf.compute_joint_delta(model, REQUESTS, CONFIG, check_answers=False)
    (update,) = delta.updates
    assert not delta.batched
    assert_close(update, trained(model, REQUESTS, CONFIG)[0])


def test_independent_edits_train_each_request_by_itself(model):
    result = locft_bf.compute(model, REQUESTS[:2], CONFIG, chunk_size=2, check_answers=False)
    assert result.losses.shape == (2, 3) and result.steps.tolist() == [3, 3]
    for index in range(2):
        expected, losses = trained(model, REQUESTS[index : index + 1], CONFIG)
        (update,) = result.deltas[index].updates
        assert_close(update, expected)
        np.testing.assert_allclose(result.losses[index], losses, rtol=1e-3)


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
