"""The folder of a run of `eval.causal_trace`: one file per case, and the settings that produced them.

    DIR/run.json                            all settings that decide the results; a run with other settings is refused
    DIR/cases/knowledge_<id><suffix>.npz    one case of one series; a case that could not be traced holds the reason

A case whose file exists is not traced again. Several processes may share a run: process 0 writes run.json, and each
process traces its share of the facts and writes their files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rome_jax.files.artifacts import remove_leftovers
from rome_jax.files.checked import shown
from rome_jax.files.groups import ALONE, ProcessGroup
from rome_jax.files.places import check_name
from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.models.runs import check_run, open_run, versions
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
        group: ProcessGroup = ALONE,
    ) -> RunFolder:
        """Creates a folder, or opens one that has the same settings.

        Args:
          directory: A new folder, or that of an earlier run.
          settings: All settings that decide the results.
          recorded: Further values to record in run.json when the folder is new.
          group: The processes that share the run, which process 0 begins.

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
        directory = Path(directory)

        def begin() -> None:
            open_run(directory, settings, recorded=recorded, cases="cases/*.npz")

        group.agree("run", begin)
        if group.index:
            check_run(directory, settings, "start all processes alike")
        return cls(directory, dict(settings))

    def path(self, fact: KnownFact, series: Series) -> Path:
        """Returns the file of a case.

        Raises:
          ValueError: If the `known_id` of the fact is a path.
        """
        name = check_name(f"knowledge_{fact.known_id}{series.suffix}.npz", "known_id")
        return self.directory / "cases" / name

    def run(
        self,
        model: LanguageModel,
        facts: Sequence[KnownFact],
        protocol: Protocol,
        series: Sequence[Series],
        group: ProcessGroup = ALONE,
    ) -> None:
        """Traces the cases that have no file yet, with a progress bar.

        Args:
          model: Model to trace.
          facts: Facts to trace.
          protocol: Settings of the traces, the same as in `settings`.
          series: What is traced of each fact.
          group: The processes that share the run; they take turns at the facts.

        Raises:
          IncompleteError: If another process ended before its cases were complete.
          ValueError: If the settings name another measure than the protocol.
          OSError: If a file cannot be written, or another process traces into the folder.
        """
        if self.settings.get("measure", protocol.measure.value) != protocol.measure.value:
            raise ValueError(
                f"{self.directory} is for the measure {self.settings['measure']}, and the protocol has "
                f"{protocol.measure.value}: give another folder."
            )

        def unfinished() -> list[int]:
            remove_leftovers(self.directory / "cases")
            return [number for number, fact in enumerate(facts) if self._missing(fact, series)]

        with group.working_in(self.directory, "--output_dir", unfinished) as todo:
            mine = [facts[number] for number in group.share(todo)] if group.count > 1 else facts
            self._run(model, mine, protocol, series)
            group.finish(lambda: sum(bool(self._missing(fact, series)) for fact in facts))

    def _missing(self, fact: KnownFact, series: Sequence[Series]) -> list[Series]:
        """Returns the series that have no file for a fact yet."""
        return [one for one in series if not self.path(fact, one).exists()]

    def _run(
        self,
        model: LanguageModel,
        facts: Sequence[KnownFact],
        protocol: Protocol,
        series: Sequence[Series],
    ) -> None:
        """Traces the cases that have no file yet."""
        missing = {fact: self._missing(fact, series) for fact in facts}
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
          ValueError: If a file is damaged, or is of another fact, series or measure.
        """
        cases = []
        for fact in facts:
            path = self.path(fact, series)
            cases.append(load_trace(path))
            expected = {"known_id": fact.known_id, "series": series.value, **self.settings}
            found = cases[-1].provenance
            for name in ("known_id", "series", "measure"):
                if name in expected and found.get(name, expected[name]) != expected[name]:
                    raise ValueError(
                        f"{path} has {name} {shown(found[name])} instead of {shown(expected[name])}: remove it and "
                        "trace the case again."
                    )
        return cases
