"""The output of `eval.causal_trace`: averages and figures of a run, or the traces of one prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rome_jax.files.groups import ALONE, ProcessGroup
from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.models.runs import versions, write_json
from rome_jax.terminal.trace_text import averages_json, averages_table, skipped_lines, text_heatmap
from rome_jax.trace.averages import AverageEffects, ClassAverage, TokenClass, average_effects
from rome_jax.trace.best_states import best_json, best_states, best_table
from rome_jax.trace.facts import KnownFact
from rome_jax.trace.folder import RunFolder
from rome_jax.trace.prompt import TracePrompt
from rome_jax.trace.protocol import Protocol, Series, find_prompt, subtract
from rome_jax.trace.result import SkippedCase, TraceResult, save_trace


def trace_facts(
    model: LanguageModel,
    facts: Sequence[KnownFact],
    protocol: Protocol,
    series: Sequence[Series],
    directory: str | Path,
    settings: Mapping[str, Any],
    figure_format: str = "pdf",
    case_figures: bool = False,
    group: ProcessGroup = ALONE,
) -> None:
    """Traces the facts that a folder does not hold yet, then reports on all of them; see `report_run`.

    Args:
      model: Model to trace.
      facts: Facts to trace.
      protocol: Settings of the traces.
      series: What is traced of each fact.
      directory: Folder of the run: a new one, or one with the same settings.
      settings: All settings that decide the results.
      figure_format, case_figures: As in `report_run`.
      group: The processes that share the run, of which process 0 reports.

    Raises:
      ValueError: If the folder has other settings, or no case can be traced.
    """
    recorded = {"noise_value": protocol.noise.value, "model_source": model.source}
    folder = RunFolder.open(directory, settings, recorded, group)
    folder.run(model, facts, protocol, series, group)
    if group.index == 0:
        report_run(folder, facts, series, figure_format, case_figures)


def trace_prompt(
    model: LanguageModel,
    fact: KnownFact,
    answers: Sequence[str | None],
    protocol: Protocol,
    series: Sequence[Series],
    directory: Path,
    settings: Mapping[str, Any],
    figure_format: str = "pdf",
) -> None:
    """Tokenizes a prompt with each of its answers and shows its traces; see `show_prompt`.

    Args:
      fact: The prompt and its subject.
      answers: One or two answers to measure; None is the model's own answer.
      model, protocol, series, directory, settings, figure_format: As in `show_prompt`.

    Raises:
      ValueError: If the prompt ends in white space or is a single token, or the subject is not in it.
      SequenceTooLongError: If the prompt and its target are longer than the model's context.
    """
    prompts = [find_prompt(model, fact, answer) for answer in answers]
    show_prompt(model, prompts, protocol, series, directory, settings, figure_format)


def report_run(
    folder: RunFolder,
    facts: Sequence[KnownFact],
    series: Sequence[Series],
    figure_format: str = "pdf",
    case_figures: bool = False,
) -> None:
    """Prints the averages of a run, and writes averages.json and the figures.

    For a screening it reports where the best verified states are instead, and writes best_states.json.

    Args:
      folder: Folder with a case of every series for each fact.
      facts: Facts whose cases are averaged.
      series: What was traced of them.
      figure_format: "pdf", "svg" or "png".
      case_figures: Whether to draw a heatmap of each case too.

    Raises:
      ValueError: If no case was traced, or a file is damaged.
    """
    screened = bool(folder.settings.get("screen"))
    averages, best = {}, {}
    for one in series:
        cases = folder.results(facts, one)
        reasons = skipped_lines(cases)
        if not any(isinstance(case, TraceResult) for case in cases):
            raise ValueError(
                "\n".join([f"none of {len(cases)} prompts could be traced:", *reasons])
            )
        if screened:
            best[one] = best_states(cases)
        else:
            averages[one] = average_effects(cases)
        if one.severed or folder.settings["tokens"] == "subject_last":
            averages[one] = _at_last_subject(averages[one])
        if case_figures and not one.severed:
            _draw_cases(folder, dict(zip(facts, cases, strict=True)), one, figure_format)
    measure = folder.settings["measure"].replace("_", "-")
    print(best_table(best, measure) if screened else averages_table(averages, measure))
    print("\n".join(["", *reasons]))  # The reasons are the same for each series.
    written = [folder.directory / ("best_states.json" if screened else "averages.json")]
    write_json(written[0], best_json(best) if screened else averages_json(averages))
    if not screened:
        written += _draw_averages(folder, averages, figure_format)
    print("Wrote " + "\n      ".join(map(str, written)))


def _at_last_subject(averages: AverageEffects) -> AverageEffects:
    """Empties all classes but the last subject token, which may also be the first or the prompt's last token."""
    indirect = {
        place: of
        if place is TokenClass.LAST_SUBJECT
        else ClassAverage(of.mean * np.nan, of.band * np.nan, 0)
        for place, of in averages.indirect.items()
    }
    return dataclasses.replace(averages, indirect=indirect)


def _draw_cases(
    folder: RunFolder,
    cases: Mapping[KnownFact, TraceResult | SkippedCase],
    series: Series,
    figure_format: str,
) -> None:
    """Draws a heatmap of every case that has none yet."""
    for fact, case in tqdm(cases.items(), unit="figure", desc=series.value):
        name = folder.path(fact, series).with_suffix(f".{figure_format}").name
        path = folder.directory / "figures" / name
        if isinstance(case, TraceResult) and not path.exists():
            _draw_heatmap(case, path)


def _draw_averages(
    folder: RunFolder, averages: Mapping[Series, AverageEffects], figure_format: str
) -> list[Path]:
    """Draws the figures of a run and returns their files."""
    from rome_jax.plots import style
    from rome_jax.plots import tracing as plot

    model, window = folder.settings["model"], folder.settings["window"]
    kinds = {one.kind: of for one, of in averages.items() if not one.severed}
    severed = {
        one.severed: of.indirect[TokenClass.LAST_SUBJECT]
        for one, of in averages.items()
        if one.severed
    }
    figures = {"average_lines": plot.average_lines(kinds, window=window, title=model)}
    for kind, of in kinds.items():
        figures[f"average_heatmap_{kind.value}"] = plot.average_heatmap(
            of, kind, window=window, model=model
        )
    if severed:
        ordinary = averages[Series.HIDDEN].indirect[TokenClass.LAST_SUBJECT]
        figures["severed_bars"] = plot.severed_bars(ordinary, severed)
    paths = []
    for name, figure in figures.items():
        paths.append(folder.directory / f"{name}.{figure_format}")
        style.save_figure(figure, paths[-1])
    return paths


def _draw_heatmap(result: TraceResult, path: Path) -> None:
    """Draws the heatmap of one trace."""
    from rome_jax.plots import style
    from rome_jax.plots import tracing as plot

    style.save_figure(plot.heatmap(result), path)


def show_prompt(
    model: LanguageModel,
    prompts: Sequence[TracePrompt],
    protocol: Protocol,
    series: Sequence[Series],
    directory: Path,
    settings: Mapping[str, Any],
    figure_format: str = "pdf",
) -> None:
    """Traces one prompt, prints its scores and text heatmaps, and writes the traces and figures.

    Args:
      model: Model to trace.
      prompts: One prompt, or the same prompt with two targets. The second target's scores are subtracted from the
        first's, under the same noise.
      protocol: Settings of the traces.
      series: What is traced.
      directory: Folder for the files, whose names differ for different settings.
      settings: All other settings that decide the results, to keep with them.
      figure_format: "pdf", "svg" or "png".

    Raises:
      SequenceTooLongError: If the prompt and its target are longer than the model's context.
    """
    prompt = prompts[0]
    about = {**settings, "prompt": prompt.text, "subject_range": prompt.span}
    about["targets"] = [one.target for one in prompts]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    words = re.sub(r"\W+", "_", prompt.subject)[:40]
    about["versions"] = versions()
    begun = [protocol.begin(model, one) for one in prompts]
    for number, one in enumerate(series):
        estimate = None
        if protocol.screen:
            # Two answers are ranked by the difference of their effects, so that the same states are restored for both.
            estimates = [protocol.estimate(runs, one) for runs in begun]
            estimate = estimates[0] - sum(estimates[1:])
        results = [protocol.sweep(runs, one, about, estimate) for runs in begun]
        result = subtract(*results) if len(results) > 1 else results[0]
        if not number:
            measure = protocol.measure.value.replace("_", "-")
            print(f"Prompt      {prompt.text}")
            difference = ", difference" * (len(results) > 1)
            print(f"Measure     {measure}{difference} of {result.answer!r}")
            print(f"Clean       {result.high_score:.4f}")
            print(f"Corrupted   {result.low_score:.4f}, mean of {protocol.samples} samples")
        path = directory / f"{words}_{digest[:8]}{one.suffix}.{figure_format}"
        save_trace(path.with_suffix(".npz"), result)
        _draw_heatmap(result, path)
        print(f"\n{_described(one, protocol.window)}\n{text_heatmap(result)}\nWrote {path}")


def _described(series: Series, window: int) -> str:
    """Says what the heatmap of a series shows."""
    return {
        Series.HIDDEN: "One hidden state restored",
        Series.MLP: f"MLP outputs of {window} layers restored, centered at the layer",
        Series.ATTN: f"Attention outputs of {window} layers restored, centered at the layer",
    }[series]
