"""How the cases of a data set are traced: series, settings, and the steps from a fact to its traces.

The noise of a case depends only on the seed and its `known_id`, so neither the order of the cases nor an interruption
changes a number.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rome_jax.data.tokenization import continuation_ids
from rome_jax.data.tokens import SequenceTooLongError
from rome_jax.files.checked import (
    Count,
    NonNegativeInt,
    PositiveInt,
    Seed,
    check,
    check_fields,
    shown,
)
from rome_jax.files.progress import tqdm
from rome_jax.models.interventions import Site
from rome_jax.models.patches import PatchMode
from rome_jax.models.registry import LanguageModel
from rome_jax.trace.corruption import Measure, Runs
from rome_jax.trace.facts import KnownFact
from rome_jax.trace.noise import Noise
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import DEFAULT_WINDOW, TraceKind
from rome_jax.trace.result import SkippedCase, TraceResult
from rome_jax.trace.screen import screen, verify
from rome_jax.trace.sweep import CHUNK_COLUMNS, check_runs_memory, start, trace


class Series(enum.StrEnum):
    """What is traced of each case.

    The first three restore one kind at every token. The severed series restore hidden states at the last subject token
    while its MLPs, or its attention, keep their corrupted outputs (paper, section 2.2, figure 3).
    """

    HIDDEN = "hidden"
    MLP = "mlp"
    ATTN = "attn"
    SEVERED_MLP = "severed_mlp"
    SEVERED_ATTN = "severed_attn"

    @property
    def severed(self) -> Site | None:
        """The site that keeps its corrupted values, or None."""
        sites = {"severed_mlp": Site.MLP_OUT, "severed_attn": Site.ATTN_OUT}
        return sites.get(self.value)

    @property
    def kind(self) -> TraceKind:
        """What is restored."""
        return TraceKind.HIDDEN if self.severed else TraceKind(self.value)

    @property
    def suffix(self) -> str:
        """The end of its files' names, for the three kinds the same as the original's."""
        return "" if self is Series.HIDDEN else f"_{self.value}"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings that the traces of all prompts share.

    Attributes:
      noise: Distribution of the noise on the subject's embeddings.
      samples: Number of noise samples, each a corrupted run.
      seed: Seed of the noise.
      mode: Whether the noise is added to the embeddings or replaces them.
      window: Number of layers of MLP or attention outputs that are restored together.
      measure: How the answer is scored.
      subject_last: Whether to restore only at the last subject token.
      screen: Number of states to restore, those that a screening ranks first; 0 for all states.
      chunk_columns: Bound on the memory, see `sweep.scores`; it changes no result.

    Example:
      >>> from rome_jax.trace import TracePrompt, fit_noise, parse_noise
      >>> text = "Gothulf Punby plays the sport of"
      >>> noise = fit_noise(model, parse_noise("s3"), subjects=["Gothulf Punby"])
      >>> protocol = Protocol(noise, samples=2, window=3)
      >>> prompt = TracePrompt.of(model.tokenizer, text, "Gothulf Punby")
      >>> result = protocol.sweep(protocol.begin(model, prompt), Series.HIDDEN, {})
      >>> result.indirect_effect.shape  # [tokens, layers]
      (7, 6)
    """

    noise: Noise
    samples: PositiveInt = 10
    seed: Seed = 0
    mode: PatchMode = PatchMode.ADD
    window: Count = DEFAULT_WINDOW
    measure: Measure = Measure.PROBABILITY
    subject_last: bool = False
    screen: NonNegativeInt = 0
    chunk_columns: PositiveInt = CHUNK_COLUMNS

    def __post_init__(self) -> None:
        """Refuses settings of other types or out of range."""
        check_fields(self, [f.name for f in dataclasses.fields(self) if f.name != "noise"])

    def begin(self, model: LanguageModel, prompt: TracePrompt, known_id: int = 0) -> Runs:
        """Computes the clean run and the corrupted runs of a prompt.

        Args:
          model: Model to trace.
          prompt: Prompt to trace.
          known_id: Number of the case, from 0 to 2³² − 1, which together with the seed decides its noise.

        Raises:
          SequenceTooLongError: If the prompt is longer than the model's context.
          ValueError: If the number of the case is out of range, or the runs need more memory than the machine has.
          NotFiniteScoreError: If a score of the runs is not a finite number.
        """
        known_id = check(Seed, known_id, "known_id")
        key = jax.random.fold_in(jax.random.key(self.seed), known_id)
        first, stop = prompt.span
        check_runs_memory(model.config, len(prompt.ids), self.samples)
        width, precision = model.config.width, model.config.precision
        noise = self.noise.draw(key, self.samples, stop - first, width, precision)
        runs = start(model, prompt, noise, mode=self.mode, measure=self.measure)
        _check_finite(np.array([runs.clean_score, runs.corrupted_score]), prompt)
        return runs

    def estimate(self, runs: Runs, series: Series) -> np.ndarray:
        """Estimates the effects of all states to first order, [prompt tokens, L]; a screening ranks them by these.

        Raises:
          ValueError: If the runs have another measure than this protocol.
        """
        self._check_measure(runs)
        return screen(runs, kind=series.kind, window=self.window)

    def sweep(
        self,
        runs: Runs,
        series: Series,
        provenance: Mapping[str, Any],
        estimate: np.ndarray | None = None,
    ) -> TraceResult:
        """Computes the restorations of one series.

        Args:
          runs: Runs from `begin`.
          series: What is traced.
          provenance: Settings to keep with the result.
          estimate: [prompt tokens, L] estimates that a screening ranks by; those of `estimate` if None.

        Returns:
          The scores of the restored places, and what is needed to read them.

        Raises:
          ValueError: If the runs have another measure than this protocol.
          NotFiniteScoreError: If a score is not a finite number.
        """
        self._check_measure(runs)
        prompt = runs.prompt
        at_last = series.severed or self.subject_last
        columns = (prompt.span[1] - 1,) if at_last else tuple(range(len(prompt.ids)))
        if self.screen:
            scores = verify(
                runs,
                self.estimate(runs, series) if estimate is None else estimate,
                top=self.screen,
                kind=series.kind,
                window=self.window,
                chunk_columns=self.chunk_columns,
            )
        else:
            scores = trace(
                runs,
                kind=series.kind,
                window=self.window,
                severed=(series.severed,) if series.severed else (),
                tokens=columns,
                chunk_columns=self.chunk_columns,
            )
        _check_finite(scores[~np.isnan(scores)] if self.screen else scores, prompt)
        return TraceResult(
            scores,
            runs.corrupted_score,
            runs.clean_score,
            np.array(prompt.ids),
            prompt.input_tokens,
            prompt.span,
            runs.answer,
            series.kind,
            self.window,
            columns,
            {**provenance, "series": series.value, "measure": runs.measure.value},
        )

    def _check_measure(self, runs: Runs) -> None:
        """Refuses runs whose scores are in another measure."""
        if runs.measure is not self.measure:
            raise ValueError(
                f"the runs have the measure {runs.measure.value} and this protocol {self.measure.value}: "
                "begin the runs with this protocol."
            )


class NotFiniteScoreError(ValueError):
    """The error for a score that is NaN or infinite, as damaged weights give."""


def _check_finite(scores: np.ndarray, prompt: TracePrompt) -> None:
    """Refuses scores that are not finite."""
    if not (scores.size and np.isfinite(scores).all()):
        raise NotFiniteScoreError(
            f"the scores of the prompt {shown(prompt.text)} are not finite: check the model's weights and the noise."
        )


def subtract(first: TraceResult, second: TraceResult) -> TraceResult:
    """Subtracts one trace from another under the same noise: of two answers, or of one answer in two series.

    Raises:
      ValueError: If the traces have different measures, prompts or restored places.

    Example:
      >>> from rome_jax.trace import Distribution, Noise, find_prompt, open_facts
      >>> protocol = Protocol(Noise(Distribution.GAUSSIAN, 0.5), samples=2, window=3)
      >>> runs = protocol.begin(model, find_prompt(model, open_facts("factworld").facts[0]))
      >>> hidden, mlp = (protocol.sweep(runs, series, {}) for series in (Series.HIDDEN, Series.MLP))
      >>> subtract(hidden, mlp).low_score
      0.0
    """
    for name, of in (
        ("measures", lambda one: one.measure),
        ("prompts", lambda one: one.input_tokens),
        ("restored places", lambda one: (one.tokens, one.scores.shape)),
    ):
        if of(first) != of(second):
            raise ValueError(f"the traces have different {name}: give traces of one prompt.")
    return dataclasses.replace(
        first,
        scores=first.scores - second.scores,
        low_score=first.low_score - second.low_score,
        high_score=first.high_score - second.high_score,
        answer=f"{first.answer} −{second.answer}",
    )


def find_prompt(model: LanguageModel, fact: KnownFact, target: str | None = None) -> TracePrompt:
    """Tokenizes the prompt of a fact and finds its subject.

    Args:
      model: Model that the tokenizer belongs to.
      fact: Prompt and subject.
      target: Answer to measure; the model's own if None.

    Raises:
      ValueError: If the prompt ends in white space or is a single token, or the subject is not in it.

    Example:
      >>> from rome_jax.trace import KnownFact
      >>> fact = KnownFact(0, "Gothulf Punby", "rowing", "Gothulf Punby plays the sport of")
      >>> find_prompt(model, fact).span
      (0, 3)
    """
    if fact.prompt != fact.prompt.rstrip():
        raise ValueError(
            f"the prompt {shown(fact.prompt)} ends in white space: remove it, because answers begin with their own."
        )
    return TracePrompt.of(
        model.tokenizer,
        fact.prompt,
        fact.subject,
        characters=fact.characters,
        target=target,
    )


def begin_case(model: LanguageModel, fact: KnownFact, protocol: Protocol) -> Runs | str:
    """Computes the runs of a fact, or says why it cannot be traced.

    The model must know the fact: its most likely next token is the first token of the attribute, with or without a
    space before it. The original asks for the whole attribute, which is the same where the attribute is a single token.
    """
    try:
        prompt = find_prompt(model, fact)
    except ValueError as error:
        return str(error)
    try:
        runs = protocol.begin(model, prompt, fact.known_id)
    except (SequenceTooLongError, NotFiniteScoreError) as error:
        return str(error)
    attribute = fact.attribute.strip()
    expected = continuation_ids(model.tokenizer, [f" {attribute}", attribute])
    if runs.target.tolist() not in [ids[:1] for ids in expected if attribute]:
        return f"the clean answer to {shown(fact.prompt)} is {shown(runs.answer)}, not {shown(fact.attribute)}"
    return runs


def trace_case(
    model: LanguageModel,
    fact: KnownFact,
    protocol: Protocol,
    series: Sequence[Series],
    provenance: Mapping[str, Any],
) -> Iterator[tuple[Series, TraceResult | SkippedCase]]:
    """Traces a fact in each series, if the model knows it; see `begin_case`."""
    about = {**provenance, **dataclasses.asdict(fact)}
    begun = begin_case(model, fact, protocol)
    for one in series:
        case = {**about, "series": one.value}
        if isinstance(begun, str):
            yield one, SkippedCase(begun, case)
            continue
        try:
            yield one, protocol.sweep(begun, one, about)
        except NotFiniteScoreError as error:
            yield one, SkippedCase(str(error), case)


def trace_facts(
    model: LanguageModel,
    facts: Sequence[KnownFact],
    protocol: Protocol,
    series: Sequence[Series],
    provenance: Mapping[str, Any],
) -> dict[Series, list[TraceResult | SkippedCase]]:
    """Traces facts with a progress bar and keeps the cases in memory; `RunFolder` keeps them in files.

    Args:
      model: Model to trace.
      facts: Facts to trace; those that the model does not know become a `SkippedCase`.
      protocol: Settings of the traces.
      series: What is traced of each fact.
      provenance: Settings to keep with each case.

    Returns:
      The cases of each series, in the order of the facts.

    Example:
      >>> from rome_jax.trace import Distribution, Noise, TokenClass, average_effects, open_facts
      >>> protocol = Protocol(Noise(Distribution.GAUSSIAN, 0.5), samples=2)
      >>> facts = open_facts("factworld").facts[2:4]
      >>> cases = trace_facts(model, facts, protocol, [Series.HIDDEN], {})
      >>> layer, effect = average_effects(cases[Series.HIDDEN]).indirect[TokenClass.LAST_SUBJECT].peak
      >>> layer < 3, effect > 0.5
      (True, True)
    """
    cases: dict[Series, list[TraceResult | SkippedCase]] = {one: [] for one in series}
    for fact in tqdm(facts, unit="fact", desc="tracing"):
        for one, case in trace_case(model, fact, protocol, series, provenance):
            cases[one].append(case)
    return cases
