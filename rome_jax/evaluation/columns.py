"""Rows and columns of tables: the symbols of the paper and the metrics that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rome_jax.evaluation.metrics import Estimate


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      name: Name of a run, or of a point of a sweep.
      num_cases: The number of cases with scores in the run.
      metrics: Estimates by the name of the metric, without `pre_` or `post_`.
      num_failed: The number of cases that have a reason for their failure instead of scores.
    """

    name: str
    num_cases: int
    metrics: Mapping[str, Estimate]
    num_failed: int = 0

    @property
    def cases(self) -> str:
        """The number of cases as tables show it."""
        return (
            f"{self.num_cases} + {self.num_failed} failed"
            if self.num_failed
            else str(self.num_cases)
        )


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      metric: Name of the metric.
      group: Heading above the symbol, as in the paper.
      symbol: Heading of the column.
      meaning: Explanation in the legend.
      form: Format of its numbers.
    """

    metric: str
    group: str
    symbol: str
    meaning: str
    form: str = "z.1f"


# S, ES to NM, GE and RS are the symbols of the paper's CounterFact table (Meng et al. 2022, arXiv 2202.05262).
COLUMNS = (
    Column("score", "Score", "S", "harmonic mean of efficacy, generalization and specificity"),
    Column("rewrite_success", "Efficacy", "ES", "new target preferred"),
    Column("rewrite_diff", "Efficacy", "EM", "p(new) - p(true)"),
    Column("rewrite_acc", "Efficacy", "EA", "target tokens correct"),
    Column("paraphrase_success", "Generalization", "PS", "new target preferred on paraphrases"),
    Column("paraphrase_diff", "Generalization", "PM", "p(new) - p(true) on paraphrases"),
    Column("paraphrase_acc", "Generalization", "PA", "target tokens correct on paraphrases"),
    Column("neighborhood_success", "Specificity", "NS", "true target preferred for neighbors"),
    Column("neighborhood_diff", "Specificity", "NM", "p(true) - p(new) for neighbors"),
    Column("neighborhood_acc", "Specificity", "SA", "target tokens correct for neighbors"),
    Column("ngram_entropy", "Fluency", "GE", "n-gram entropy in bits"),
    Column("reference_score", "Consistency", "RS", "TF-IDF similarity to reference texts"),
    Column("essence_score", "Essence", "PPL", "perplexity of the subject's text"),
    Column(
        "attribute_success", "Attribute", "AS", "new target preferred for subjects that have it"
    ),
    Column("rewrite_acc_by_token", "By token", "ET", "EA with token ids compared"),
    Column("paraphrase_acc_by_token", "By token", "PT", "PA with token ids compared"),
    Column("neighborhood_acc_by_token", "By token", "ST", "SA with token ids compared"),
    Column("rewrite_exact", "Exact match", "EX", "greedy decoding gives the new target"),
    Column("paraphrase_exact", "Exact match", "PX", "the same on paraphrases"),
    Column(
        "portability_exact", "Portability", "PO", "greedy decoding gives what follows from the edit"
    ),
    Column(
        "portability_acc",
        "Portability",
        "OA",
        "target tokens correct for what follows from the edit",
    ),
    Column("portability_acc_by_token", "By token", "OT", "OA with token ids compared"),
    Column("time", "Time", "s", "seconds per edit, without compilation", "z.3f"),
)

# The columns of the paper's tables: symbol -> metric. Runs on CounterFact have no accuracies, runs on zsRE little else.
PAPER: Mapping[str, str] = {
    column.symbol: column.metric
    for column in COLUMNS
    if column.group
    in ("Score", "Efficacy", "Generalization", "Specificity", "Fluency", "Consistency")
}


def parse_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the metrics that --columns names.

    Args:
      names: `paper`, `full`, or symbols of columns. Symbols are case-sensitive: S is the score, s the time.

    Raises:
      ValueError: If there is no name or a name is unknown; the message lists the known ones.

    Example:
      >>> parse_columns(["ES", "NS"])
      ('rewrite_success', 'neighborhood_success')
    """
    known = {column.symbol: column.metric for column in COLUMNS}
    groups = {"paper": PAPER, "full": known}
    if len(names) == 1 and names[0].lower() in groups:
        return tuple(groups[names[0].lower()].values())
    if not names or not set(names) <= known.keys():
        raise ValueError(
            f"--columns={','.join(names)} names no known columns: give paper, full, or some of {', '.join(known)}."
        )
    return tuple(known[name] for name in names)
