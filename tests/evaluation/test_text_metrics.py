import pathlib
import shutil
import subprocess
import sys

import nltk
import numpy as np
import pytest
from nltk.tokenize.punkt import PunktTokenizer

from rome_jax.evaluation import text_metrics as module
from rome_jax.evaluation.text_metrics import (
    fluency,
    ngram_entropy,
    reference_score,
    tfidf_vectorizer,
    word_tokens,
)

TABLES = pathlib.Path(module.__file__).parent / "punkt_english"
ODD = {
    "empty": "",
    "blank": " \n\t ",
    "dots": "...",
    "abbreviations": "Mr. Smith vs. the U.S. Dr. No left at 5 p.m. Sharp. It was No. 7, e.g. i.e. etc. And so on.",
    "an initial": "He met J. Smith. J. Smith met him.",
    "quotes": "\"It's 'quoted',\" she said. \"Isn't it?\" “Curly.” «Chevron.» ‘Single.’ ``Ticks.'' end",
    "ellipses": "Wait... what? He left…. Then .. he. Came back",
    "contractions": "I can't, we'll, they've; gonna, cannot, 'tis, wanna, d'ye, more'n, Lemme go.",
    "punctuation": "a--b (c) [d] {e} <f> $3.88, 3,36; 50% @x #y *z & https://a.b/c?d=e. The end.)",
    "unicode": "Ö. Müller ging. Łódź — 東京。京都!Привет. Мир? مرحبا. naïve\u00a0café\u2028line\u0006 \ufffd",
    "no spaces": "One.Two!Three?Four",
    "a collocation": "It cost 5. International prices rose. See p. 6. He agreed.",
    "repetition": ". " * 30 + "a.b.c. " * 10,
}


@pytest.fixture(scope="module")
def nltks_own(tmp_path_factory):
    """`nltk.word_tokenize`, with the tables of this package in place of its download."""
    root = tmp_path_factory.mktemp("nltk_data")
    shutil.copytree(TABLES, root / "tokenizers" / "punkt_tab" / "english")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(root)])
        patch.setattr(nltk.tokenize, "_get_punkt_tokenizer", PunktTokenizer)
        yield nltk.word_tokenize


@pytest.fixture(scope="module")
def vectorizer(golden):
    tfidf = golden("eval_tfidf")
    return tfidf_vectorizer(tfidf.arrays["idf"], tfidf.info["vocabulary"])


@pytest.fixture(scope="module")
def references(golden):
    """The golden reference texts of the new attribute, and one of another."""
    of = {s["target_id"]: s["samples"] for s in golden("eval_tfidf").info["snippets"]}
    return {target: [sample["text"] for sample in samples] for target, samples in of.items()}


def generated(golden, moment):
    return golden("eval_gpt2").info[moment]["with_snips"]


# ----- words -----


def test_words_are_those_of_the_original(golden):
    info = golden("eval_gpt2").info
    sub = info["sub_metrics_pre"]
    text = (
        "Mr. Smith wrote the tool in Python for U.S. users. It reads the file and prints each line."
    )
    assert word_tokens(text) == sub["word_tokenize_example"]
    assert word_tokens(generated(golden, "pre")["text"][0]) == sub["tokens_first_text"]


@pytest.mark.parametrize("name", ODD)
def test_words_of_unusual_texts_are_nltks(nltks_own, name):
    assert word_tokens(ODD[name]) == nltks_own(ODD[name])


def test_words_of_generated_texts_are_nltks(nltks_own, golden):
    for moment in ("pre", "post"):
        for text in generated(golden, moment)["text"]:
            assert word_tokens(text) == nltks_own(text)


def test_sentence_boundaries_count():
    # A full stop is a token of its own only at the end of a sentence, and after an abbreviation only a table can tell.
    assert word_tokens("He is in. She is out.") == "He is in . She is out .".split()
    assert word_tokens("He is in the U.S. She is out.")[-5:] == "U.S. She is out .".split()
    assert word_tokens("See Dr. Who.") == "See Dr. Who .".split()


def test_slow_packages_are_imported_on_first_use():
    code = "import sys, rome_jax.evaluation.text_metrics; assert not {'nltk', 'sklearn'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TABLES.parents[2])


# ----- n-gram entropy -----


def test_entropy_of_counted_ngrams():
    tokens = "a b a b c".split()
    # Words: a 2/5, b 2/5, c 1/5. Pairs: ab 2/4, ba 1/4, bc 1/4. Triples: aba, bab, abc.
    assert ngram_entropy(tokens, 1) == pytest.approx(
        0.8 * np.log2(2.5) + 0.2 * np.log2(5), rel=1e-15
    )
    assert ngram_entropy(tokens, 2) == 1.5
    assert ngram_entropy(tokens, 3) == pytest.approx(np.log2(3), rel=1e-15)
    assert ngram_entropy(tokens, 5) == 0  # one n-gram


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tokens", [[], ["one"], ["one", "two"]])
def test_a_text_too_short_for_an_ngram_has_no_entropy(tokens):
    assert ngram_entropy(tokens, 3) == 0


def test_an_ngram_needs_a_word():
    with pytest.raises(ValueError, match="n=0: give a number of 1 or more"):
        ngram_entropy(["a"], 0)


def test_fluency_weighs_pairs_and_triples_and_averages_texts():
    # "a b c d": 3 pairs, 2 triples; "a a a a": one of each, so 0; case counts: "a A a" has two pairs, one triple.
    four = (2 / 3 * np.log2(3) + 4 / 3 * 1) / 2
    assert fluency(["a b c d"]) == pytest.approx(four, rel=1e-15)
    assert fluency(["a b c d", "a a a a"]) == pytest.approx(four / 2, rel=1e-15)
    assert fluency(["a A a"]) == pytest.approx(1 / 3, rel=1e-15)


@pytest.mark.filterwarnings("error")
def test_fluency_of_texts_without_pairs_is_zero():
    assert fluency(["", "word"]) == 0


def test_fluency_needs_a_text():
    with pytest.raises(ValueError, match="texts is empty: give at least one"):
        fluency([])


def test_fluency_is_the_originals(golden):
    sub = golden("eval_gpt2").info["sub_metrics_pre"]
    each = [fluency([text]) for text in generated(golden, "pre")["text"]]
    np.testing.assert_allclose(each, sub["ngram_entropy_each"], rtol=1e-12)
    for text, expected in sub["ngram_entropy_example"].items():
        assert fluency([text]) == pytest.approx(expected, rel=1e-12)
    for moment in ("pre", "post"):
        record = generated(golden, moment)
        assert fluency(record["text"]) == pytest.approx(record["ngram_entropy"], rel=1e-12)


# ----- similarity to reference texts -----


def test_reference_score_is_the_originals(golden, vectorizer, references):
    for moment in ("pre", "post"):
        record = generated(golden, moment)
        score = reference_score(vectorizer, record["text"], references["Q1"])
        assert score == pytest.approx(record["reference_score"], rel=1e-12)


def test_similarity_of_two_texts_is_the_originals(golden, vectorizer, references):
    expected = golden("eval_gpt2").info["sub_metrics_pre"]["tfidf_similarity_example"]
    one, other = references["Q1"][0], references["Q1"][1]
    assert reference_score(vectorizer, [one], [other]) == pytest.approx(expected, rel=1e-12)


def test_reference_score_by_hand():
    vectorizer = tfidf_vectorizer(np.array([1.0, 2.0, 5.0]), {"red": 0, "clay": 1, "fox": 2})
    # Weights are count x idf: [2, 2, 0] and [1, 0, 5]; "a" is no term, and case does not count.
    score = reference_score(vectorizer, ["Red CLAY,", "a red"], ["red", "fox."])
    assert score == pytest.approx(2 / np.sqrt(8 * 26), rel=1e-15)
    assert reference_score(vectorizer, ["red", "fox"], ["fox red"]) == pytest.approx(1, rel=1e-15)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("texts", "references"),
    [([], ["red"]), (["red"], []), (["unknown words"], ["red"]), ([""], [""])],
    ids=["no text", "no reference", "no known word", "empty texts"],
)
def test_texts_without_known_words_score_zero(texts, references):
    vectorizer = tfidf_vectorizer(np.array([1.0]), {"red": 0})
    assert reference_score(vectorizer, texts, references) == 0


def test_weights_and_vocabulary_have_the_same_length():
    with pytest.raises(ValueError, match=r"idf has shape \(3,\), but vocabulary has 2 terms: give"):
        tfidf_vectorizer(np.ones(3), {"red": 0, "clay": 1})
