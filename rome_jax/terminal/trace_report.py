"""What comes out of `eval.causal_trace`: averages and figures of a run, or one prompt in the terminal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
) -> None:
    """Traces facts that are not in a folder yet, then reports on all; see `report_run`.

    Args:
      model, facts, protocol, series: what is traced, and how.
      directory: of the run, new or of the same settings.
      settings: all that decides the results.
      figure_format, case_figures: as of `report_run`.

    Raises:
      ValueError: a folder of other settings, or no case that can be traced.
    """
    folder = RunFolder.open(directory, settings, {"noise_value": protocol.noise.value})
    folder.run(model, facts, protocol, series)
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
    """Finds one prompt's tokens for each of its answers and shows its traces; see `show_prompt`.

    Args:
      fact: the prompt and its subject.
      answers: that are measured, one or two; None is the model's own.
      model, protocol, series, directory, settings, figure_format: as of `show_prompt`.
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

    Of a screening it says where the best verified states are instead, and writes best_states.json.

    Args:
      folder: with a case of every series for each fact.
      facts: that are averaged.
      series: what was traced of them.
      figure_format: pdf, svg or png.
      case_figures: draw a heatmap of every case too.

    Raises:
      ValueError: no case was traced, or a damaged file.
    """
    screened = bool(folder.settings.get("screen"))
    averages, best = {}, {}
    for one in series:
        cases = folder.results(facts, one)
        reasons = skipped_lines(cases)
        if not any(isinstance(case, TraceResult) for case in cases):
            raise ValueError(
                "\n".join([f"none of {len(cases)} prompts could be traced.", *reasons])
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
    print("\n".join(["", *reasons]))  # the same for each series
    written = [folder.directory / ("best_states.json" if screened else "averages.json")]
    write_json(written[0], best_json(best) if screened else averages_json(averages))
    if not screened:
        written += _draw_averages(folder, averages, figure_format)
    print("Wrote " + "\n      ".join(map(str, written)))


def _at_last_subject(averages: AverageEffects) -> AverageEffects:
    """Without the other classes, in which the last token of a short subject or prompt counts too."""
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
    """A heatmap of every case that has none yet."""
    for fact, case in tqdm(cases.items(), unit="figure", desc=series.value):
        name = folder.path(fact, series).with_suffix(f".{figure_format}").name
        path = folder.directory / "figures" / name
        if isinstance(case, TraceResult) and not path.exists():
            _draw_heatmap(case, path)


def _draw_averages(
    folder: RunFolder, averages: Mapping[Series, AverageEffects], figure_format: str
) -> list[Path]:
    from rome_jax.plots import tracing as plot

    model, window = folder.settings["model"], folder.settings["window"]
    kinds = {one.kind: of for one, of in averages.items() if not one.severed}
    severed = {
        one.severed: of.indirect[TokenClass.LAST_SUBJECT]
        for one, of in averages.items()
        if one.severed
    }
    figures = {"average_lines": plot.average_lines(kinds, title=model)}
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
        plot.save_figure(figure, paths[-1])
    return paths


def _draw_heatmap(result: TraceResult, path: Path) -> None:
    from rome_jax.plots import tracing as plot

    plot.save_figure(plot.heatmap(result), path)


def show_prompt(
    model: LanguageModel,
    prompts: Sequence[TracePrompt],
    protocol: Protocol,
    series: Sequence[Series],
    directory: Path,
    settings: Mapping[str, Any],
    figure_format: str = "pdf",
) -> None:
    """Traces one prompt; prints its scores and text heatmaps, and writes the traces and figures.

    Args:
      model, protocol, series: what is traced, and how.
      prompts: one; or the same with two targets, of which the second's score is subtracted, under the same noise.
      directory: of the files, whose names tell settings apart.
      settings: all else that decides the result, for provenance.
      figure_format: pdf, svg or png.

    Raises:
      SequenceTooLongError: a prompt longer than the model's context with its target.
    """
    prompt = prompts[0]
    about = {**settings, "prompt": prompt.text, "subject_range": prompt.span}
    about["targets"] = [one.target for one in prompts]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    words = re.sub(r"\W+", "_", prompt.subject)[:40]
    about["versions"] = versions()
    begun = [(one, protocol.begin(model, one)) for one in prompts]
    for number, one in enumerate(series):
        estimate = None
        if (
            protocol.screen
        ):  # of two answers, by the difference of their effects: the same states for both
            estimates = [protocol.estimate(model, *each, one) for each in begun]
            estimate = estimates[0] - sum(estimates[1:])
        results = [protocol.sweep(model, *each, one, about, estimate) for each in begun]
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
    return {
        Series.HIDDEN: "One hidden state restored",
        Series.MLP: f"MLP outputs of {window} layers restored, centred at the layer",
        Series.ATTN: f"Attention outputs of {window} layers restored, centred at the layer",
    }[series]
