"""MEND: the update rule against float64 NumPy, running statistics, initialization, whole edits, refused arguments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import SequenceTooLongError, encode
from rome_jax.edit.baseline_config import MENDConfig, RateOrder
from rome_jax.edit.delta import apply_delta, dense
from rome_jax.edit.hypernetworks import edits
from rome_jax.edit.methods import mend
from rome_jax.edit.stages.gradients import GradientFactors, gradient_factors
from rome_jax.edit.stages.targets import tokenize_targets
from rome_jax.models import forward
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
CONFIG = MENDConfig((3, 5), rank=7, lr_scale=2.0)


def by_hand(variables, config, factors):
    """ΔW [N, X, Y] of each weight in float64, in the order of leaves and layers."""
    variables = float64(variables)
    changes = []
    for column, leaf in enumerate(config.leaves):
        params = variables["params"][leaf.name]
        statistics = variables["statistics"][leaf.name]
        for row in range(len(config.layers)):
            pair = 1 - column if config.rate_order is RateOrder.REFERENCE else column
            rate = variables["params"]["rates"][row, pair] * config.lr_scale
            own = []
            for x, delta in zip(
                *float64((factors[leaf.name].x, factors[leaf.name].delta)), strict=True
            ):
                keep = (x[row] != 0).any(-1) & (delta[row] != 0).any(-1)
                parts = []
                for name, value in (("x", x[row][keep]), ("delta", delta[row][keep])):
                    known = statistics[name]
                    deviation = np.sqrt(known["squares"] / (known["count"] - 1))
                    parts.append((value - known["mean"]) / (deviation + 1e-7))
                z = np.concatenate(parts, axis=1)
                for index in range(config.num_hidden + 1):
                    layer = params[f"layer_{index}"]
                    inner = z @ layer["v"] @ layer["u"] + layer["bias"]
                    z = z + np.maximum(inner * layer["scale"][row] + layer["shift"][row], 0)
                new_x, new_delta = np.split(z, [x.shape[-1]], axis=1)
                own.append(rate * new_x.T @ new_delta)
            changes.append(np.stack(own))
    return changes


def close(got, want, tolerance=1e-5):
    return np.abs(np.asarray(got) - want).max() <= tolerance * np.abs(want).max()


def check_rule(delta, config, want):
    found = [(update.leaf, *update.layer.tolist()) for update in delta.updates]
    count = len(want[0])
    assert found == [(leaf, *[layer] * count) for leaf in config.leaves for layer in config.layers]
    for update, change in zip(delta.updates, want, strict=True):
        assert close(dense(update), change)


@pytest.fixture(scope="module")
def factors():
    return random_factors(SIZES, count=2, layers=2, tokens=5)


@pytest.fixture(scope="module")
def variables(factors):
    return random_variables(mend.MEND(CONFIG), factors)


@functools.partial(jax.jit, static_argnames=("config", "training"))
def apply(config, variables, factors, training=False):
    """(delta, statistics)."""
    network = mend.MEND(config)
    delta, changed = network.apply(variables, factors, None, training, mutable=["statistics"])
    return delta, changed["statistics"]


# The rule


def test_edits_follow_the_published_rule(factors, variables):
    delta, statistics = apply(CONFIG, variables, factors)
    check_rule(delta, CONFIG, by_hand(variables, CONFIG, factors))
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["statistics"])


@pytest.mark.parametrize(
    "changes",
    [
        {"rate_order": RateOrder.REFERENCE},
        {"leaves": (Leaf.MLP_DOWN,), "num_hidden": 0},
        {"leaves": (Leaf.MLP_DOWN, Leaf.MLP_UP), "rank": 50},  # more than the number of inputs
    ],
    ids=["reference", "one leaf, no hidden layer", "down first, full rank"],
)
def test_the_rule_holds_for_other_configurations(factors, changes):
    config = dataclasses.replace(CONFIG, **changes)
    variables = random_variables(mend.MEND(config), factors)
    delta, _ = apply(config, variables, factors)
    check_rule(delta, config, by_hand(variables, config, factors))


def test_the_reference_order_swaps_the_rates_of_a_layer(factors, variables):
    config = dataclasses.replace(CONFIG, rate_order=RateOrder.REFERENCE)
    rates = variables["params"]["rates"]
    own, exchanged = (apply(c, variables, factors)[0].updates for c in (CONFIG, config))
    for index, (mine, theirs) in enumerate(zip(own, exchanged, strict=True)):
        column, row = divmod(index, 2)
        ratio = rates[row, 1 - column] / rates[row, column]
        assert close(theirs.right, np.asarray(mine.right * ratio), 1e-6)
        assert abs(ratio - 1) > 0.1


# Running statistics


def moments(batches):
    """The statistics of all tokens of some factors, by the name of the leaf, in float64."""
    found = {}
    for leaf in SIZES:
        factors, found[leaf.name] = [batch[leaf.name] for batch in batches], {}
        for name in ("x", "delta"):
            seen = [np.asarray(getattr(own, name), np.float64)[own.mask] for own in factors]
            seen = np.concatenate(seen)
            mean = seen.mean(0)
            squares = ((seen - mean) ** 2).sum(0)
            found[leaf.name][name] = {"count": len(seen), "mean": mean, "squares": squares}
    return found


def test_statistics_cover_all_tokens_seen(factors, variables):
    batches = [random_factors(SIZES, 2, 2, 5, seed) for seed in (1, 2, 3)]
    batches[1] = {  # like a token without a gradient, a token without input does not count
        name: GradientFactors(found.x.at[1, 1, 2].set(0), found.delta)
        for name, found in batches[1].items()
    }
    statistics = jax.tree.map(jnp.zeros_like, variables["statistics"])
    for batch in batches:
        delta, statistics = apply(CONFIG, variables | {"statistics": statistics}, batch, True)
    known = moments(batches)
    for leaf in SIZES:
        for name in ("x", "delta"):
            found, expected = statistics[leaf.name][name], known[leaf.name][name]
            assert found["count"] == expected["count"] == 3 * (2 * 2 * 5 - 2) - 1
            assert close(found["mean"], expected["mean"])
            assert close(
                *(np.sqrt(one["squares"] / (one["count"] - 1)) for one in (found, expected))
            )
    # In training, a layer is counted before it is normalized, and later layers are not.
    first = {
        name: GradientFactors(found.x[:, :1], found.delta[:, :1])
        for name, found in batches[-1].items()
    }
    early, late = (
        by_hand(variables | {"statistics": moments(seen)}, CONFIG, batches[-1])
        for seen in ([*batches[:-1], first], batches)
    )
    check_rule(delta, CONFIG, [early[0], late[1], early[2], late[3]])


# Initialization


@pytest.fixture(scope="module")
def start(factors, variables):
    """Initial parameters, with the statistics of some tokens."""
    network = mend.MEND(CONFIG)
    begun = jax.jit(network.init)(jax.random.key(0), factors)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(begun["statistics"]))
    return begun | {"statistics": variables["statistics"]}


def test_the_initial_edit_is_the_normalized_gradient(factors, start):
    delta, _ = apply(CONFIG, start, factors)
    for update in delta.updates:
        found, known = factors[update.leaf.name], float64(start["statistics"][update.leaf.name])
        row = CONFIG.layers.index(int(update.layer[0]))
        parts = []
        for name in ("x", "delta"):
            value = np.asarray(getattr(found, name), np.float64)[:, row]
            deviation = np.sqrt(known[name]["squares"] / 49)
            parts.append((value - known[name]["mean"]) / (deviation + 1e-7))
        parts[0][0, -1] = 0  # no gradient at this token
        want = -1e-4 * 2.0 * np.einsum("ntx,nty->nxy", *parts)
        assert close(dense(update), want)


def test_the_first_gradient_reaches_parameters_that_start_at_zero(factors, start):
    """All inputs of relu start at 0; if its gradient there were 0, they would stay at 0 forever."""

    @jax.jit
    def gradient(params):
        def size(params):
            delta = mend.MEND(CONFIG).apply(start | {"params": params}, factors)
            return sum((dense(update) ** 2).sum() for update in delta.updates)

        return jax.grad(size)(params)

    found = gradient(start["params"])
    assert (found["rates"] != 0).all()
    for leaf in SIZES:
        for layer in found[leaf.name].values():
            for name in ("u", "bias", "shift"):
                assert (layer[name] != 0).any(), name


# Whole edits


@pytest.fixture(scope="module")
def hypernetwork(model):
    return random_hypernetwork(MEND_CONFIG, model.config)


@pytest.fixture(scope="module")
def deltas(model, requests, hypernetwork):
    return mend.compute_deltas(model, requests, MEND_CONFIG, hypernetwork=hypernetwork)


def test_edits_start_from_the_gradients_of_the_requests(model, requests, hypernetwork, deltas):
    texts = [r.text for r in requests], [r.target_text for r in requests]
    inputs = tokenize_targets(model.tokenizer, *texts, 64)
    shape = (MEND_CONFIG.layers, MEND_CONFIG.leaves)
    factors = gradient_factors(model.params, model.config, inputs, *shape)
    assert len(deltas) == 3
    check_rule(deltas, MEND_CONFIG, by_hand(hypernetwork.variables, MEND_CONFIG, factors))


def test_edits_depend_neither_on_chunks_nor_on_each_other(model, requests, hypernetwork, deltas):
    def compute(chosen):
        return mend.compute_deltas(
            model, chosen, MEND_CONFIG, hypernetwork=hypernetwork, chunk_size=2
        )

    _, second, third = requests
    for found, order in ((compute(requests), (0, 1, 2)), (compute((third, second)), (2, 1))):
        for mine, whole in zip(found.updates, deltas.updates, strict=True):
            assert close(dense(mine), np.asarray(dense(whole))[np.array(order)])


def test_factored_and_merged_edits_give_the_same_logits(model, requests, deltas):
    batch = encode(model.tokenizer, [r.text for r in requests], multiple=24)
    run = functools.partial(forward.logits, config=model.config)
    before = jax.tree.map(np.asarray, model.params)
    factored = run(model.params, batch=batch, deltas=deltas)
    plain = run(model.params, batch=batch)
    for index in range(3):
        merged = run(apply_delta(model.params, deltas[index]), batch=batch)[index]
        keep = batch.mask[index]
        assert close(factored[index][keep], np.asarray(merged[keep]))
        assert not close(plain[index][keep], np.asarray(merged[keep]), 1e-2)
    jax.tree.map(np.testing.assert_array_equal, model.params, before)


# Refused arguments

EDIT = [EditRequest("{} lives in", "Ann", "Rome")]


def refused(match, model, requests=EDIT, config=MEND_CONFIG, error=ValueError, **options):
    with pytest.raises(error) as found:
        mend.compute_deltas(model, requests, config, **options)
    assert str(found.value) == match


def test_no_requests(model, hypernetwork):
    message = "requests is empty: give at least one EditRequest."
    refused(message, model, [], hypernetwork=hypernetwork)


def test_a_chunk_size_below_one(model, hypernetwork):
    message = "chunk_size=0: give a number of 1 or more."
    refused(message, model, hypernetwork=hypernetwork, chunk_size=0)


def test_a_layer_that_the_model_does_not_have(model):
    config = dataclasses.replace(MEND_CONFIG, layers=(2, 3))
    network = random_hypernetwork(config, model.config)
    message = "layers=3 does not exist: the model has layers 0 to 2."
    refused(message, model, config=config, hypernetwork=network)


def test_a_request_longer_than_the_context(model, hypernetwork):
    request = EditRequest("{} lives in" + " the" * 70, "Ann", "Rome")
    with pytest.raises(SequenceTooLongError, match=r"with its target takes .* shorten the prompt"):
        mend.compute_deltas(model, [request], MEND_CONFIG, hypernetwork=hypernetwork)


def test_a_network_of_the_other_method(model):
    network = random_hypernetwork(KE_CONFIG, model.config)
    message = "the hypernetwork is for KE: give MEND a hypernetwork that was trained for it."
    refused(message, model, hypernetwork=network)


@pytest.mark.parametrize(
    ("field", "value", "shown", "own"),
    [
        ("layers", (0, 1), "(0, 1)", "(1, 2)"),
        ("rank", 5, "5", "4"),
        ("num_hidden", 2, "2", "1"),
        ("leaves", (Leaf.MLP_DOWN,), "(<Leaf.MLP_DOWN: ('mlp', 'down')>,)", None),
    ],
)
def test_a_network_of_another_shape(model, hypernetwork, field, value, shown, own):
    config = dataclasses.replace(MEND_CONFIG, **{field: value})
    own = own or str(getattr(MEND_CONFIG, field))
    message = (
        f"{field}={shown} differs from {own}, which the hypernetwork was trained with: use the hypernetwork's own "
        "config."
    )
    refused(message, model, config=config, hypernetwork=hypernetwork)


def test_a_network_of_a_model_of_another_size(model):
    wider = dataclasses.replace(model.config, mlp_width=44)
    message = (
        "the hypernetwork was trained for tiny, which has MLPs of another size than tiny: train one with "
        "`python -m eval.train_hypernetwork --alg_name=MEND --model_name=tiny`."
    )
    refused(message, model, hypernetwork=random_hypernetwork(MEND_CONFIG, wider))


def test_the_scale_and_order_of_the_rates_may_differ_from_the_training(hypernetwork):
    config = dataclasses.replace(MEND_CONFIG, lr_scale=3.0, rate_order=RateOrder.REFERENCE)
    edits.check_shape(config, hypernetwork)


def test_models_without_a_network_of_their_own(model):
    refused(
        "no hypernetwork of MEND comes with model 'tiny' (only with factworld-gpt2, factworld-gptj): train one with "
        "`python -m eval.train_hypernetwork --alg_name=MEND --model_name=tiny`, or give a file with --hypernetwork "
        "(hypernetwork=).",
        model,
    )
