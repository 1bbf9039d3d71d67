"""What `eval.causal_trace` is asked to do: series, facts, noise and settings, from flags or by default."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rome_jax.data import published
from rome_jax.data.corpus import Corpus, open_corpus
from rome_jax.data.published import PUBLISHED
from rome_jax.data.request import SLOT, fill
from rome_jax.models.registry import SHIPPED, LanguageModel
from rome_jax.models.runs import describe_model, short_name
from rome_jax.trace.facts import FACTWORLD, KnownFact, KnownFacts, open_facts
from rome_jax.trace.noise import Noise, fit_noise, parse_noise
from rome_jax.trace.protocol import Protocol, Series
from rome_jax.trace.restore import TraceKind

_NOISE_TEXTS = 1000  # articles, as in the original


def check_flags(given: Collection[str]) -> None:
    """Refuses flags that make no sense together.

    Raises:
      ValueError: naming them.

    Example:
      >>> check_flags({"prompt", "subject"})
    """
    of_prompt = [name for name in ("subject", "target", "contrast") if name in given]
    if "prompt" not in given and of_prompt:
        raise ValueError(f"--{of_prompt[0]} belongs to one prompt: give --prompt too.")
    if "prompt" in given and "subject" not in given:
        raise ValueError("--prompt needs --subject: the words of it that are corrupted.")
    of_run = [name for name in ("num_cases", "severed", "case_figures") if name in given]
    if "prompt" in given and of_run:
        raise ValueError(f"--{of_run[0]} is for many prompts: leave it out, or --prompt.")
    everywhere = [name for name in ("severed", "tokens") if name in given]
    if "screen" in given and everywhere:
        raise ValueError(
            f"--screen chooses among all hidden states, MLPs and attentions: leave --{everywhere[0]} out."
        )
    if "contrast" in given and "measure" in given:
        raise ValueError("--contrast compares log-probabilities: leave --measure out.")


def read_series(kinds: Sequence[str], severed: bool) -> list[Series]:
    """What --kinds and --severed ask for.

    Raises:
      ValueError: a kind that there is not, none at all, or severed ones without the hidden states to compare with.

    Example:
      >>> [series.value for series in read_series(["attn", "hidden"], severed=False)]
      ['hidden', 'attn']
    """
    valid = [kind.value for kind in TraceKind]
    kinds = [kind.strip().lower() for kind in kinds]
    for kind in kinds or [""]:
        if kind not in valid:
            raise ValueError(
                f"--kinds={','.join(kinds)}: {kind!r} is no kind; give some of {', '.join(valid)}."
            )
    if severed and TraceKind.HIDDEN not in kinds:
        raise ValueError("--severed is compared with hidden states: add hidden to --kinds.")
    return [one for one in Series if one in kinds or (severed and one.severed)]


def read_facts(name: str | None, model_name: str) -> KnownFacts | None:
    """The facts of --fact_file; by default factworld's own for an embedded model, None for another.

    Raises:
      FactsError: they cannot be read.
      DownloadError: the published ones cannot be fetched.
    """
    if name is None and model_name not in SHIPPED:
        return None
    if name == PUBLISHED:
        name = published.fetch(published.KNOWN_FACTS)
    return open_facts(name or FACTWORLD)


def read_prompt(text: str, subject: str) -> KnownFact:
    """--prompt, with the subject in it or `{}` in its place.

    Example:
      >>> read_prompt("{} is in", "Rome").prompt
      'Rome is in'
    """
    if subject not in text and text.count(SLOT) == 1:
        return KnownFact(0, subject, "", fill(text, subject), text)
    return KnownFact(0, subject, "", text)


def read_noise(
    model: LanguageModel, text: str, subjects: Sequence[str], corpus_name: str | None
) -> tuple[Noise, Corpus | None]:
    """The noise of --noise_level, fitted to a model, and the corpus that it was fitted on, if it needs one.

    Args:
      model: whose embeddings are measured.
      text: of the flag.
      subjects: for a relative level.
      corpus_name: for a level that is fitted to text; by default factworld for an embedded model, else wikipedia.

    Raises:
      ValueError: an unknown level, or a corpus that cannot be read.
    """
    level = parse_noise(text)
    if not level.needs_texts:
        return fit_noise(model, level, subjects=subjects), None
    corpus = open_corpus(corpus_name or (FACTWORLD if model.name in SHIPPED else "wikipedia"))
    return fit_noise(model, level, texts=itertools.islice(corpus.read(0), _NOISE_TEXTS)), corpus


def describe(
    model: LanguageModel, protocol: Protocol, noise_level: str, corpus: Corpus | None
) -> dict[str, Any]:
    """All of a run's settings but its facts; with these they decide every number."""
    return {
        **describe_model(model),
        "noise_level": noise_level.strip(),
        "noise_mode": protocol.mode.value,
        "noise_corpus": f"{corpus.name} {corpus.revision}" if corpus else None,
        "samples": protocol.samples,
        "seed": protocol.seed,
        "window": protocol.window,
        "tokens": "subject_last" if protocol.subject_last else "all",
        "screen": protocol.screen,
        "measure": protocol.measure.value,
    }


def default_directory(model: LanguageModel) -> Path:
    """results/causal_trace/<model>.

    Example:
      >>> default_directory(load_model("factworld-gpt2"))  # doctest: +SKIP
      PosixPath('results/causal_trace/factworld-gpt2')
    """
    return Path("results", "causal_trace", short_name(model).replace("/", "_"))
