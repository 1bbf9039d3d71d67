"""The inputs of `eval.causal_trace`, read from its flags or chosen by default: series, facts, noise and settings."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rome_jax.data import published
from rome_jax.data.corpus import Corpus, open_corpus
from rome_jax.data.published import PUBLISHED
from rome_jax.data.request import SLOT, fill
from rome_jax.data.samples import SAMPLE
from rome_jax.files.checked import shown
from rome_jax.models.registry import IN_WHEELS, SHIPPED, LanguageModel
from rome_jax.models.runs import describe_model, short_name
from rome_jax.moments import own_texts
from rome_jax.trace.facts import FACTWORLD, KnownFact, KnownFacts, open_facts
from rome_jax.trace.noise import Noise, fit_noise, parse_noise
from rome_jax.trace.protocol import Protocol, Series
from rome_jax.trace.restore import TraceKind

_NOISE_TEXTS = (
    1000  # articles that noise is fitted to, as in the original; fewer if the model samples them
)


# Flags that have no meaning for a single prompt.
_OF_RUN = (
    *("num_cases", "severed", "case_figures"),
    *("distributed", "coordinator_address", "num_processes", "process_id", "process_timeout"),
)


def check_flags(given: Collection[str]) -> None:
    """Refuses flags that contradict each other.

    Args:
      given: Names of the flags on the command line.

    Raises:
      ValueError: If two of them contradict each other; the message names them.

    Example:
      >>> check_flags({"prompt", "subject"})
    """
    of_prompt = [name for name in ("subject", "target", "contrast") if name in given]
    if "prompt" not in given and of_prompt:
        raise ValueError(f"--{of_prompt[0]} belongs to one prompt: give --prompt too.")
    if "prompt" in given and "subject" not in given:
        raise ValueError("--prompt needs --subject, the part of the prompt that is corrupted.")
    of_run = [name for name in _OF_RUN if name in given]
    if "prompt" in given and of_run:
        raise ValueError(f"--{of_run[0]} is for many prompts: remove it, or remove --prompt.")
    everywhere = [name for name in ("severed", "tokens") if name in given]
    if "screen" in given and everywhere:
        raise ValueError(
            f"--screen chooses among the states of all tokens, unsevered: leave --{everywhere[0]} out."
        )
    if "contrast" in given and "measure" in given:
        raise ValueError("--contrast compares log-probabilities: leave --measure out.")


def read_series(kinds: Sequence[str], severed: bool) -> list[Series]:
    """Returns the series that --kinds and --severed select.

    Args:
      kinds: Names of kinds, in either case.
      severed: Whether to add the two severed series.

    Returns:
      The series in the order of `Series`.

    Raises:
      ValueError: If a kind is unknown, no kind is given, or severed series lack the hidden states to compare with.

    Example:
      >>> [series.value for series in read_series(["attn", "hidden"], severed=False)]
      ['hidden', 'attn']
    """
    valid = [kind.value for kind in TraceKind]
    kinds = [kind.strip().lower() for kind in kinds]
    for kind in kinds or [""]:
        if kind not in valid:
            raise ValueError(
                f"--kinds={','.join(kinds)}: {shown(kind)} is no kind: give some of {', '.join(valid)}."
            )
    if severed and TraceKind.HIDDEN not in kinds:
        raise ValueError("--severed is compared with hidden states: add hidden to --kinds.")
    return [one for one in Series if one in kinds or (severed and one.severed)]


def read_facts(name: str | None, model_name: str) -> KnownFacts | None:
    """Reads the facts of --fact_file.

    Args:
      name: Value of the flag. None means the facts that come with the model, of which most models have none;
        "published" means the original's known_1000.json, which is downloaded.
      model_name: Name of the model.

    Returns:
      The facts, or None.

    Raises:
      FactsError: If the facts cannot be read.
      DownloadError: If the published facts cannot be downloaded.

    Example:
      >>> read_facts(None, "factworld-gpt2").name, read_facts(None, "gpt2-xl")
      ('factworld', None)
    """
    if name is None and model_name in IN_WHEELS:
        return open_facts(SAMPLE)
    if name is None and model_name not in SHIPPED:
        return None
    if name == PUBLISHED:
        return open_facts(published.fetch(published.KNOWN_FACTS))
    return open_facts(name or FACTWORLD)


def read_prompt(text: str, subject: str) -> KnownFact:
    """Makes a fact of --prompt and --subject.

    Args:
      text: Prompt with the subject in it, or with `{}` in its place.
      subject: Subject of the prompt.

    Returns:
      A fact with `known_id` 0 and without an attribute.

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
    """Fits the noise of --noise_level to a model.

    Args:
      model: Model whose embeddings are measured.
      text: Value of the flag.
      subjects: Subjects of the data set, for a relative level.
      corpus_name: Corpus for a level that is fitted to text, or "self" for texts that the model samples; None means
        factworld for a factworld model, self for a pretrained one that loads without the hub, and wikipedia for others.

    Returns:
      The noise, and the corpus that it was fitted to; None if it needs no corpus.

    Raises:
      ValueError: If the level is unknown or the corpus cannot be read.

    Example:
      >>> noise, corpus = read_noise(model, "u0.1", [], None)
      >>> noise.value, corpus
      (0.1, None)
    """
    level = parse_noise(text)
    if not level.needs_texts:
        return fit_noise(model, level, subjects=subjects), None
    name = corpus_name or own_texts.default_corpus(model.name)
    corpus = own_texts.self_corpus(model) if name == own_texts.NAME else open_corpus(name)
    count = min(_NOISE_TEXTS, corpus.default_articles or _NOISE_TEXTS)
    return fit_noise(model, level, texts=itertools.islice(corpus.read(0), count)), corpus


def describe(
    model: LanguageModel, protocol: Protocol, noise_level: str, corpus: Corpus | None
) -> dict[str, Any]:
    """Returns the settings of a run except for its facts.

    Together with the facts they decide every number. `RunFolder` refuses to mix runs whose settings differ.

    Args:
      model: Model that is traced.
      protocol: Settings of the traces.
      noise_level: Value of --noise_level.
      corpus: Corpus that the noise was fitted to, if any.
    """
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
    """Returns the folder of a run without --output_dir, results/causal_trace/<model>.

    Example:
      >>> default_directory(model).as_posix()
      'results/causal_trace/factworld-gpt2'
    """
    return Path("results", "causal_trace", short_name(model).replace("/", "_"))
