"""MEND in a model against the numbers of its authors' code: two steps of training, and one of evaluation.

The second step is one edit of two texts. The weights of the network are the same in all steps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.edit.baseline_config import MENDConfig
from rome_jax.edit.config import MethodName
from rome_jax.edit.delta import dense
from rome_jax.edit.hypernetworks import released, steps
from rome_jax.edit.hypernetworks.losses import ExampleBatch
from rome_jax.edit.hypernetworks.training_config import TrainingConfig
from rome_jax.edit.methods import mend
from rome_jax.edit.stages.gradients import GradientFactors, gradient_factors
from rome_jax.edit.stages.targets import target_nll, tokenize_request_targets
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, Leaf
from tests.edit.hypernetworks.recorded import (
    KL,
    LENGTH,
    LOSS,
    NUMBERS,
    assert_close,
    check_statistics,
    columns,
    inputs_of,
    request_of,
    under,
)
from tests.golden_cases import read_case

CASE = read_case("mend_gpt2")
STEPS = CASE.info["steps"]
ARRAYS = [under(CASE.arrays, f"s{index}.") for index in range(len(STEPS))]
CONFIG = MENDConfig((4, 5), rank=CASE.info["config"]["mend"]["rank"])
NETWORK = mend.MEND(CONFIG)
TRAINING = TrainingConfig.for_kind(MethodName.MEND)
# In the order of the authors' rates.
SHAPES = {Leaf.MLP_DOWN: (256, 64), Leaf.MLP_UP: (64, 256)}
NAMES = {Leaf.MLP_DOWN: "c_proj", Leaf.MLP_UP: "c_fc"}
# Normalization divides δ by deviations up to 700 times below its largest value, so that the rounding of the gradients
# of a whole model grows.
FROM_TEXTS = 1e-4


def weight_arrays(arrays, leaf, layer):
    """The arrays of a step at one weight."""
    return under(arrays, f"transformer.h.{layer}.mlp.{NAMES[leaf]}.weight.")


def check_all_statistics(found, arrays):
    for leaf, shape in SHAPES.items():
        check_statistics(found[leaf.name], under(arrays, f"stat.{shape}."), leaf.name)


def check_updates(deltas, weights, arrays, tolerance):
    """Compares the factors of each update of an edit of one text, and their product."""
    assert len(deltas.updates) == 4
    for update in deltas.updates:
        leaf, layer = update.leaf, int(update.layer[0])
        own, what = weight_arrays(arrays, leaf, layer), f"{leaf.name} {layer}"
        keep = columns(own["nz_mask"])
        rate = weights["rates"][CONFIG.layers.index(layer), CONFIG.leaves.index(leaf)]
        x, delta = (side.swapaxes(1, 2)[keep] for side in (update.left, update.right / rate))
        assert_close(x, own["out_x"], tolerance, f"{what}, x")
        assert_close(delta, own["out_delta"], tolerance, f"{what}, delta")
        change = rate * own["out_x"].T @ own["out_delta"]
        assert_close(dense(update)[0], change, tolerance, f"{what}, update")


def check_losses(edit, kl, total, step):
    expected = [step["l_edit"], step["l_total"]]
    np.testing.assert_allclose([edit, total], expected, rtol=0, atol=LOSS)
    np.testing.assert_allclose(kl, step["l_loc"], rtol=0, atol=KL)


@pytest.fixture(scope="module")
def variables(golden_model):
    """variables(step) -> the network before a step, read like a published checkpoint."""
    fixed = under(CASE.arrays, "w.") | {"edit_lrs": CASE.arrays["edit_lrs"]}

    @functools.cache
    def read(index):
        statistics = under(ARRAYS[max(index - 1, 0)], "stat.")
        if index == 0:
            statistics = {name: np.zeros_like(array) for name, array in statistics.items()}
        finder = released._Finder("the file", fixed | statistics)
        return released._mend(finder, golden_model("gpt2"), CONFIG)

    return read


# Edits from the recorded gradients


@pytest.mark.parametrize("index", [0, 2])
def test_edits_from_recorded_gradients_equal_those_of_the_authors(index, variables):
    factors = {}
    for leaf, sizes in SHAPES.items():
        own = GradientFactors(*(np.zeros((1, 2, LENGTH, size), np.float32) for size in sizes))
        for row, layer in enumerate(CONFIG.layers):
            found = weight_arrays(ARRAYS[index], leaf, layer)
            keep = columns(found["nz_mask"])
            own.x[:, row][keep], own.delta[:, row][keep] = found["x"], found["delta"]
        factors[leaf.name] = own
    options = {"training": STEPS[index]["training"], "mutable": ["statistics"]}
    deltas, changed = jax.jit(functools.partial(NETWORK.apply, **options))(
        variables(index), factors
    )
    check_all_statistics(changed["statistics"], ARRAYS[index])
    check_updates(deltas, variables(index)["params"], ARRAYS[index], NUMBERS)


# Steps from texts to losses and gradients


def test_texts_have_the_tokens_of_the_authors(golden_model):
    tokenizer = golden_model("gpt2").tokenizer
    for arrays, step in zip(ARRAYS, STEPS, strict=True):
        for row, (prompt, target, paraphrase) in enumerate(CASE.info["texts"][step["edit"]]):
            for part, text in (("edit_inner", prompt), ("edit_outer", paraphrase)):
                inputs = tokenize_request_targets(tokenizer, [request_of(text, target)], 1024)
                ids, mask, labels = (
                    arrays[f"{part}.{name}"][row]
                    for name in ("input_ids", "attention_mask", "labels")
                )
                scored = inputs.target_ids[inputs.target_mask]
                np.testing.assert_array_equal(scored, labels[labels >= 0])
                found = [*inputs.batch.ids[inputs.batch.mask], scored[-1]]
                np.testing.assert_array_equal(found, ids[mask > 0])


def one_edit(params, statistics, model, arrays, training):
    """(total loss, results) of an edit whose texts write one update together."""
    inner, outer, loc = (inputs_of(arrays, part) for part in ("edit_inner", "edit_outer", "loc"))
    factors = gradient_factors(model.params, model.config, inner, CONFIG.layers, CONFIG.leaves)
    count = len(inner.read)  # all texts have equally many labels, so the loss is the mean of theirs
    factors = {name: own.replace(delta=own.delta / count) for name, own in factors.items()}
    variables = {"params": params, "statistics": statistics}
    deltas, changed = NETWORK.apply(variables, factors, None, training, mutable=["statistics"])
    merged = Delta(tuple(update for row in range(count) for update in deltas[row].updates))
    run = functools.partial(forward.logits, model.params, model.config)
    edit = target_nll(run(outer.batch, deltas=merged), outer).mean()
    old, new = (jax.nn.log_softmax(run(loc.batch, deltas=delta)) for delta in (None, merged))
    kl = (jnp.exp(old) * (old - new)).sum(-1)[loc.target_mask].mean()
    return 0.1 * edit + kl, (edit, kl, deltas, factors, changed["statistics"])


@pytest.fixture(scope="module")
def results(golden_model, variables):
    """The values of `one_edit` and the gradients of its total loss: three steps, one after another."""
    params, statistics = variables(0)["params"], variables(0)["statistics"]
    found = []
    for step, arrays in zip(STEPS, ARRAYS, strict=True):
        options = {"model": golden_model("gpt2"), "arrays": arrays, "training": step["training"]}
        run = jax.value_and_grad(functools.partial(one_edit, **options), has_aux=True)
        (total, values), gradient = jax.jit(run)(params, statistics)
        statistics = values[-1]
        found.append((total, *values, gradient))
    return found


@pytest.mark.parametrize("index", range(3))
def test_steps_from_texts_equal_those_of_the_authors(index, results, variables):
    total, edit, kl, deltas, factors, statistics, _ = results[index]
    step, arrays = STEPS[index], ARRAYS[index]
    check_losses(edit, kl, total, step)
    check_all_statistics(statistics, arrays)
    for leaf, found in ((leaf, factors[leaf.name]) for leaf in SHAPES):
        for row, layer in enumerate(CONFIG.layers):
            own, what = weight_arrays(arrays, leaf, layer), f"{leaf.name} {layer}"
            keep = np.asarray(found.mask[:, row])
            np.testing.assert_array_equal(keep, columns(own["nz_mask"]))
            if "x" in own:
                assert_close(found.x[:, row][keep], own["x"], NUMBERS, f"{what}, x")
                assert_close(found.delta[:, row][keep], own["delta"], NUMBERS, f"{what}, delta")
    if index != 1:  # the factors of the second step were not recorded
        check_updates(deltas, variables(0)["params"], arrays, FROM_TEXTS)


def check_gradient(gradient, index):
    arrays = under(ARRAYS[index], "grad.")
    mean = 1 / CASE.info["config"]["accumulate_bs"]  # the authors add up as many gradients
    gradient = jax.tree.map(lambda leaf: mean * np.asarray(leaf), gradient)
    names = {str(shape): leaf.name for leaf, shape in SHAPES.items()}
    for name, norm in STEPS[index]["grad_norm"].items():
        shape, _, rest = name.partition(".mlp.layers.")
        number, _, part = rest.partition(".")
        part = part.removeprefix("mode_").removesuffix(".weight")
        found = gradient[names[shape]][f"layer_{number}"][part]
        np.testing.assert_allclose(np.linalg.norm(found), norm, rtol=FROM_TEXTS)
        if name in arrays:
            assert_close(found.T if part == "u" else found, arrays[name], FROM_TEXTS, name)
    order = [list(SHAPES).index(leaf) for leaf in CONFIG.leaves]
    expected = arrays["edit_lrs"].reshape(2, 2)[:, order]
    assert_close(gradient["rates"], expected, FROM_TEXTS, "rates")


@pytest.mark.parametrize("index", [0, 1])
def test_gradients_equal_those_of_the_authors(index, results):
    check_gradient(results[index][-1], index)


# The losses of training, which has batches of independent edits


def example_batches(index):
    """(weight, batch) of the edit with each of the two other texts, whose tokens have equal weights."""
    inner, outer, loc = (
        inputs_of(ARRAYS[index], part) for part in ("edit_inner", "edit_outer", "loc")
    )
    for row, length in enumerate(loc.target_mask.sum(-1)):
        other = jax.tree.map(lambda leaf, row=row: leaf[[row]], loc)
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), inner, outer, other)
        yield length / loc.target_mask.sum(), ExampleBatch(rows, inner.batch)


def test_the_objective_of_training_equals_that_of_the_authors(golden_model, variables):
    model, before = golden_model("gpt2"), variables(0)
    weight = jnp.float32(TRAINING.locality_weight)
    state = steps.TrainState(before, {}, weight, jnp.float32(0))

    @jax.jit
    def run(batch):
        arguments = (state, NETWORK, model.params, model.config, TRAINING, batch)
        objective = jax.value_and_grad(steps._objective, has_aux=True)
        (total, (found, after)), gradient = objective(before["params"], *arguments)
        return (found.edit, found.kl, total, gradient), after["statistics"]

    mean = jax.tree.map(np.zeros_like, (0.0, 0.0, 0.0, before["params"]))
    for share, batch in example_batches(0):
        found, statistics = run(batch)
        check_all_statistics(statistics, ARRAYS[0])
        mean = jax.tree.map(lambda a, b, share=share: a + share * b, mean, found)
    *losses, gradient = mean
    check_losses(*losses, STEPS[0])
    check_gradient(gradient, 0)


def test_the_losses_of_validation_equal_those_of_the_authors(golden_model, variables):
    model = golden_model("gpt2")
    mean = np.zeros(2)
    for share, batch in example_batches(2):
        arguments = (variables(2), model.params, model.config, batch, False)
        found, after = steps.evaluate(NETWORK, *arguments)
        mean += share * np.array([found.edit, found.kl])
        jax.tree.map(np.testing.assert_array_equal, after, variables(2))
    check_losses(*mean, mean @ [TRAINING.edit_weight, TRAINING.locality_weight], STEPS[2])
