"""Prompts and targets in tokens, for byte-level and SentencePiece-like tokenizers, with and without a begin token."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from rome_jax.data.tokenization import (
    begin_ids,
    continuation_ids,
    continuation_text,
    describe_tokenization,
    encode_prompts,
    prompt_ids,
)
from rome_jax.data.tokens import token_span

BEGIN = "<s>"
CORPUS = ["The mother tongue of Léon is French. 1984 was written in 1948; he's the author."] * 5
KINDS = [(kind, begin) for kind in ("bytes", "sentencepiece") for begin in (False, True)]


@functools.cache
def make(kind, begin):
    """A small tokenizer that can express every text."""
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:  # as in the tokenizer.json of Llama 2
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        space = decoders.Replace("▁", " ")
        tokenizer.decoder = decoders.Sequence(
            [space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else []
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", BEGIN],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if kind == "sentencepiece":
        trained = json.loads(tokenizer.to_str())["model"]
        for byte in range(256):
            trained["vocab"][f"<0x{byte:02X}>"] = len(trained["vocab"])
        merges = [tuple(merge) for merge in trained["merges"]]
        tokenizer.pre_tokenizer = None  # only training needs it: no token crosses a space
        tokenizer.model = models.BPE(
            trained["vocab"], merges, unk_token="<unk>", byte_fallback=True
        )
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, clean_up_tokenization_spaces=False
    )


words = st.text(
    st.sampled_from("abeLéñß 19'\"“.-東京か\N{COMBINING ACUTE ACCENT}🙂"), min_size=1, max_size=12
).filter(lambda text: text == text.strip())


@pytest.mark.parametrize("kind, begin", KINDS)
@settings(max_examples=60, deadline=None)
@given(subject=words, target=words)
def test_a_prompt_and_its_target_decode_to_the_whole_text(kind, begin, subject, target):
    tokenizer = make(kind, begin)
    prompt, answer = f"The mother tongue of {subject} is", f" {target}"
    (first,), (second,) = prompt_ids(tokenizer, [prompt]), continuation_ids(tokenizer, [answer])
    start = list(begin_ids(tokenizer))
    assert start == [1] * begin and first[: len(start)] == start and 1 not in second
    assert tokenizer.decode([*first, *second][len(start) :]) == prompt + answer
    assert continuation_text(tokenizer, second) == answer
    # A target begins with a space, where tokenizers split texts: both ways give the same tokens.
    assert [first + second] == prompt_ids(tokenizer, [prompt + answer])


@pytest.mark.parametrize("kind, begin", KINDS)
@settings(max_examples=60, deadline=None)
@given(subject=words, before=st.sampled_from(["", "The mother tongue of ", "“"]))
def test_offsets_find_the_subject(kind, begin, subject, before):
    tokenizer = make(kind, begin)
    text = f"{before}{subject} is"
    (encoded,) = encode_prompts(tokenizer, [text])
    assert [encoded.ids] == prompt_ids(tokenizer, [text])
    first, stop = token_span(encoded.offsets, len(before), len(before) + len(subject))
    assert begin <= first < stop
    covered = text[encoded.offsets[first][0] : encoded.offsets[stop - 1][1]]
    assert subject in covered and set(covered.replace(subject, "", 1)) <= set(before + " is")


@pytest.mark.parametrize("kind, begin", KINDS)
def test_results_say_what_was_put_before_a_text(kind, begin):
    expected = {"begin_tokens": [BEGIN]} if begin else {}
    assert describe_tokenization(make(kind, begin)) == expected


def test_a_continuation_without_a_space_gets_none():
    tokenizer = make("sentencepiece", True)
    (ids,) = continuation_ids(tokenizer, ["is"])
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "i" or tokenizer.decode(ids) == "is"
    assert continuation_text(tokenizer, ids) == "is"
