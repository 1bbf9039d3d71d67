"""The folder of a run of `eval.causal_trace`: one file a case, and how they were made.

    DIR/run.json                            all that decides what a trace gives; another run is refused
    DIR/cases/knowledge_<id><suffix>.npz    one case of one series; a case that could not be traced says why

What is there is not traced again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.models.runs import open_run, versions
from rome_jax.trace.facts import KnownFact
from rome_jax.trace.protocol import Protocol, Series, trace_case
from rome_jax.trace.result import SkippedCase, TraceResult, load_trace, save_trace


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where the cases of a run lie, and what made them.

    Attributes:
      directory: of the run.
      settings: all that decides what a trace gives.
    """

    directory: Path
    settings: Mapping[str, Any]

    @classmethod
    def open(
        cls,
        directory: str | Path,
        settings: Mapping[str, Any],
        recorded: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """Makes the folder, or resumes in one of the same settings.

        Args:
          directory: new, or that of a run.
          settings: all that decides what a trace gives.
          recorded: what else is written down of a new run.

        Raises:
          ValueError: a folder of other settings, which are named, or with cases that nothing is known about.
        """
        open_run(directory, settings, recorded=recorded, cases="cases/*.npz")
        return cls(Path(directory), dict(settings))

    def path(self, fact: KnownFact, series: Series) -> Path:
        """The file of a case."""
        return self.directory / "cases" / f"knowledge_{fact.known_id}{series.suffix}.npz"

    def run(
        self,
        model: LanguageModel,
        facts: Sequence[KnownFact],
        protocol: Protocol,
        series: Sequence[Series],
    ) -> None:
        """Traces what is not there yet, with a bar."""
        missing = {
            fact: [one for one in series if not self.path(fact, one).exists()] for fact in facts
        }
        todo = [fact for fact in facts if missing[fact]]
        provenance = {**self.settings, "versions": versions()}
        bar = tqdm(
            todo, total=len(facts), initial=len(facts) - len(todo), unit="case", desc="tracing"
        )
        for fact in bar:
            for one, result in trace_case(model, fact, protocol, missing[fact], provenance):
                save_trace(self.path(fact, one), result)

    def results(
        self, facts: Sequence[KnownFact], series: Series
    ) -> list[TraceResult | SkippedCase]:
        """The cases of a series.

        Raises:
          ValueError: a damaged file.
        """
        return [load_trace(self.path(fact, series)) for fact in facts]
