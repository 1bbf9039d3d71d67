"""KnowledgeEditor: its update rule and recurrent network against float64 NumPy, and refused arguments."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import pad
from rome_jax.edit.baseline_config import KEConfig
from rome_jax.edit.delta import dense
from rome_jax.edit.hypernetworks.edits import condition_tokens
from rome_jax.edit.methods import ke
from rome_jax.edit.stages.gradients import gradient_factors
from rome_jax.edit.stages.targets import tokenize_targets
from rome_jax.models.interventions import Leaf
from tests.edit.networks import (
    KE_CONFIG,
    MEND_CONFIG,
    float64,
    random_factors,
    random_hypernetwork,
    random_variables,
)

SIZES = {Leaf.MLP_UP: (6, 4), Leaf.MLP_DOWN: (4, 6)}
CONFIG = KEConfig((3, 5), lstm_width=3, condition_width=4, hidden_width=5, max_scale=2.0)
VOCABULARY, WIDTH = 11, 6
TOKENS = ([5, 3, 10, 2], [7])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def last_state(params, embedded):
    """The last state of an LSTM over [T, D], with Hochreiter and Schmidhuber's cell and a forget gate."""
    width = len(params["hi"]["bias"])
    hidden, memory = np.zeros(width), np.zeros(width)
    for token in embedded:
        gates = {
            gate: token @ params[f"i{gate}"]["kernel"]
            + hidden @ params[f"h{gate}"]["kernel"]
            + params[f"h{gate}"]["bias"]
            for gate in "ifgo"
        }
        memory = sigmoid(gates["f"]) * memory + sigmoid(gates["i"]) * np.tanh(gates["g"])
        hidden = sigmoid(gates["o"]) * np.tanh(memory)
    return hidden


def condition_of(params, ids):
    """The encoding of one edit's tokens that the conditioners read."""
    embedded = params["embedding"]["embedding"][ids]
    states = [
        last_state(params["forward"], embedded),
        last_state(params["backward"], embedded[::-1]),
    ]
    return np.tanh(np.concatenate(states) @ params["linear"]["kernel"] + params["linear"]["bias"])


def outputs_of(params, seen):
    """The outputs of a conditioner with weight-normalized kernels (Salimans and Kingma, 2016, equation 2)."""
    for name in ("hidden", "out"):
        kernel, scale = params[name]["kernel"], params[f"{name}_norm"][f"{name}/kernel/scale"]
        seen = seen @ (kernel / np.linalg.norm(kernel, axis=0) * scale) + params[name]["bias"]
        seen = np.tanh(seen) if name == "hidden" else seen
    return seen


def by_hand(variables, config, factors, tokens):
    """ΔW [N, X, Y] of each weight from the dense formula, in the order of leaves and layers."""
    params = float64(variables["params"])
    changes = []
    for leaf in config.leaves:
        xs, deltas = float64((factors[leaf.name].x, factors[leaf.name].delta))
        inputs, outputs = xs.shape[-1], deltas.shape[-1]
        for row, layer in enumerate(config.layers):
            own = []
            for x, delta, ids in zip(xs[:, row], deltas[:, row], tokens, strict=True):
                seen = condition_of(params["condition"], ids)
                found = outputs_of(params[f"{leaf.name}_{layer}"], seen)
                ends = np.cumsum([outputs, inputs, outputs, inputs])
                column_a, row_a, column_b, row_b, norm = np.split(found, ends)
                mask = np.outer(softmax(row_a), column_a)
                shift = np.outer(softmax(row_b), column_b)
                own.append(config.max_scale * sigmoid(norm) * (x.T @ delta * mask + shift))
            changes.append(np.stack(own))
    return changes


def close(got, want, tolerance=1e-5):
    return np.abs(np.asarray(got) - want).max() <= tolerance * np.abs(want).max()


@functools.partial(jax.jit, static_argnums=0)
def apply(network, variables, factors, condition):
    return network.apply(variables, factors, condition)


@pytest.fixture(scope="module")
def setup():
    network = ke.KE(CONFIG, VOCABULARY, WIDTH)
    factors = random_factors(SIZES, count=2, layers=2, tokens=5)
    condition = pad(TOKENS, multiple=8)
    variables = random_variables(network, factors, condition)
    return SimpleNamespace(
        network=network,
        factors=factors,
        condition=condition,
        variables=variables,
        delta=apply(network, variables, factors, condition),
    )


def test_updates_of_rank_tokens_plus_one_equal_the_dense_formula(setup):
    want = by_hand(setup.variables, CONFIG, setup.factors, TOKENS)
    assert [(u.leaf, u.layer.tolist()) for u in setup.delta.updates] == [
        (leaf, [layer] * 2) for leaf in CONFIG.leaves for layer in CONFIG.layers
    ]
    for update, change in zip(setup.delta.updates, want, strict=True):
        assert update.left.shape[-1] == 5 + 1
        assert close(dense(update), change)


def test_padding_of_the_tokens_has_no_effect(setup):
    condition = pad(TOKENS, multiple=8)
    ids = np.where(condition.mask, condition.ids, 9)  # other ids in the padding
    other = apply(setup.network, setup.variables, setup.factors, condition.replace(ids=ids))
    jax.tree.map(np.testing.assert_array_equal, other, setup.delta)
    longer = apply(setup.network, setup.variables, setup.factors, pad(TOKENS, multiple=12))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-8), longer, setup.delta)
    # The tokens and their order have an effect.
    moved = apply(
        setup.network, setup.variables, setup.factors, pad([[3, 5, 10, 2], [7]], multiple=8)
    )
    for mine, whole in zip(moved.updates, setup.delta.updates, strict=True):
        assert not close(mine.right[0], np.asarray(whole.right[0]), 1e-3)
        assert close(mine.right[1], np.asarray(whole.right[1]), 1e-6)


def test_all_products_are_in_full_precision(setup):
    arguments = (setup.variables, setup.factors, setup.condition)
    text = str(jax.make_jaxpr(setup.network.apply)(*arguments))
    assert text.count("dot_general") == text.count("precision=(Precision.HIGHEST") > 0


# Whole edits


@pytest.fixture(scope="module")
def hypernetwork(model):
    return random_hypernetwork(KE_CONFIG, model.config)


@pytest.fixture(scope="module")
def deltas(model, requests, hypernetwork):
    return ke.compute_deltas(model, requests, KE_CONFIG, hypernetwork=hypernetwork)


def test_edits_read_prompts_with_their_whole_targets(model, requests, hypernetwork, deltas):
    texts = [r.text for r in requests], [r.target_text for r in requests]
    inputs = tokenize_targets(model.tokenizer, *texts, 64)
    shape = (KE_CONFIG.layers, KE_CONFIG.leaves)
    factors = gradient_factors(model.params, model.config, inputs, *shape)
    tokens = model.tokenizer([a + b for a, b in zip(*texts, strict=True)])["input_ids"]
    want = by_hand(hypernetwork.variables, KE_CONFIG, factors, tokens)
    for update, change in zip(deltas.updates, want, strict=True):
        assert close(dense(update), change)


def test_edits_depend_neither_on_chunks_nor_on_each_other(model, requests, hypernetwork, deltas):
    options = {"hypernetwork": hypernetwork, "chunk_size": 2}
    before = jax.tree.map(np.asarray, model.params)
    found = ke.compute_deltas(model, requests[::-1], KE_CONFIG, **options)
    for mine, whole in zip(found.updates, deltas.updates, strict=True):
        assert close(dense(mine)[::-1], np.asarray(dense(whole)))
    jax.tree.map(np.testing.assert_array_equal, model.params, before)


def test_the_tokens_of_an_edit(tokenizer):
    edits = [EditRequest("{} lives in", "Ann", "Rome"), EditRequest("{} speaks", "Eve", "the")]
    found = condition_tokens(tokenizer, edits)
    for row, text in enumerate(("Ann lives in Rome", "Eve speaks the")):
        assert found.ids[row][found.mask[row]].tolist() == tokenizer(text)["input_ids"]
    assert found.ids.shape[1] % 8 == 0
    assert condition_tokens(tokenizer, edits, 20).ids.shape == (2, 20)


# Refused arguments

EDIT = [EditRequest("{} lives in", "Ann", "Rome")]


def refused(message, model, requests=EDIT, config=KE_CONFIG, **options):
    with pytest.raises(ValueError) as found:
        ke.compute_deltas(model, requests, config, **options)
    assert str(found.value) == message


def test_no_requests_and_empty_chunks(model, hypernetwork):
    message = "requests is empty: give at least one EditRequest."
    refused(message, model, [], hypernetwork=hypernetwork)
    refused(
        "chunk_size=0: give a number of 1 or more.", model, hypernetwork=hypernetwork, chunk_size=0
    )


def test_a_network_of_the_other_method(model):
    network = random_hypernetwork(MEND_CONFIG, model.config)
    message = "the hypernetwork is for MEND: give KE a hypernetwork that was trained for it."
    refused(message, model, hypernetwork=network)


def test_a_network_of_another_shape(model, hypernetwork):
    for field, own in (("lstm_width", 5), ("condition_width", 6), ("hidden_width", 7)):
        config = dataclasses.replace(KE_CONFIG, **{field: 9})
        message = (
            f"{field}=9 differs from {own}, which the hypernetwork was trained with: use the hypernetwork's own "
            "config."
        )
        refused(message, model, config=config, hypernetwork=hypernetwork)


def test_models_without_a_network_of_their_own(model):
    refused(
        "no hypernetwork of KE comes with model 'tiny' (only with factworld-gpt2, factworld-gptj): train one with "
        "`python -m eval.train_hypernetwork --alg_name=KE --model_name=tiny`, or give a file with --hypernetwork "
        "(hypernetwork=).",
        model,
    )
