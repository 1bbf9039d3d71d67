"""Prompts in tokens: the subject's position, and refused input."""

import numpy as np
import pytest

from rome_jax.trace.prompt import TracePrompt


@pytest.fixture
def tokenizer(golden_model):
    return golden_model("gpt2").tokenizer


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("Linux is written in", "Linux"),
        ("The mother tongue of Slavoj Žižek is", "Slavoj Žižek"),
        ('"Linux" is', "Linux"),
        ("The file {x} is", "{x}"),
    ],
)
def test_the_subjects_tokens_cover_it_and_nothing_else(tokenizer, text, subject):
    prompt = TracePrompt.of(tokenizer, text, subject)
    first, stop = prompt.span
    whole = tokenizer.decode(prompt.ids[first:stop])
    assert subject in whole
    assert subject not in tokenizer.decode(prompt.ids[first + 1 : stop])
    assert subject not in tokenizer.decode(prompt.ids[first : stop - 1])
    assert len(prompt.input_tokens) == len(prompt.ids)


def test_a_subject_that_occurs_twice_needs_its_characters(tokenizer):
    text = "Linux, or GNU Linux, is"
    with pytest.raises(ValueError, match=r"occurs 2 times .*\(0, 5\), \(14, 19\)"):
        TracePrompt.of(tokenizer, text, "Linux")
    spans = [
        TracePrompt.of(tokenizer, text, "Linux", characters=c).span for c in ((0, 5), (14, 19))
    ]
    assert spans[0][1] <= spans[1][0]


def test_a_target_gets_its_space_and_its_columns(tokenizer):
    spaced, bare = (
        TracePrompt.of(tokenizer, "Linux is", "Linux", target=t)
        for t in (" the kernel", "the kernel")
    )
    assert spaced == bare
    assert tokenizer.decode(bare.target) == " the kernel"
    arrays = bare.arrays(64)
    last = len(bare.ids) - 1
    assert bare.answer_columns.tolist() == list(range(last, last + len(bare.target)))
    shown = np.asarray(arrays.ids)[np.asarray(arrays.mask)]
    assert tuple(shown) == bare.ids + bare.target[:-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Linux is", "Windows"), "subject='Windows' is not in the prompt"),
        (("Linux is", ""), "subject='' is not in the prompt"),
        (("the", "the"), "a single token"),
    ],
)
def test_malformed_prompts_are_named(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        TracePrompt.of(tokenizer, *arguments)


def test_wrong_characters_and_empty_targets_are_named(tokenizer):
    with pytest.raises(ValueError, match=r"characters=\(1, 6\).*'inux '"):
        TracePrompt.of(tokenizer, "Linux is", "Linux", characters=(1, 6))
    with pytest.raises(ValueError, match="target is empty"):
        TracePrompt.of(tokenizer, "Linux is", "Linux", target=" ")


def test_noise_for_another_subject_is_named(tokenizer):
    prompt = TracePrompt.of(tokenizer, "Linux is", "Linux")
    count = prompt.span[1] - prompt.span[0]
    with pytest.raises(ValueError, match=f"the subject 'Linux' has {count} tokens"):
        prompt.spread(np.zeros((1, count + 1, 4)), 8)
