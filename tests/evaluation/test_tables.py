"""Tables as text, CSV, Markdown and LaTeX."""

import csv
import math
import re

import pytest

from rome_jax.evaluation.metrics import Estimate
from rome_jax.evaluation.summaries import Summary
from rome_jax.evaluation.tables import Row, TableFormat, make_rows, render

ROWS = [
    Row(
        "unedited", 4, {"score": Estimate(30.0, 10.0, 4), "rewrite_success": Estimate(20.0, 0.0, 4)}
    ),
    Row(
        "a_b|50%",
        4,
        {
            "score": Estimate(0.0, math.nan, 4),
            "rewrite_success": Estimate(99.96, 2.0, 4),
            "rewrite_diff": Estimate(-0.04, 1.0, 4),
            "essence_score": Estimate(123456.0, 10.0, 1),
            "time": Estimate(0.25, 0.1, 4),
            "made_up": Estimate(1.0, 0.0, 4),
        },
    ),
]


def test_text_has_means_with_intervals_and_a_legend():
    lines = render(ROWS).splitlines()
    assert lines[:3] == [
        "run       cases         S         ES       EM      PPL            s",
        "unedited      4  30.0±9.8   20.0±0.0        -        -            -",
        "a_b|50%       4       0.0  100.0±2.0  0.0±1.0  1.2e+05  0.250±0.098",
    ]
    legend = " ".join(lines[4:])
    assert "ES new target preferred; EM p(new) - p(true);" in legend
    assert legend.endswith("Means × 100 but PPL and s, ± 1.96 σ/√n over cases.")


def test_legend_names_the_columns_there_are():
    assert render(ROWS[:1]).endswith(
        "S harmonic mean of efficacy, generalization and specificity; ES new target preferred. "
        "Means × 100, ± 1.96 σ/√n\nover cases."
    )


def test_wide_text_goes_on_below_with_the_names_again():
    everything = render(ROWS, width=200).split("\n\n")[0]
    *blocks, _ = render(ROWS, width=30).split("\n\n")
    assert len(blocks) == 3
    assert all(len(line) <= 30 for block in blocks for line in block.splitlines())
    joined = []
    for number, wide in enumerate(everything.splitlines()):
        lines = [block.splitlines()[number].split() for block in blocks]
        assert all(line[0] == lines[0][0] for line in lines)
        joined.append(lines[0] + [cell for line in lines[1:] for cell in line[1:]])
        assert joined[-1] == wide.split()
    assert joined[0] == ["run", "cases", "S", "ES", "EM", "PPL", "s"]


def test_a_column_wider_than_the_page_stands_alone():
    *blocks, _ = render(ROWS, width=10).split("\n\n")
    assert [block.split()[1] for block in blocks] == ["cases", "S", "ES", "EM", "PPL", "s"]


def test_csv_parses_back_in_full_precision():
    lines = list(csv.DictReader(render(ROWS, TableFormat.CSV).splitlines()))
    assert [line["run"] for line in lines] == ["unedited", "a_b|50%"]
    for line, row in zip(lines, ROWS, strict=True):
        assert int(line["cases"]) == row.num_cases
        for name, value in row.metrics.items():
            found = [line[f"{name}{part}"] for part in ("", "_half_width", "_std", "_cases")]
            wanted = [value.mean, value.half_width, value.spread, value.count]
            assert [float(text) for text in found] == pytest.approx(wanted, rel=0, nan_ok=True)
    assert lines[0]["time"] == lines[0]["time_cases"] == ""


def test_csv_quotes_names():
    text = render([Row('lr=1,"x"', 1, {})], TableFormat.CSV)
    assert list(csv.reader(text.splitlines())) == [["run", "cases"], ['lr=1,"x"', "1"]]


def test_markdown_is_a_table():
    head, rule, *body = render(ROWS, TableFormat.MARKDOWN).splitlines()
    assert re.split(r"\s*\|\s*", head)[1:-1] == [
        *("run", "cases", "Score S", "Efficacy ES", "Efficacy EM", "Essence PPL", "Time s")
    ]
    assert re.fullmatch(r"\| :-+ (\| -+: ){6}\|", rule)
    cells = [re.split(r"\s*(?<!\\)\|\s*", line)[1:-1] for line in body]
    assert cells[0] == ["unedited", "4", "30.0±9.8", "20.0±0.0", "", "", ""]
    assert cells[1][0] == r"a\_b\|50%"
    assert len({len(line) for line in (head, rule, *body)}) == 1


def test_latex_has_booktabs_rules_groups_and_escapes():
    lines = render(ROWS, TableFormat.LATEX).splitlines()
    assert lines == [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lrrrrrr}",
        r"\toprule",
        r" &  & \multicolumn{1}{c}{Score} & \multicolumn{2}{c}{Efficacy} & \multicolumn{1}{c}{Essence}"
        r" & \multicolumn{1}{c}{Time} \\",
        r"\cmidrule(lr){3-3} \cmidrule(lr){4-5} \cmidrule(lr){6-6} \cmidrule(lr){7-7}",
        r"Run & Cases & S & ES & EM & PPL & s \\",
        r"\midrule",
        r"unedited & 4 & $30.0 \pm 9.8$ & $20.0 \pm 0.0$ & -- & -- & -- \\",
        r"a\_b|50\% & 4 & $0.0$ & $100.0 \pm 2.0$ & $0.0 \pm 1.0$ & $1.2e+05$ & $0.250 \pm 0.098$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_latex_escapes_every_special_character():
    name = render([Row(r"\{a}~b^c#$&", 1, {})], TableFormat.LATEX).splitlines()[-3]
    assert name == r"\textbackslash{}\{a\}\textasciitilde{}b\textasciicircum{}c\#\$\& & 1 \\"


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows is empty"):
        render([])


def summary(efficacy, count=4, **others):
    metrics = {"pre_rewrite_success": Estimate(efficacy, 1.0, count), **others}
    return Summary(count, {**metrics, "time": Estimate(1.0, 0.0, count)})


def test_runs_that_agree_share_the_unedited_row():
    entropy = Estimate(600.0, 1.0, 4)
    post = Estimate(99.0, 1.0, 4)
    rows = make_rows(
        {
            "A": summary(20.0, post_rewrite_success=post),
            "B": summary(20.005, pre_ngram_entropy=entropy),  # A ran without generation
        }
    )
    assert [(row.name, sorted(row.metrics)) for row in rows] == [
        ("unedited", ["ngram_entropy", "rewrite_success"]),
        ("A", ["rewrite_success", "time"]),
        ("B", ["time"]),
    ]
    assert rows[0].metrics["ngram_entropy"] == entropy
    assert rows[1].metrics["rewrite_success"] == post


@pytest.mark.parametrize(
    "other",
    [
        summary(21.0),
        summary(20.0, count=5),
        Summary(4, {"pre_rewrite_success": Estimate(20.0, 2.0, 4)}),
        Summary(4, {"pre_rewrite_success": Estimate(20.0, 1.0, 3)}),
    ],
)
def test_runs_that_do_not_agree_have_their_own(other):
    rows = make_rows({"A": summary(20.0), "B": other, "C": summary(20.0)})
    assert [row.name for row in rows] == ["unedited (A)", "A", "C", "unedited (B)", "B"]


def test_scores_of_zero_without_spread_agree():
    zero = Estimate(0.0, math.nan, 4)
    rows = make_rows({"A": summary(0.0, pre_score=zero), "B": summary(0.0, pre_score=zero)})
    assert [row.name for row in rows] == ["unedited", "A", "B"]


def test_runs_without_the_unedited_model_have_no_row_for_it():
    rows = make_rows({"A": Summary(1, {"post_rewrite_success": Estimate(1.0, 0.0, 1)})})
    assert [row.name for row in rows] == ["A"]
