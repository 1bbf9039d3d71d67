"""Tables as text, CSV, Markdown and LaTeX."""

import csv
import math
import re

import pytest

from rome_jax.evaluation.columns import PAPER, Row, parse_columns
from rome_jax.evaluation.metrics import Estimate
from rome_jax.evaluation.summaries import Source, summarize
from rome_jax.evaluation.tables import TableFormat, make_rows, render, select

ROWS = [
    Row(
        "unedited",
        4,
        {
            "score": Estimate(30.0, math.nan, 4, 20.2, 39.8),
            "rewrite_success": Estimate(20.0, 0.0, 4, 4.6, 56.0),
        },
    ),
    Row(
        "a_b|50%",
        4,
        {
            "score": Estimate(0.0, math.nan, 4),
            "rewrite_success": Estimate(99.96, 2.0, 4, 51.0, 100.0),
            "rewrite_diff": Estimate(-0.04, 1.0, 4, -0.5, 0.04),
            "essence_score": Estimate(123456.0, 10.0, 1),
            "time": Estimate(0.25, 0.1, 4),
            "made_up": Estimate(1.0, 0.0, 4),
        },
    ),
]


def test_text_has_means_with_intervals_and_a_legend():
    lines = render(ROWS).splitlines()
    assert lines[:3] == [
        "run       cases     S                  ES                 EM                  PPL      s",
        "unedited      4  30.0 [20.2, 39.8]   20.0 [4.6, 56.0]      -                    -      -",
        "a_b|50%       4   0.0               100.0 [51.0, 100.0]  0.0 [-0.5, 0.0]  1.2e+05  0.250",
    ]
    legend = " ".join(lines[4:])
    assert "ES new target preferred; EM p(new) - p(true);" in legend
    assert legend.endswith(
        "Means × 100 except PPL and s, with 95 % intervals over cases (Wilson for rates, bootstrap for the others)."
    )


def test_the_legend_explains_only_the_columns_of_the_table():
    bare = Row("ROME", 1, {"score": Estimate(30.0, math.nan, 1)})
    assert render([bare]).endswith(
        "S harmonic mean of efficacy, generalization and specificity. Means × 100."
    )


def cells(line):
    """Splits a line of text into cells, which are separated by at least two spaces."""
    return re.split(r" {2,}", line.strip())


def test_wide_text_continues_below_with_the_names_again():
    *blocks, _ = render(ROWS, width=40).split("\n\n")
    assert [block.split("\n")[0].split() for block in blocks] == [
        ["run", "cases", "S"],
        ["run", "ES"],
        ["run", "EM", "PPL"],
        ["run", "s"],
    ]
    for block in blocks:
        names = [line.split()[0] for line in block.splitlines()]
        assert names == ["run", "unedited", "a_b|50%"]
        assert all(len(line) <= 40 for line in block.splitlines())
    assert cells(blocks[1].splitlines()[2]) == ["a_b|50%", "100.0 [51.0, 100.0]"]


def test_a_column_wider_than_the_page_has_a_block_of_its_own():
    *blocks, _ = render(ROWS, width=10).split("\n\n")
    assert [block.split()[1] for block in blocks] == ["cases", "S", "ES", "EM", "PPL", "s"]


def test_csv_parses_back_in_full_precision():
    lines = list(csv.DictReader(render(ROWS, TableFormat.CSV).splitlines()))
    assert [line["run"] for line in lines] == ["unedited", "a_b|50%"]
    for line, row in zip(lines, ROWS, strict=True):
        assert int(line["cases"]) == row.num_cases
        for name, value in row.metrics.items():
            found = [line[f"{name}{part}"] for part in ("", "_low", "_high", "_std", "_cases")]
            expected = [value.mean, value.low, value.high, value.spread, value.count]
            assert [float(text or "nan") for text in found] == pytest.approx(
                expected, rel=0, nan_ok=True
            )
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
    assert cells[0] == ["unedited", "4", "30.0 [20.2, 39.8]", "20.0 [4.6, 56.0]", "", "", ""]
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
        r"unedited & 4 & $30.0\ {\scriptstyle [20.2, 39.8]}$ & $20.0\ {\scriptstyle [4.6, 56.0]}$ & -- & -- & -- \\",
        r"a\_b|50\% & 4 & $0.0$ & $100.0\ {\scriptstyle [51.0, 100.0]}$ & $0.0\ {\scriptstyle [-0.5, 0.0]}$"
        r" & $1.2e+05$ & $0.250$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_latex_escapes_every_special_character():
    name = render([Row(r"\{a}~b^c#$&", 1, {})], TableFormat.LATEX).splitlines()[-3]
    assert name == r"\textbackslash{}\{a\}\textasciitilde{}b\textasciicircum{}c\#\$\& & 1 \\"


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows is empty"):
        render([])


def test_columns_are_the_papers_or_all_or_named():
    assert list(PAPER) == "S ES EM EA PS PM PA NS NM SA GE RS".split()
    assert parse_columns(["paper"]) == parse_columns(["Paper"]) == tuple(PAPER.values())
    assert {"time", "essence_score", "rewrite_exact", *PAPER.values()} < set(
        parse_columns(["full"])
    )
    assert parse_columns(["S", "s"]) == ("score", "time")
    shown = render(select(ROWS, parse_columns(["EM", "s"])))
    assert shown.splitlines()[0].split() == ["run", "cases", "EM", "s"]


@pytest.mark.parametrize("names", [[], ["XX"], ["ES", "es"], ["paper", "ES"], ["ES", ""]])
def test_unknown_columns_are_refused_with_the_known_ones(names):
    with pytest.raises(
        ValueError,
        match=rf"^--columns={','.join(names)} names no known .* paper, full, .* S, ES, EM, .*, s\.$",
    ):
        parse_columns(names)


def case(case_id, efficacy, before=0.5, **more):
    """Returns a case with one rewrite prompt; `before` distinguishes unedited models."""
    pre = {"rewrite_prompts_exact": [False], "reference_score": before, **more}
    return {
        "case_id": case_id,
        "requested_rewrite": {"subject": f"subject {case_id}"},
        "time": 1.0,
        "pre": pre,
        "post": {"rewrite_prompts_exact": [efficacy]},
    }


def names_and_cases(runs):
    return [(row.name, row.num_cases) for row in make_rows(runs)]


def test_runs_on_the_same_model_and_data_share_the_unedited_row():
    rows = make_rows(
        {
            "A": summarize([case(0, True), case(1, True)]),
            "B": summarize([case(0, False, 0.50004), case(1, False, ngram_entropy=6.0)]),
        }
    )
    assert [(row.name, sorted(row.metrics)) for row in rows] == [
        ("unedited", ["ngram_entropy", "reference_score", "rewrite_exact"]),  # A has no texts
        ("A", ["rewrite_exact", "time"]),
        ("B", ["rewrite_exact", "time"]),
    ]
    assert rows[0].metrics["ngram_entropy"].mean == 600
    assert [row.metrics["rewrite_exact"].mean for row in rows] == [0, 100, 0]


def test_the_unedited_row_covers_the_cases_of_all_runs():
    runs = {
        "few": summarize([case(i, True) for i in range(2)]),
        "many": summarize([case(i, True) for i in range(5)]),
        "others": summarize([case(i, True) for i in range(3, 8)]),
    }
    assert names_and_cases(runs) == [("unedited", 8), ("few", 2), ("many", 5), ("others", 5)]


def test_other_models_and_other_records_have_unedited_rows_of_their_own():
    runs = {
        "A": summarize([case(0, True), case(1, True)]),
        "B": summarize([case(0, True, 0.6), case(1, True)]),  # another model
        "C": summarize([case(1, True)]),  # the model of A, on one of its cases
        "D": summarize([case(7, True)]),  # no case in common: nothing shows that it is the same
        "E": summarize([case(0, True) | {"requested_rewrite": {"subject": "another"}}]),
    }
    assert names_and_cases(runs) == [
        *(("unedited (A)", 2), ("A", 2), ("C", 1)),
        *(("unedited (B)", 2), ("B", 2)),
        *(("unedited (D)", 1), ("D", 1)),
        *(("unedited (E)", 1), ("E", 1)),
    ]


def test_run_json_takes_precedence_over_the_scores():
    gpt2, gptj, other = (
        Source(model, data, (model, data, version))
        for model, data, version in (("gpt2", "cf", "1"), ("gptj", "cf", "1"), ("gpt2", "cf", "2"))
    )
    runs = {
        "A": summarize([case(0, True)], gpt2),
        "B": summarize([case(0, True)], gptj),
        "C": summarize([case(9, True)], gpt2),  # no case in common with A
    }
    assert names_and_cases(runs) == [
        *(("unedited (gpt2, cf)", 2), ("A", 1), ("C", 1)),
        *(("unedited (gptj, cf)", 1), ("B", 1)),
    ]
    runs = {"A": summarize([case(0, True)], gpt2), "B": summarize([case(0, True)], other)}
    assert names_and_cases(runs) == [
        *(("unedited (A)", 1), ("A", 1)),
        *(("unedited (B)", 1), ("B", 1)),
    ]


def test_runs_without_the_unedited_model_have_no_row_for_it():
    bare = {name: value for name, value in case(0, True).items() if name != "pre"}
    assert names_and_cases({"A": summarize([bare]), "B": summarize([bare])}) == [("A", 1), ("B", 1)]
