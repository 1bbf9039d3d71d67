"""The report of `eval.sequence`: numbers, a figure, a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rome_jax.evaluation.sequence_alarm import FIRST, Alarm
from rome_jax.models import runs


def report_edits(report: Mapping[str, Any], directory: str | Path) -> None:
    """Writes sequence.json and sequence.png, and prints the measurements, the alarms, and when efficacy falls.

    Args:
      report: As returned by `rome_jax.evaluation.sequence_reports.read_report`.
      directory: Folder for the files.
    """
    from rome_jax.plots.sequences import plot_edits
    from rome_jax.plots.style import save_figure

    numbers, figure = Path(directory) / "sequence.json", Path(directory) / "sequence.png"
    runs.write_json(numbers, report)
    save_figure(plot_edits(report), figure)
    _print_data(report["settings"])
    print(describe_edits(report))
    print(f"Wrote {numbers} and {figure}")


_SYMBOLS = {"efficacy": "E", "paraphrase": "P", "neighborhood": "N"}


def describe_edits(report: Mapping[str, Any]) -> str:
    """Returns the table of a sequence's measurements, its alarms, and when efficacy falls, as text.

    Args:
      report: As for `report_edits`.

    Example:
      >>> scores = {"efficacy": 100.0, "paraphrase": 50.0, "neighborhood": None}
      >>> scores |= {f"{kind}_generated": value for kind, value in scores.items()} | {"neighbors_edited": 3}
      >>> row = {"edits": 8, "newest": scores, "earlier": None, "requests": None, "perplexity": 2.0, "kl": 0.01,
      ...        "norm_ratios": {"0": 0.2, "1": 0.1}, "seconds_per_edit": 0.5, "finished": None, "stopped": None}
      >>> lines = describe_edits({"measurements": [row], "alarms": [], "falls": {"share": 0.8}}).splitlines()
      >>> lines[2].split()[:7], lines[2].split()[-5:]
      (['8', '100', '50', '-', '100', '50', '-'], ['3', '2', '0.01', '0.2', '0.50'])
    """
    lines = _table(report["measurements"])
    lines += [
        "E, P, N: prompts, paraphrases and neighbors that hold, in %, by the likelihood of both targets (zsRE:",
        "tokens of the answer that are the most likely); E*, P*, N*: by what the model writes. left: neighbors left",
        "out because their own fact was edited. ppl, KL: perplexity and KL(unedited || edited) in nats per token,",
        "of texts about other subjects. change: largest ‖ΔW‖ / ‖W‖ of the layers. The row of the unedited model is",
        "about a sample of all requests.",
    ]
    if reason := next((row["stopped"] for row in report["measurements"] if row["stopped"]), None):
        lines.append(f"Stopped     {reason}")
    lines += [f"Alarm       {Alarm(**alarm)}" for alarm in report["alarms"]]
    if not report["alarms"]:
        enough = sum(row["edits"] > 0 for row in report["measurements"]) > FIRST
        why = "KL and the change of weights stay within what the first steps showed"
        lines.append(
            f"Alarm       none: {why if enough else f'it needs more than {FIRST} measurements'}"
        )
    share = 100 * report["falls"]["share"]
    for name, found in report["falls"].items():
        if isinstance(found, Mapping):
            what = name.removesuffix("_generated") + (
                " in generated text" if "_gen" in name else ""
            )
            where = f"at {found['edits']} edits" if found["edits"] else "never"
            lines.append(
                f"Falls       {what} of earlier edits below {share:.0f} % of its first value, {found['first']:.0f} %: "
                f"{where}; it holds up to {found['held_until']}"
            )
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines of a table of measurements."""
    symbols = [*_SYMBOLS.values(), *(f"{symbol}*" for symbol in _SYMBOLS.values())]
    group = "".join(f"{symbol:>5}" + "  " * (symbol == "N") for symbol in symbols)
    lines = [
        f"{'':12}{'newest edits':<{len(group)}}   earlier edits",
        f"{'edits':<10}{group}   {group}{'left':>6}{'ppl':>8}{'KL':>9}{'change':>8}{'s/edit':>8}",
    ]
    for row in rows:
        lines.append(_line(str(row["edits"]) if row["edits"] else "unedited", row))
        if row["finished"]:
            lines.append(_line("finished", row["finished"]))
    return lines


def _line(name: str, row: Mapping[str, Any]) -> str:
    """Returns the line of a measurement; the scores of the unedited model stand below the earlier edits."""
    groups = [row["newest"], row["earlier"] or row["requests"]]
    cells = []
    for scores in groups:
        kinds = [(kind, suffix) for suffix in ("", "_generated") for kind in _SYMBOLS]
        texts = [_number(scores and scores[kind + suffix], ".0f", 5) for kind, suffix in kinds]
        cells.append("".join([*texts[:3], "  ", *texts[3:]]))
    left = sum(scores["neighbors_edited"] for scores in groups if scores)
    ratios = [ratio for ratio in row["norm_ratios"].values() if ratio is not None]
    numbers = [
        _number(row["perplexity"], ".4g", 8),
        _number(row["kl"], ".3g", 9),
        _number(max(ratios, default=None), ".3g", 8),
        _number(row["seconds_per_edit"], ".2f", 8),
    ]
    return f"{name:<10}{cells[0]}   {cells[1]}{left:>6}{''.join(numbers)}"


def _number(value: float | None, style: str, width: int) -> str:
    """Returns a right-aligned number; a dash if there is none."""
    return f"{'-' if value is None else format(value, style):>{width}}"


def _print_data(settings: Mapping[str, Any]) -> None:
    """Prints what records of a file were measured with; factworld's measurements need no line."""
    if "perplexity_texts" in settings:
        print(f"Data        {settings['dataset']}; perplexity of {settings['perplexity_texts']}")
