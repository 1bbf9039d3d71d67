"""Cases of `eval.causal_trace`: what is traced of a prompt, and how.

The noise of a case comes from the seed and its `known_id` alone: neither the order of the cases nor an interruption
changes a number.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rome_jax.data.tokens import SequenceTooLongError
from rome_jax.files.progress import tqdm
from rome_jax.models.interventions import PatchMode, Site
from rome_jax.models.registry import LanguageModel
from rome_jax.trace.facts import KnownFact
from rome_jax.trace.noise import Noise
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.restore import DEFAULT_WINDOW, Measure, Runs, TraceKind
from rome_jax.trace.result import SkippedCase, TraceResult
from rome_jax.trace.screen import screen, verify
from rome_jax.trace.sweep import CHUNK_COLUMNS, start, trace


class Series(enum.StrEnum):
    """What is traced of each case: a kind everywhere, or hidden states at the last subject token, severed."""

    HIDDEN = "hidden"
    MLP = "mlp"
    ATTN = "attn"
    SEVERED_MLP = "severed_mlp"
    SEVERED_ATTN = "severed_attn"

    @property
    def severed(self) -> Site | None:
        """The site that is held at its corrupted values."""
        sites = {"severed_mlp": Site.MLP_OUT, "severed_attn": Site.ATTN_OUT}
        return sites.get(self.value)

    @property
    def kind(self) -> TraceKind:
        """What is restored."""
        return TraceKind.HIDDEN if self.severed else TraceKind(self.value)

    @property
    def suffix(self) -> str:
        """Of its files; the original's for the three kinds."""
        return "" if self is Series.HIDDEN else f"_{self.value}"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a prompt is traced.

    Attributes:
      noise, samples, seed, mode: of the corrupted runs.
      window: layers of MLP or attention outputs.
      measure: of the answer.
      subject_last: restore at the last subject token alone.
      screen: restore only the states that a screening ranks first, so many; 0 for all states.
      chunk_columns: bounds the memory; changes no result.
    """

    noise: Noise
    samples: int = 10
    seed: int = 0
    mode: PatchMode = PatchMode.ADD
    window: int = DEFAULT_WINDOW
    measure: Measure = Measure.PROBABILITY
    subject_last: bool = False
    screen: int = 0
    chunk_columns: int = CHUNK_COLUMNS

    def begin(self, model: LanguageModel, prompt: TracePrompt, known_id: int = 0) -> Runs:
        """The clean and the corrupted runs.

        Raises:
          SequenceTooLongError: a prompt longer than the model's context.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), known_id)
        first, stop = prompt.span
        noise = self.noise.draw(key, self.samples, stop - first, model.config.width)
        return start(model, prompt, noise, mode=self.mode, measure=self.measure)

    def estimate(
        self, model: LanguageModel, prompt: TracePrompt, runs: Runs, series: Series
    ) -> np.ndarray:
        """First-order effects of all states [prompt tokens, L], by which a screening ranks them."""
        how = {"kind": series.kind, "window": self.window, "measure": self.measure}
        return screen(model, prompt, runs, **how)

    def sweep(
        self,
        model: LanguageModel,
        prompt: TracePrompt,
        runs: Runs,
        series: Series,
        provenance: Mapping[str, Any],
        estimate: np.ndarray | None = None,
    ) -> TraceResult:
        """The restorations of one series, from what `begin` returned.

        Args:
          model, prompt, runs, series: what is traced.
          provenance: of the result.
          estimate: what a screening ranks by, if not by the effects on this prompt's own answer.
        """
        at_last = series.severed or self.subject_last
        columns = (prompt.span[1] - 1,) if at_last else tuple(range(len(prompt.ids)))
        how = {
            "kind": series.kind,
            "window": self.window,
            "measure": self.measure,
            "chunk_columns": self.chunk_columns,
        }
        if self.screen:
            if estimate is None:
                estimate = self.estimate(model, prompt, runs, series)
            scores = verify(model, prompt, runs, estimate, top=self.screen, **how)
        else:
            severed = (series.severed,) if series.severed else ()
            scores = trace(model, prompt, runs, severed=severed, tokens=columns, **how)
        return TraceResult(
            scores,
            float(runs.corrupted_score),
            float(runs.clean_score),
            np.array(prompt.ids),
            prompt.input_tokens,
            prompt.span,
            model.tokenizer.decode(np.asarray(runs.target)),
            series.kind,
            self.window,
            columns,
            {**provenance, "series": series.value},
        )


def subtract(first: TraceResult, second: TraceResult) -> TraceResult:
    """The difference of two traces under the same noise: of two answers, or of the same one in two series."""
    return dataclasses.replace(
        first,
        scores=first.scores - second.scores,
        low_score=first.low_score - second.low_score,
        high_score=first.high_score - second.high_score,
        answer=f"{first.answer} −{second.answer}",
    )


def find_prompt(model: LanguageModel, fact: KnownFact, target: str | None = None) -> TracePrompt:
    """The tokens of a fact.

    Raises:
      ValueError: a prompt that ends in white space or is a single token, or a subject that is not in it.
    """
    if fact.prompt != fact.prompt.rstrip():
        raise ValueError(
            f"the prompt {fact.prompt!r} ends in white space, but answers bring their own: remove it."
        )
    return TracePrompt.of(
        model.tokenizer,
        fact.prompt,
        fact.subject,
        characters=fact.characters,
        target=target,
    )


def begin_case(
    model: LanguageModel, fact: KnownFact, protocol: Protocol
) -> tuple[TracePrompt, Runs] | str:
    """The tokens and the runs of a fact, or why it cannot be traced.

    The model must know it: the text of its most likely next token, without white space around it, is not empty and the
    attribute begins with it. The original asks for the whole attribute, which is the same where that is a single token.
    """
    try:
        prompt = find_prompt(model, fact)
    except ValueError as error:
        return str(error)
    try:
        runs = protocol.begin(model, prompt, fact.known_id)
    except SequenceTooLongError as error:
        return str(error)
    answer = model.tokenizer.decode(np.asarray(runs.target))
    if not answer.strip() or not fact.attribute.strip().startswith(answer.strip()):
        return f"the clean answer to {fact.prompt!r} is {answer!r}, not {fact.attribute!r}"
    return prompt, runs


def trace_case(
    model: LanguageModel,
    fact: KnownFact,
    protocol: Protocol,
    series: Sequence[Series],
    provenance: Mapping[str, Any],
) -> Iterator[tuple[Series, TraceResult | SkippedCase]]:
    """Traces a fact, if the model knows it; see `begin_case`."""
    about = {**provenance, **dataclasses.asdict(fact)}
    begun = begin_case(model, fact, protocol)
    for one in series:
        if isinstance(begun, str):
            yield one, SkippedCase(begun, {**about, "series": one.value})
        else:
            yield one, protocol.sweep(model, *begun, one, about)


def trace_facts(
    model: LanguageModel,
    facts: Sequence[KnownFact],
    protocol: Protocol,
    series: Sequence[Series],
    provenance: Mapping[str, Any],
) -> dict[Series, list[TraceResult | SkippedCase]]:
    """Traces facts, with a bar, and keeps them in memory; `trace_folder.RunFolder` keeps them in files.

    Example:
      >>> cases = trace_facts(model, facts[:10], protocol, [Series.HIDDEN], {})  # doctest: +SKIP
      >>> average_effects(cases[Series.HIDDEN]).total  # doctest: +SKIP
    """
    cases = {one: [] for one in series}
    for fact in tqdm(facts, unit="fact", desc="tracing"):
        for one, case in trace_case(model, fact, protocol, series, provenance):
            cases[one].append(case)
    return cases
