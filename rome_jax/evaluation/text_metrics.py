"""Fluency of generated texts and their similarity to reference texts: n-gram entropy and TF-IDF similarity.

Words are split exactly as by `nltk.word_tokenize`, but without its download: the tables of its sentence splitter are in
punkt_english/. NLTK and scikit-learn take seconds to import, so they are imported on first use.
"""

from __future__ import annotations

import collections
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rome_jax.files import extras
from rome_jax.files.checked import Count, check

if TYPE_CHECKING:
    from nltk.tokenize.punkt import PunktSentenceTokenizer
    from sklearn.feature_extraction.text import TfidfVectorizer

_PUNKT = pathlib.Path(__file__).parent / "punkt_english"
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # weights of the entropies of 2-grams and 3-grams


@functools.cache
def _sentence_tokenizer() -> PunktSentenceTokenizer:
    """Loads NLTK's English sentence splitter, once, from the tables in punkt_english/."""
    from nltk.tabdata import PunktDecoder
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    # This repeats nltk's load_punkt_params, which since 3.10 refuses folders outside nltk.data.path.
    decoder, params = PunktDecoder(), PunktParameters()
    for name, file, decode in (
        ("collocations", "collocations.tab", lambda lines: set(decoder.tab2tups(lines))),
        ("sent_starters", "sent_starters.txt", decoder.txt2set),
        ("abbrev_types", "abbrev_types.txt", decoder.txt2set),
        ("ortho_context", "ortho_context.tab", decoder.tab2intdict),
    ):
        with open(_PUNKT / file, encoding="utf-8") as lines:
            setattr(params, name, decode(lines))
    return PunktSentenceTokenizer(params)


def word_tokens(text: str) -> list[str]:
    """Splits an English text into words and punctuation marks, exactly as `nltk.word_tokenize` does.

    NLTK's rules change between releases. Since 3.10.2, which this library requires, they also split at dashes inside
    words (1769–1844) and after opening single quotes, and they end sentences at closing curly quotes. The original used
    3.6.5, so its entropies differ slightly on texts with such marks.

    Args:
      text: Any text; a text without words has no tokens.

    Returns:
      The tokens in order, with their case unchanged.

    Raises:
      ValueError: If it is no text or not valid Unicode.
      OSError: If a table of punkt_english/ is missing.
      MissingPackageError: If NLTK is not installed.

    Example:
      >>> word_tokens("Mr. Smith isn't in the U.S. now. Ask him.")[:5]
      ['Mr.', 'Smith', 'is', "n't", 'in']

    References:
      Kiss and Strunk, Unsupervised Multilingual Sentence Boundary Detection, 2006.
    """
    text = check(str, text, "text")
    extras.check("nltk", "eval", "the fluency of generated texts")
    from nltk.tokenize import NLTKWordTokenizer

    words = NLTKWordTokenizer()
    sentences = _sentence_tokenizer().tokenize(text)
    return [token for sentence in sentences for token in words.tokenize(sentence)]


def ngram_entropy(tokens: Sequence[str], n: int) -> float:
    """Computes the entropy in bits of a text's n-grams, −Σ f log₂ f over their relative frequencies f.

    Args:
      tokens: The words of the text.
      n: Number of words in an n-gram, at least 1.

    Returns:
      A value from 0, for one repeated n-gram, to log₂ of the number of n-grams, if all are different. Fewer than n
      tokens give 0.

    Raises:
      ValueError: If n is below 1.

    Example:
      >>> ngram_entropy("a b a b c".split(), 2)  # a b twice, b a and b c once each
      1.5
    """
    n = min(check(Count, n, "n"), len(tokens) + 1)  # longer ones occur in no text, as these do
    counts = collections.Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
    frequencies = np.array(list(counts.values())) / max(counts.total(), 1)
    return float((frequencies * np.log2(1 / frequencies)).sum())


def fluency(texts: Sequence[str]) -> float:
    """Computes the original's `ngram_entropy` of generated texts, which is low if a model repeats itself.

    The value of a text is the mean of 2/3 H₂ and 4/3 H₃, where H₂ and H₃ are the entropies in bits of its 2-grams and
    3-grams. The result is the mean over texts. For a text that is too short for a 3-gram, H₃ is 0.

    Args:
      texts: Generated texts, at least one.

    Raises:
      ValueError: If there is no text.

    Example:
      >>> round(fluency(["one two three four five"]), 6)  # (2/3 · log₂ 4 + 4/3 · log₂ 3) / 2
      1.723308
    """
    texts = check(tuple[str, ...], texts, "texts")
    if not texts:
        raise ValueError("texts is empty: give at least one generated text.")
    entropies = [
        np.mean([weight * ngram_entropy(tokens, n) for n, weight in _WEIGHTS.items()])
        for tokens in map(word_tokens, texts)
    ]
    return float(np.mean(entropies))


def tfidf_vectorizer(idf: np.ndarray, vocabulary: Mapping[str, int]) -> TfidfVectorizer:
    """Creates scikit-learn's vectorizer with default settings and given weights.

    Args:
      idf: Float [V], the inverse document frequency of each term.
      vocabulary: The index in `idf` of each of V terms, which are in lower case.

    Raises:
      ValueError: If `idf` and the vocabulary have different lengths, or an index is missing.
      MissingPackageError: If scikit-learn is not installed.

    Example:
      >>> vectorizer = tfidf_vectorizer(np.array([1.0, 2.0]), {"red": 0, "clay": 1})
      >>> vectorizer.transform(["Clay"]).toarray().tolist()
      [[0.0, 1.0]]
    """
    extras.check("sklearn", "eval", "the consistency of generated texts")
    from sklearn.feature_extraction.text import TfidfVectorizer

    if np.shape(idf) != (len(vocabulary),):
        raise ValueError(
            f"idf has shape {np.shape(idf)}, but vocabulary has {len(vocabulary)} terms: "
            "give the two files of one data set."
        )
    vectorizer = TfidfVectorizer(vocabulary=vocabulary)
    vectorizer.idf_ = idf
    return vectorizer


def reference_score(
    vectorizer: TfidfVectorizer, texts: Sequence[str], references: Sequence[str]
) -> float:
    """Computes the original's consistency: the cosine of the TF-IDF vectors of generated and of reference texts.

    Args:
      vectorizer: As returned by `tfidf_vectorizer`; its vectors have length 1.
      texts: Generated texts, which are joined by spaces.
      references: Texts about subjects that truly have the new attribute, joined in the same way.

    Returns:
      A value from 0 to 1; 0 if either side has no term of the vocabulary.

    Example:
      >>> vectorizer = tfidf_vectorizer(np.array([3.0, 4.0]), {"red": 0, "clay": 1})
      >>> round(reference_score(vectorizer, ["Red", "clay"], ["It is red."]), 6)  # 3 / √(3² + 4²)
      0.6
    """
    ours, theirs = vectorizer.transform([" ".join(texts), " ".join(references)])
    return float(ours.multiply(theirs).sum())
