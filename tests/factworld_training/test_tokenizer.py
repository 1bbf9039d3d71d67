"""The tokenizer of the factworld models, and its files."""

import pytest
from transformers import AutoTokenizer

from rome_jax.factworld.corpus import documents
from rome_jax.factworld.facts import make_world
from rome_jax.factworld_training.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(document.text for document in documents(make_world(0), 1, 3000))


def test_any_text_is_decoded_exactly(tokenizer):
    for text in (" Grüße, 東京\t\n{x} ", "  two  spaces", "naïve café \U0001f600"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(ValueError, match=r"vocab_size=100 .*: give at least 257"):
        train_tokenizer(["a"], vocab_size=100)


def test_transformers_loads_the_same_tokenizer(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "made")
    assert sum(path.stat().st_size for path in (tmp_path / "made").iterdir()) <= 150_000
    loaded = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert loaded.is_fast and "GPT2" in type(loaded).__name__
    assert loaded.get_vocab() == tokenizer.get_vocab() and len(loaded) == 1536
    assert loaded.eos_token == loaded.bos_token == loaded.unk_token == END_OF_TEXT
    assert loaded.eos_token_id == tokenizer.eos_token_id == 0
    assert loaded.model_max_length == tokenizer.model_max_length == 256
    for text in (" a text", "a  text ", f"one{END_OF_TEXT}two é"):
        encoded, wanted = (one(text, return_offsets_mapping=True) for one in (loaded, tokenizer))
        assert encoded["input_ids"] == wanted["input_ids"]
        assert encoded["offset_mapping"] == wanted["offset_mapping"]
        assert loaded.decode(encoded["input_ids"]) == text
