"""Prompts with their targets, against arrays written down."""

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import SequenceTooLongError, TokenBatch
from rome_jax.edit.baseline_config import TargetScoring
from rome_jax.edit.stages.targets import (
    TargetInputs,
    mean_over_target,
    target_nll,
    tokenize_targets,
)
from rome_jax.files.checked import shown

PROMPTS = ("Linux is written in", "The Space Needle is in the city of")
TARGETS = (" English", " the")
LINUX = [43, 259, 84, 87, 292, 1363, 287]
NEEDLE = [451, 409, 839, 475, 68, 275, 270, 292, 287, 260, 263, 808, 290]
ENGLISH, THE = [559, 1656, 1356, 71], [260]


def build(tokenizer, scoring=TargetScoring.EACH_TOKEN, **options):
    return tokenize_targets(tokenizer, PROMPTS, TARGETS, 64, scoring, **options)


def check_rows(inputs, rows):
    for row, expected in enumerate(rows):
        length = len(expected)
        assert inputs.batch.ids[row, :length].tolist() == expected
        assert inputs.batch.mask[row].tolist() == [
            column < length for column in range(inputs.batch.ids.shape[1])
        ]


def test_each_token_is_read_behind_those_before_it(tokenizer):
    inputs = build(tokenizer)
    check_rows(inputs, [LINUX + ENGLISH[:-1], NEEDLE])
    assert inputs.batch.ids.shape == (2, 16) and inputs.target_ids.shape == (2, 4)
    assert inputs.read[0].tolist() == [6, 7, 8, 9]
    assert inputs.target_ids[0].tolist() == ENGLISH
    assert inputs.read[1].tolist() == [12] * 4  # within the row, also where nothing is scored
    assert inputs.target_ids[1, 0] == THE[0]
    assert inputs.target_mask.tolist() == [[True] * 4, [True, False, False, False]]


def test_reference_scoring_reads_the_prompts_last_position(tokenizer):
    inputs = build(tokenizer, TargetScoring.REFERENCE)
    check_rows(inputs, [LINUX, NEEDLE])
    assert inputs.read.tolist() == [[6] * 4, [12] * 4]
    assert inputs.target_ids[0].tolist() == ENGLISH


def test_multiples_only_add_padding(tokenizer):
    small, large = build(tokenizer), build(tokenizer, multiples=(24, 6))
    assert large.batch.ids.shape == (2, 24) and large.target_ids.shape == (2, 6)
    check_rows(large, [LINUX + ENGLISH[:-1], NEEDLE])
    np.testing.assert_array_equal(
        np.where(small.target_mask, small.read, 0),
        np.where(large.target_mask, large.read, 0)[:, :4],
    )
    logits = np.random.default_rng(0).standard_normal((2, 6, 2000)).astype(np.float32)
    np.testing.assert_array_equal(target_nll(logits, large), target_nll(logits[:, :4], small))


def test_shapes_are_few(tokenizer):
    lengths = set()
    for count in range(1, 30):
        inputs = tokenize_targets(tokenizer, ["the" + " the" * count], [" Rome"], 64)
        assert inputs.batch.ids.shape[1] >= inputs.batch.mask.sum()
        lengths.add(inputs.batch.ids.shape[1])
    assert len(lengths) <= 8


def test_rows_never_outgrow_the_context(tokenizer):
    ids = tokenizer("the" + " the" * 16)["input_ids"]
    full = len(ids) + 1  # two target tokens, of which the last is only predicted
    inputs = tokenize_targets(tokenizer, ["the" + " the" * 16], [" Rome"], full)
    assert inputs.batch.ids.shape == (1, full)
    with pytest.raises(SequenceTooLongError) as error:
        tokenize_targets(tokenizer, ["the" + " the" * 16], [" Rome"], full - 1)
    assert str(error.value) == (
        f"the prompt {shown('the' + ' the' * 16)} with its target takes {full} tokens, more than the model's context "
        f"of {full - 1}: shorten the prompt."
    )


def test_nll_is_the_mean_over_the_target():
    # Three tokens; probabilities 1/2, 1/4, 1/4 at each place.
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25]] * 3] * 3))
    mask = jnp.array([[True, True, False], [True, False, False], [False, False, False]])
    ids = jnp.array([[0, 1, 2], [2, 0, 0], [0, 0, 0]])
    batch = TokenBatch(jnp.zeros((3, 3), int), jnp.ones((3, 3), bool))
    inputs = TargetInputs(batch, jnp.zeros((3, 3), int), ids, mask)
    expected = [1.5 * np.log(2), 2 * np.log(2), 0.0]
    np.testing.assert_allclose(target_nll(logits, inputs), expected, rtol=1e-6)
    np.testing.assert_allclose(
        mean_over_target(jnp.arange(9.0).reshape(3, 3), inputs), [0.5, 3.0, 0.0]
    )


def test_leading_axes_can_be_split(tokenizer):
    inputs = build(tokenizer)
    split = inputs.reshape(1, 2)
    assert split.batch.mask.shape == (1, 2, 16) and split.read.shape == (1, 2, 4)
    np.testing.assert_array_equal(split.target_ids[0], inputs.target_ids)
