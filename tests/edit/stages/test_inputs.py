"""Token arrays of an edit: each column points at the token that it is said to point at."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.data.positions import FactToken
from rome_jax.data.request import EditRequest
from rome_jax.data.tokens import SequenceTooLongError
from rome_jax.edit.stages.inputs import prefix_of, tokenize_requests

SUBJECTS = ("The Space Needle", "Slavoj Žižek", "東京", "Rome", "{x}", "{}", "O'Hare")
TARGETS = ("Rome", "the", "English and French", "  Žižek", "F")
TEMPLATES = ("{}", "The file is open. {}", "Žižek {x}. {}", "f({}) is. {}", 'He said: "{}')


def check(tokenizer, requests, templates, strategy, inputs):
    """Decodes what every column shows."""
    num_rows = len(templates) + 1
    ids, mask = np.asarray(inputs.batch.ids), np.asarray(inputs.batch.mask)
    assert ids.shape[0] == len(requests) * num_rows
    assert inputs.lookup.shape == (len(requests), num_rows)
    assert inputs.batch.case.tolist() == [n for n in range(len(requests)) for _ in range(num_rows)]
    for n, request in enumerate(requests):
        target = tokenizer(" " + request.target_new.lstrip())["input_ids"]
        assert inputs.target_mask[n].sum() == len(target)
        assert inputs.target_ids[n][inputs.target_mask[n]].tolist() == target
        for k in range(num_rows):
            row, real = ids[n * num_rows + k], mask[n * num_rows + k]
            essence = k == len(templates)
            prompt = "{} is a" if essence else request.prompt
            prefix = "" if essence else templates[k].removesuffix("{}")
            before, after = prompt.split("{}")
            before = prefix + before
            assert real[0], "padded on the right"
            shown = row[real].tolist()
            if not essence:
                shown = shown[: len(shown) - len(target) + 1]
                columns = inputs.target_columns[n, k][inputs.target_mask[n]]
                # The first is the prompt's last token; behind each but the last stands its target token.
                assert columns.tolist() == list(range(len(shown) - 1, len(shown) - 1 + len(target)))
                assert [row[c + 1] for c in columns[:-1]] == target[:-1]
                assert real[columns].all()
            assert tokenizer.decode(shown) == before + request.subject + after
            lookup = inputs.lookup[n, k]
            if strategy is FactToken.SUBJECT_FIRST:
                assert tokenizer.decode(row[:lookup]) in (before, before.removesuffix(" "))
            elif strategy is FactToken.SUBJECT_LAST:
                assert tokenizer.decode(row[: lookup + 1]) == before + request.subject
            elif strategy is FactToken.SUBJECT_FIRST_AFTER_LAST:
                assert tokenizer.decode(row[:lookup]) == before + request.subject
            else:
                assert lookup == len(shown) - 1


@settings(deadline=None, max_examples=40)
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
    lengths = np.asarray(inputs.batch.mask).sum(1)
    assert len(set(lengths.tolist())) > 4
    assert len(set(inputs.target_mask.sum(1).tolist())) > 1, "targets of several lengths"
    assert inputs.batch.ids.shape[1] % 8 == 0


def test_a_batch_holds_what_each_request_alone_does(tokenizer, requests, templates):
    together = tokenize_requests(tokenizer, requests, templates, FactToken.SUBJECT_LAST, 64)
    for n, request in enumerate(requests):
        alone = tokenize_requests(
            tokenizer, [request], templates, FactToken.SUBJECT_LAST, 64, multiple=1
        )
        length, rows = alone.batch.ids.shape[1], slice(n * 4, n * 4 + 4)
        np.testing.assert_array_equal(together.batch.mask[rows, :length], alone.batch.mask)
        np.testing.assert_array_equal(
            together.batch.ids[rows, :length][alone.batch.mask], alone.batch.ids[alone.batch.mask]
        )
        np.testing.assert_array_equal(together.lookup[n], alone.lookup[0])
        real = alone.target_mask[0]
        np.testing.assert_array_equal(
            together.target_columns[n][:, together.target_mask[n]], alone.target_columns[0][:, real]
        )


@pytest.mark.parametrize(("count", "room"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8)])
def test_target_lengths_come_in_few_sizes(tokenizer, count, room):
    letters = "abcde"[:count]  # one token each, told apart by the digits between them
    target = "".join(f"{letter}{i}" for i, letter in enumerate(letters))
    ids = tokenizer(" " + target)["input_ids"]
    request = EditRequest("{} is in", "Rome", tokenizer.decode(ids[:count]))
    assert len(tokenizer(request.target_text)["input_ids"]) == count
    inputs = tokenize_requests(tokenizer, [request], ["{}"], FactToken.LAST, 64)
    assert inputs.target_ids.shape == (1, room)
    assert inputs.target_columns.shape == (1, 1, room)


@pytest.mark.parametrize("template", ["", "A file.", "{} is", "{}. ", "A {x}"])
def test_a_template_that_does_not_end_in_the_slot_is_named(tokenizer, requests, template):
    with pytest.raises(ValueError, match="must end in") as error:
        tokenize_requests(tokenizer, requests, ["{}", template], FactToken.SUBJECT_LAST, 64)
    assert repr(template) in str(error.value)


def test_a_slot_inside_a_prefix_is_literal():
    assert prefix_of("f({}). {}") == "f({}). "
    assert prefix_of("{}") == ""


def test_a_row_beyond_the_context_is_an_error_with_both_numbers(tokenizer, requests):
    fits = tokenize_requests(tokenizer, requests, ["{}"], FactToken.SUBJECT_LAST, 64, multiple=1)
    length = fits.batch.ids.shape[1]
    again = tokenize_requests(tokenizer, requests, ["{}"], FactToken.SUBJECT_LAST, length)
    assert again.batch.ids.shape[1] == length, "never padded beyond the context"
    with pytest.raises(SequenceTooLongError, match=rf"{length} tokens.*context of {length - 1}\b"):
        tokenize_requests(tokenizer, requests, ["{}"], FactToken.SUBJECT_LAST, length - 1)


def test_a_prompt_that_ends_with_its_subject_has_no_token_after_it(tokenizer):
    request = EditRequest("We went to {}", "Rome", "and")
    with pytest.raises(ValueError, match="subject_first_after_last"):
        tokenize_requests(tokenizer, [request], ["{}"], FactToken.SUBJECT_FIRST_AFTER_LAST, 64)
    inputs = tokenize_requests(tokenizer, [request], ["{}"], FactToken.SUBJECT_LAST, 64)
    assert inputs.lookup[0, 0] == inputs.target_columns[0, 0, 0], "both are the prompt's last token"
