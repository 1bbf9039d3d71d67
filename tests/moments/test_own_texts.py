"""The corpus that a model writes itself: it can be read from any document, and says how it was made."""

import itertools

import pytest

from rome_jax.moments import files as moment_files
from rome_jax.moments import own_texts
from rome_jax.moments.collect import collect
from rome_jax.moments.key_sums import KeySums
from rome_jax.moments.limits import Limit
from rome_jax.moments.own_texts import self_corpus
from tests.moments.examples import tiny_model

OPTIONS = {"batch_tokens": 200, "sequence_length": 48, "progress": False}  # as in test_collect.py


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(own_texts, "_ROWS", 8)
        patched.setattr(own_texts, "DOCUMENT_TOKENS", 24)
        patched.setattr(own_texts, "TEMPERATURES", (0.85,))  # each takes a compiled program
        yield


@pytest.fixture(scope="module")
def model(shipped_model):
    """A random model, which compiles fast, with a tokenizer that knows words."""
    return tiny_model().replace(tokenizer=shipped_model("factworld-gpt2").tokenizer)


@pytest.fixture(scope="module")
def texts(model):
    return list(itertools.islice(self_corpus(model).read(0), 24))


def test_it_is_read_from_any_document(model, texts):
    for first in (3, 16):
        assert list(itertools.islice(self_corpus(model).read(first), 24 - first)) == texts[first:]


def test_documents_differ_and_begin_with_the_openings(model, texts):
    kinds = self_corpus(model).recipe["starts"]
    openings = {text for starts in kinds.values() for text in starts}
    assert len(set(texts)) > 16
    assert all(any(text.startswith(opening) for opening in openings) for text in texts)
    words = {texts.split(" ")[0] for texts in kinds["frequent words"]}
    assert len(words) == 256 and all(word.isalpha() for word in words)
    special = model.tokenizer.all_special_tokens
    assert not any(token in text for text in texts for token in special)
    lengths = [len(model.tokenizer(text)["input_ids"]) for text in texts]
    assert max(lengths) >= 20


def test_the_seed_decides_the_texts_and_the_recipe_is_recorded(model, texts, tmp_path):
    corpus, other = self_corpus(model), self_corpus(model, seed=1)
    assert next(other.read(0)) != texts[0]
    assert corpus.revision == self_corpus(model).revision != other.revision
    collect(model, other, [0, 2], tmp_path, limit=Limit(articles=16), command="python", **OPTIONS)
    known = moment_files.load(tmp_path, model)[0].provenance
    assert known.recipe == other.recipe and known.recipe["seed"] == 1
    assert known.recipe["temperatures"] == [0.85] and known.recipe["document_tokens"] == 24
    assert (known.corpus, known.articles, known.command) == ("self", 16, "python")


class Killed(BaseException):
    """An exception that no code catches."""


def test_a_killed_collection_ends_with_the_same_bits(model, tmp_path, monkeypatch):
    corpus = self_corpus(model)
    options = OPTIONS | {"limit": Limit(articles=24), "checkpoint_seconds": 0}
    collect(model, corpus, [0, 2], tmp_path / "whole", **options)
    add, added = KeySums.add, itertools.count()

    def killed(self, batch):
        if next(added) == 2:
            raise Killed
        add(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(KeySums, "add", killed)
        with pytest.raises(Killed):
            collect(model, corpus, [0, 2], tmp_path / "killed", **options)
    collect(model, corpus, [0, 2], tmp_path / "killed", **options)
    whole, resumed = (
        (tmp_path / name / "layer_0.safetensors").read_bytes() for name in ("whole", "killed")
    )
    assert resumed == whole
