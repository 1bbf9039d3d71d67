"""Token arrays of an edit: each column points at the token it is meant to point at."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.positions import FactToken
from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import SequenceTooLongError, bucket, pad
from rome_jax.edit.stages.inputs import (
    align,
    prefix_of,
    prefix_size,
    suffix_size,
    tokenize_requests,
)

SUBJECTS = ("The Space Needle", "Slavoj Žižek", "東京", "Rome", "{x}", "{}", "O'Hare")
TARGETS = ("Rome", "the", "English and French", "  Žižek", "F")
TEMPLATES = ("{}", "The file is open. {}", "Žižek {x}. {}", "f({}) is. {}", 'He said: "{}')


def check(tokenizer, requests, templates, strategy, inputs):
    """Decodes what every column shows."""
    num_requests, num_contexts = len(requests), len(templates)
    ids, mask = np.asarray(inputs.batch.ids), np.asarray(inputs.batch.mask)
    assert inputs.batch.case.tolist() == list(range(num_requests)) * (num_contexts + 1)
    assert inputs.targets.fact.shape == (num_contexts, num_requests)
    for row, (k, n) in enumerate(itertools.product(range(num_contexts + 1), range(num_requests))):
        request, essence = requests[n], k == num_contexts
        target = tokenizer(" " + request.target_new.lstrip())["input_ids"]
        real = inputs.targets.mask[n]
        assert inputs.targets.ids[n][real].tolist() == target
        prompt = "{} is a" if essence else request.prompt
        before, after = prompt.split("{}")
        before = ("" if essence else templates[k].removesuffix("{}")) + before
        first, end = mask[row].argmax(), mask.shape[1] - mask[row, ::-1].argmax()
        assert mask[row, first:end].all(), "tokens are contiguous"
        shown = ids[row, first:end].tolist()
        fact = inputs.fact[row]
        if essence:
            # What follows the last column that is read may be left out.
            assert (before + request.subject + after).startswith(tokenizer.decode(shown))
            assert fact == inputs.essence.fact[n] < end
            shown = tokenizer(before + request.subject + after)["input_ids"]
        else:
            shown = shown[: len(shown) - len(target) + 1]
            assert tokenizer.decode(shown) == before + request.subject + after
            columns = inputs.targets.read[k, n][real]
            # The first is the last token of the prompt. Each but the last is followed by its target token.
            assert columns.tolist() == list(range(first + len(shown) - 1, end))
            assert [ids[row, c + 1] for c in columns[:-1]] == target[:-1]
            assert fact == inputs.targets.fact[k, n]
        fact -= first
        if strategy is FactToken.SUBJECT_FIRST:
            assert tokenizer.decode(shown[:fact]) in (before, before.removesuffix(" "))
        elif strategy is FactToken.SUBJECT_LAST:
            assert tokenizer.decode(shown[: fact + 1]) == before + request.subject
        elif strategy is FactToken.SUBJECT_FIRST_AFTER_LAST:
            assert tokenizer.decode(shown[:fact]) == before + request.subject
        else:
            assert fact == len(shown) - 1


@settings(deadline=None, max_examples=30)
@given(data=st.data(), strategy=st.sampled_from(FactToken), count=st.integers(1, 4))
def test_columns_point_at_what_they_should(tokenizer, data, strategy, count):
    prompts = st.sampled_from(["{} is in", "In {a}, {} is", "The tongue of {} is the", '"{}" is'])
    requests = [
        EditRequest(
            data.draw(prompts),
            data.draw(st.sampled_from(SUBJECTS)),
            data.draw(st.sampled_from(TARGETS)),
        )
        for _ in range(count)
    ]
    templates = data.draw(st.permutations(TEMPLATES))[:2]
    inputs = tokenize_requests(tokenizer, requests, templates, strategy, 64)
    check(tokenizer, requests, templates, strategy, inputs)


def test_requests_of_different_lengths_share_the_arrays(tokenizer, requests, templates):
    inputs = tokenize_requests(tokenizer, requests, templates, FactToken.SUBJECT_LAST, 64)
    check(tokenizer, requests, templates, FactToken.SUBJECT_LAST, inputs)
    assert len(set(inputs.batch.mask.sum(1).tolist())) > 4
    assert len(set(inputs.targets.mask.sum(1).tolist())) > 1, "targets of several lengths"


def test_every_row_has_its_first_column_that_changes_in_one_place(tokenizer, requests, templates):
    inputs = tokenize_requests(tokenizer, requests, templates, FactToken.SUBJECT_LAST, 64)
    assert (np.asarray(inputs.fact) == inputs.num_prefix).all(), "targets follow the fact token"
    num_prefix, num_suffix = inputs.num_prefix, inputs.batch.ids.shape[1] - inputs.num_prefix
    assert inputs.batch.mask.sum(1).max() < num_prefix + num_suffix
    assert num_prefix % 8 == 0 and num_suffix == bucket(num_suffix)
    assert inputs.targets.read.max() < num_prefix + num_suffix


def test_sizes_come_from_the_columns():
    first = np.array([[3, 9], [0, 2]])
    assert prefix_size(first) == 16 and prefix_size(first[1:] * 0) == 8
    assert suffix_size(first, first + [[1, 4], [0, 7]]) == 8
    with pytest.raises(ValueError, match="num_prefix=8 is too small: the longest prefix has 9"):
        align(pad([[1] * 10]), np.array([9]), 8, 1)


def test_a_batch_holds_what_each_request_alone_does(tokenizer, requests, templates):
    together = tokenize_requests(tokenizer, requests, templates, FactToken.SUBJECT_LAST, 64)
    for n, request in enumerate(requests):
        alone = tokenize_requests(tokenizer, [request], templates, FactToken.SUBJECT_LAST, 64)
        for k, row in enumerate(range(n, len(together.batch.ids), len(requests))):
            tokens = together.batch.ids[row][together.batch.mask[row]].tolist()
            short = alone.batch.ids[k][alone.batch.mask[k]].tolist()
            assert tokens[: len(short)] == short
            assert k == len(templates) or tokens == short
        real, moved = alone.targets.mask[0], together.num_prefix - alone.num_prefix
        assert together.targets.mask[n].sum() == real.sum()
        np.testing.assert_array_equal(
            together.targets.read[:, n, : len(real)][:, real],
            alone.targets.read[:, 0, real] + moved,
        )


@pytest.mark.parametrize(("count", "room"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8)])
def test_target_lengths_come_in_few_sizes(tokenizer, count, room):
    letters = "abcde"[:count]  # one token each, told apart by the digits between them
    target = "".join(f"{letter}{i}" for i, letter in enumerate(letters))
    ids = tokenizer(" " + target)["input_ids"]
    request = EditRequest("{} is in", "Rome", tokenizer.decode(ids[:count]))
    assert len(tokenizer(request.target_text)["input_ids"]) == count
    inputs = tokenize_requests(tokenizer, [request], ["{}"], FactToken.LAST, 64)
    assert inputs.targets.ids.shape == (1, room)
    assert inputs.targets.read.shape == (1, 1, room)


@pytest.mark.parametrize("template", ["", "A file.", "{} is", "{}. ", "A {x}"])
def test_a_template_that_does_not_end_in_the_slot_is_named(tokenizer, requests, template):
    with pytest.raises(ValueError, match="must end in") as error:
        tokenize_requests(tokenizer, requests, ["{}", template], FactToken.SUBJECT_LAST, 64)
    assert repr(template) in str(error.value)


def test_a_slot_inside_a_prefix_is_literal():
    assert prefix_of("f({}). {}") == "f({}). "
    assert prefix_of("{}") == ""


def test_a_row_beyond_the_context_is_an_error_with_both_numbers(tokenizer, requests):
    fits = tokenize_requests(tokenizer, requests, ["{}"], FactToken.SUBJECT_LAST, 64)
    length = int(fits.batch.mask.sum(1).max())
    tokenize_requests(tokenizer, requests, ["{}"], FactToken.SUBJECT_LAST, length)
    with pytest.raises(SequenceTooLongError, match=rf"{length} tokens.*context of {length - 1}\b"):
        tokenize_requests(tokenizer, requests, ["{}"], FactToken.SUBJECT_LAST, length - 1)


def test_a_prompt_that_ends_with_its_subject_has_no_token_after_it(tokenizer):
    request = EditRequest("We went to {}", "Rome", "and")
    with pytest.raises(ValueError, match="subject_first_after_last"):
        tokenize_requests(tokenizer, [request], ["{}"], FactToken.SUBJECT_FIRST_AFTER_LAST, 64)
    inputs = tokenize_requests(tokenizer, [request], ["{}"], FactToken.SUBJECT_LAST, 64)
    assert inputs.targets.fact[0, 0] == inputs.targets.read[0, 0, 0], "the prompt's last token"
