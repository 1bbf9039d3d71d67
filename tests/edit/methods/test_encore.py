"""ENCORE against the algorithm in float64 NumPy: where the optimization of z stops, and the solves of two batches.

There are no numbers of its authors' code. `tests.edit.methods.plain_spread` follows the definition and shares no step
with the library: it runs the model, optimizes z, counts right answers, and inverts matrices by itself.
"""

import dataclasses

import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.edit.config import MethodName
from rome_jax.edit.methods.encore import ENCOREConfig
from rome_jax.edit.stages.inputs import tokenize_requests
from rome_jax.edit.stages.states import optimize_states
from tests.edit.methods.plain_spread import Editor, Fact
from tests.edit.methods.test_blue_and_nas import assert_equals_the_definition

# z at the last but one of three layers.
CONFIG = ENCOREConfig((1,), v_num_grad_steps=12, loss_threshold=0.0, clamp_norm_factor=2.0)
# Words that the random model can be made to say where the prompt ends in the subject. One target has two words.
REACHABLE = (
    EditRequest("{} is in the city of", "Linux", "prom"),
    EditRequest("The mother tongue of {}", "Linux", "buffer"),
    EditRequest("The mother tongue of {}", "Linux", "writing sequence"),
    EditRequest("The home of {}", "Linux", "leg"),
    EditRequest("The mother tongue of {}", "Rome", "same"),
    EditRequest("The home of {}", "Rome", "out"),
)


@pytest.fixture(scope="module")
def plain(model, moments):
    return Editor.of(model, CONFIG, moments)


def optimized(model, templates, config):
    """The library's z [N, D] and numbers of evaluations."""
    inputs = tokenize_requests(model.tokenizer, REACHABLE, templates, config.fact_token, 64)
    z, found = optimize_states(model.params, model.config, inputs, config)
    return np.asarray(z, np.float64), found.steps.tolist()


@pytest.mark.parametrize(
    ("contexts", "expected"), [(1, [12, 6, 12, 5, 8, 5]), (3, [12, 6, 8, 7, 12, 6])]
)
def test_z_stops_at_the_fourth_right_answer(contexts, expected, model, plain, templates):
    """All tokens of the target count, in all prefixed contexts, or in the bare one if there is no other."""
    chosen = templates[:contexts]
    z, steps = optimized(model, chosen, CONFIG)
    facts = [Fact.of(model.tokenizer, request, chosen) for request in REACHABLE]
    found = [plain.model.find_z(fact, CONFIG, 1) for fact in facts]
    assert steps == [own.steps for own in found] == expected
    _, h = plain.model.bare(facts, 1)
    states = np.stack([own.z for own in found])
    errors = np.linalg.norm(z - states, axis=1) / np.linalg.norm(states - h, axis=1)
    assert errors.max() < 1e-4


@pytest.mark.parametrize("count", [0, 1])
def test_the_number_of_right_answers_is_a_setting(count, model, plain, templates):
    config = dataclasses.replace(CONFIG, argmax_evaluations=count)
    _, steps = optimized(model, templates, config)
    facts = [Fact.of(model.tokenizer, request, templates) for request in REACHABLE]
    assert steps == [plain.model.find_z(fact, config, 1).steps for fact in facts]
    assert (set(steps) == {12}) is (count == 0)


@pytest.mark.parametrize("modifiers", [(), ("RECT",)])
def test_two_batches_equal_the_definition(modifiers, model, requests, templates, moments):
    """The second solve has the keys that the first one used; with RECT, not those of what was written."""
    plain, _ = assert_equals_the_definition(
        *(MethodName.ENCORE, model, moments, templates, (REACHABLE, requests)),
        layers=(0, 1),
        v_num_grad_steps=12,
        clamp_norm_factor=2.0,
        update_norm_lambda=10.0,
        modifiers=modifiers,
    )
    assert [len(past) for past in plain.past.values()] == [9, 9]
