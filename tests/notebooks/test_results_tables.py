"""The notebook of the paper's tables shows the content of the results folders."""

from __future__ import annotations

import pytest

from rome_jax.edit.baseline_config import FTConfig
from rome_jax.edit.config import MethodName, ROMEConfig
from rome_jax.evaluation.case_files import read_cases
from rome_jax.evaluation.summaries import Summary, summarize
from rome_jax.evaluation.table_formats import cell_text
from rome_jax.models.registry import IN_WHEELS, SHIPPED
from tests.notebooks import common

PATH = common.FOLDER / "results_tables.ipynb"
ORIGINAL = common.ROOT / "tests" / "golden" / "summarize_run" / "run_000"
NUM_CASES = 2
# Smaller sizes, by cell: what a source has, and what it gets.
SMALLER = {
    "settings": ("NUM_CASES = 8 ", f"NUM_CASES = {NUM_CASES} "),
    "example": ('"layers=0,1,2,3,4,5"', '"layers=0,5"'),
}
COUNTERFACT = {
    "Score S": "score",
    "Efficacy ES": "rewrite_success",
    "Efficacy EM": "rewrite_diff",
    "Generalization PS": "paraphrase_success",
    "Generalization PM": "paraphrase_diff",
    "Specificity NS": "neighborhood_success",
    "Specificity NM": "neighborhood_diff",
    "Fluency GE": "ngram_entropy",
    "Consistency RS": "reference_score",
    "Essence PPL": "essence_score",
    "Attribute AS": "attribute_success",
}
ZSRE = {
    "Score S": "score",
    "Efficacy EA": "rewrite_acc",
    "Generalization PA": "paraphrase_acc",
    "Specificity SA": "neighborhood_acc",
}
EXACT = {"Exact match EX": "rewrite_exact", "Exact match PX": "paraphrase_exact"}


@pytest.fixture
def notebook():
    return common.read(PATH)


@pytest.mark.parametrize("model_name", ["gpt2-xl", "EleutherAI/gpt-j-6B", *IN_WHEELS, *SHIPPED])
def test_every_choice_of_a_model_has_hyperparameters(model_name):
    assert ROMEConfig.for_model(model_name).layers
    assert FTConfig.for_model(model_name, MethodName.FT_L).layers


@pytest.mark.slow
def test_tables_and_figures_show_the_folders(notebook, tmp_path, monkeypatch):
    cells = common.code_cells(notebook)
    for name, (old, new) in SMALLER.items():
        assert cells[name].source.count(old) == 1
        cells[name].source = cells[name].source.replace(old, new)
    ours = 'ORIGINAL = f"{RESULTS}/ROME/run_000"'
    assert cells["original"].source.startswith(ours)
    cells["original"].source = cells["original"].source.replace(
        ours, f"ORIGINAL = {str(ORIGINAL)!r}"
    )
    workdir = common.execute(notebook, tmp_path, monkeypatch)
    runs = {
        name: summarize(read_cases(workdir / "results" / name))
        for name in ("FT-L/run_000", "FT-L/run_001", "ROME/run_000", "ROME/run_001")
    }
    assert {run.num_cases for run in runs.values()} == {NUM_CASES}

    shown = table(cells["counterfact"])
    check(shown, {"FT-L": runs["FT-L/run_000"], "ROME": runs["ROME/run_000"]}, COUNTERFACT | EXACT)
    assert mean(shown["ROME"]["Efficacy ES"]) == mean(shown["ROME"]["Exact match EX"]) == 100
    assert mean(shown["unedited"]["Efficacy ES"]) == 0
    assert mean(shown["unedited"]["Specificity NS"]) == 100
    check(
        table(cells["zsre"]),
        {"FT-L": runs["FT-L/run_001"], "ROME": runs["ROME/run_001"]},
        ZSRE | EXACT,
    )

    points = workdir / "results" / "sweeps" / "ROME_factworld-gpt2_cf_layers"
    swept = {name: summarize(read_cases(points / name)) for name in ("layers=0", "layers=5")}
    shown = table(cells["sweep"])
    check(shown, swept, dict(list(COUNTERFACT.items())[:7]) | EXACT)
    # The same edits as above; and in the last layer nothing carries an edit to the end of the prompt.
    rome = runs["ROME/run_000"].metrics["post_rewrite_diff"].mean
    assert swept["layers=0"].metrics["post_rewrite_diff"].mean == pytest.approx(rome, abs=0.01)
    assert mean(shown["layers=5"]["Efficacy ES"]) == 0

    original = table(cells["original"])
    check(original, {"original": summarize(read_cases(ORIGINAL))}, COUNTERFACT)
    assert not (ORIGINAL / "run.json").exists()

    images = {
        name: common.num_images(cell) for name, cell in cells.items() if common.num_images(cell)
    }
    assert images == {"bars": 1, "magnitudes": 1, "sweep-figure": 1}
    assert [path.name for path in workdir.iterdir()] == ["results"]


def mean(cell: str) -> float:
    """Returns the mean in a cell, without its interval."""
    return float(cell.split()[0])


def table(cell) -> dict[str, dict[str, str]]:
    """Returns the one Markdown table that a cell shows, by row and column."""
    (text,) = [
        output.data["text/markdown"]
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    head, rule, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines())
    assert set("".join(rule)) == {":", "-"}
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def check(shown, runs: dict[str, Summary], columns: dict[str, str]) -> None:
    """Checks that the rows are the unedited model and these runs, with the numbers of the folders."""
    assert list(shown) == ["unedited", *runs]
    before = next(iter(runs.values()))
    for name, row in shown.items():
        state, summary = ("pre", before) if name == "unedited" else ("post", runs[name])
        assert row["cases"] == str(summary.num_cases)
        for column, metric in columns.items():
            assert " ".join(row[column].split()) == cell_text(
                summary.metrics[f"{state}_{metric}"]
            ), (
                name,
                column,
            )
