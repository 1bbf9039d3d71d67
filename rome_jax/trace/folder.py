"""The folder of a run of `eval.causal_trace`: one file per case, and the settings that produced them.

    DIR/run.json                            all settings that decide the results; a run with other settings is refused
    DIR/cases/knowledge_<id><suffix>.npz    one case of one series; a case that could not be traced holds the reason

A case whose file exists is not traced again.
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
    """The folder of a run and its settings.

    Attributes:
      directory: Folder of the run.
      settings: All settings that decide the results.
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
        """Creates a folder, or opens one that has the same settings.

        Args:
          directory: A new folder, or that of an earlier run.
          settings: All settings that decide the results.
          recorded: Further values to record in run.json when the folder is new.

        Returns:
          The folder.

        Raises:
          ValueError: If the folder has other settings, which are named, or holds cases without a run.json.

        Example:
          >>> folder = RunFolder.open("results", {"model": "factworld-gpt2", "samples": 2})
          >>> RunFolder.open("results", {"model": "factworld-gpt2", "samples": 10})
          Traceback (most recent call last):
          ValueError: results holds a run of other settings (samples is 2 there and 10 here): ...
        """
        open_run(directory, settings, recorded=recorded, cases="cases/*.npz")
        return cls(Path(directory), dict(settings))

    def path(self, fact: KnownFact, series: Series) -> Path:
        """Returns the file of a case."""
        return self.directory / "cases" / f"knowledge_{fact.known_id}{series.suffix}.npz"

    def run(
        self,
        model: LanguageModel,
        facts: Sequence[KnownFact],
        protocol: Protocol,
        series: Sequence[Series],
    ) -> None:
        """Traces the cases that have no file yet, with a progress bar.

        Args:
          model: Model to trace.
          facts: Facts to trace.
          protocol: Settings of the traces, the same as in `settings`.
          series: What is traced of each fact.
        """
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
        """Reads the cases of a series.

        Args:
          facts: Facts whose cases have been traced.
          series: Which series.

        Returns:
          One case per fact, in the order of the facts.

        Raises:
          FileNotFoundError: If a fact has not been traced.
          ValueError: If a file is damaged.
        """
        return [load_trace(self.path(fact, series)) for fact in facts]
