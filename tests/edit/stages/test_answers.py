"""Whether targets are the answers of edited models, and the warning about those that are not."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest, EditWarning
from rome_jax.edit.stages.answers import target_answers, target_is_answer, warn_of_failures
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate

REQUEST = EditRequest("{} plays the sport of", "Gothulf Punby", "rowing")
OTHERS = [
    EditRequest(REQUEST.prompt, REQUEST.subject, target)
    for target in ("the piano and the violin", "漢字", "<|endoftext|>")
]


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model("factworld-gpt2")


def test_the_probability_is_that_of_all_tokens(model):
    is_answer, probability = target_answers(model, [REQUEST, *OTHERS])
    assert is_answer.tolist() == [True, False, False, False]
    assert probability[0] > 0.9 and probability[1:].max() < 1e-3
    assert target_is_answer(model, [REQUEST, *OTHERS]).tolist() == is_answer.tolist()


def test_a_model_that_gives_no_numbers_has_no_answer(model):
    factors = (jnp.full((1, size, 1), jnp.nan) for size in (512, 128))
    deltas = Delta((LowRankUpdate(Leaf.MLP_DOWN, jnp.zeros(1, jnp.int32), *factors),))
    first = EditRequest(REQUEST.prompt, REQUEST.subject, model.tokenizer.decode([0]).strip() or "!")
    assert target_is_answer(model, [first], deltas).tolist() == [False]


@pytest.mark.parametrize(
    ("is_answer", "match"),
    [
        ([False], r"^target_new='the piano and the violin' is not the model's answer to 'Gothulf"),
        ([True, False, False], "^2 of 3 edits failed: target_new='<|endoftext|>' is not"),
    ],
)
def test_failures_are_said_in_one_warning(is_answer, match):
    probability = np.array([1e-3, 1e-5, 1e-9])[: len(is_answer)]
    with pytest.warns(EditWarning, match=match) as caught:
        warn_of_failures(OTHERS[: len(is_answer)], np.array(is_answer), probability, stacklevel=2)
    assert len(caught) == 1 and caught[0].filename == __file__
    message = str(caught[0].message)
    assert f"(probability {probability[-1]:.2g})" in message and message.endswith(".")


def test_success_is_not_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_failures(OTHERS, np.ones(3, bool), np.ones(3))
