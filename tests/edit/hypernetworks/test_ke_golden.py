"""KE against the numbers of a later implementation, EFK: the condition, the gradient, the update and its effect."""

import jax
import numpy as np
import pytest

from rome_jax.edit.baseline_config import KEConfig
from rome_jax.edit.delta import dense
from rome_jax.edit.hypernetworks import released
from rome_jax.edit.hypernetworks.edits import condition_tokens
from rome_jax.edit.methods import ke
from rome_jax.edit.stages.gradients import gradient_factors
from rome_jax.edit.stages.targets import target_nll
from rome_jax.models import forward
from rome_jax.models.interventions import Leaf
from tests.edit.hypernetworks.recorded import (
    LOSS,
    NUMBERS,
    assert_close,
    inputs_of,
    request_of,
    under,
)
from tests.golden_cases import read_case

CASE = read_case("efk_gpt2")
CONFIG = KEConfig((5,), (Leaf.MLP_DOWN,), lstm_width=12, condition_width=16, hidden_width=12)
(WEIGHT,) = CASE.info["inner_params"]


@pytest.fixture(scope="module")
def variables(golden_model):
    """The network, read like a published checkpoint. Its embedding is a copy of the model's."""
    model, weights = golden_model("gpt2"), under(CASE.arrays, "w.")
    tensors = {f"editor.{name}": array for name, array in weights.items()}
    tensors["editor.condition.embedding.weight"] = model.params["wte"]["embedding"]
    return released._ke(released._Finder("the file", tensors), model, CONFIG)


@pytest.mark.parametrize("edit", CASE.info["losses"])
def test_edits_equal_those_of_the_authors(edit, golden_model, variables):
    model, arrays = golden_model("gpt2"), under(CASE.arrays, f"{edit}.")
    ((prompt, target, _),) = CASE.info["texts"][edit]
    tokens = condition_tokens(model.tokenizer, [request_of(prompt, target)])
    np.testing.assert_array_equal(tokens.ids[tokens.mask], arrays["input_ids"][0])

    sizes = (model.config.vocab_size, model.config.width)
    encoder = {"params": variables["params"]["condition"]}
    condition = jax.jit(ke.Condition(CONFIG, *sizes).apply)(encoder, tokens)
    assert_close(condition, arrays["condition"], NUMBERS, "condition")

    inputs = inputs_of(CASE.arrays, edit)
    factors = gradient_factors(model.params, model.config, inputs, CONFIG.layers, CONFIG.leaves)
    delta = jax.jit(ke.KE(CONFIG, *sizes).apply)(variables, factors, tokens)[0]
    if edit == "e0":  # only this one was recorded
        found = jax.tree.map(lambda leaf: np.asarray(leaf[0, 0]), factors["MLP_DOWN"])
        assert_close(found.x.T @ found.delta, arrays[f"{WEIGHT}.grad"], NUMBERS, "gradient")
        assert_close(dense(delta.updates[0]), arrays[f"{WEIGHT}.update"], NUMBERS, "update")

    logits = forward.logits(model.params, model.config, inputs.batch, deltas=delta)
    expected = CASE.info["losses"][edit]["nll_after"]
    np.testing.assert_allclose(target_nll(logits, inputs), [expected], rtol=0, atol=LOSS)
