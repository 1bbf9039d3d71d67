"""Summaries of result folders, and `python -m eval.summarize` as a user runs it."""

import csv
import json
import math
import shutil

import numpy as np
import pytest

from rome_jax.evaluation.case_files import find_runs, read_cases
from rome_jax.evaluation.intervals import percentile_interval, resampled_means, wilson
from rome_jax.evaluation.summaries import Source, State, case_metrics, summarize
from tests.programs import ROOT, Program, refusal

GOLDEN = ROOT / "tests" / "golden"


def nlls(*pairs):
    return [{"target_new": new, "target_true": true} for new, true in pairs]


def case(case_id, post, pre=None):
    return {
        "case_id": case_id,
        "requested_rewrite": {},
        "time": 1.0,
        "pre": pre or {},
        "post": post,
    }


def counterfact(rewrite, paraphrase, neighborhood):
    """Returns results with the given successes, 0 or 1 per prompt, from NLLs of 0 and infinity."""

    def prompts(wins, new_is_desired=True):
        sides = [(0.0, math.inf) if win else (math.inf, 0.0) for win in wins]
        return nlls(*(side if new_is_desired else side[::-1] for side in sides))

    return {
        "rewrite_prompts_probs": prompts(rewrite),
        "paraphrase_prompts_probs": prompts(paraphrase),
        "neighborhood_prompts_probs": prompts(neighborhood, new_is_desired=False),
    }


def write_run(folder, cases):
    folder.mkdir(parents=True)
    for one in cases:
        (folder / f"case_{one['case_id']}.json").write_text(json.dumps(one))


@pytest.fixture
def results(tmp_path):
    """A results folder: ROME with two runs on CounterFact and one on zsRE, FT with one run, and runs without cases."""
    before = counterfact([0], [0, 1], [1, 1])
    rome = [case(i, counterfact([1], [1, i % 2], [1, 0]), before) for i in (0, 2, 10)]
    ft = [case(i, counterfact([1], [0, 0], [0, 0]), before) for i in (0, 2, 10)]
    right = {f"{kind}_prompts_correct": [True] for kind in ("rewrite", "paraphrase")}
    zsre = case(0, {**right, "neighborhood_prompts_correct": [True, False, False, False]})
    write_run(tmp_path / "ROME" / "run_000", rome)
    write_run(tmp_path / "ROME" / "run_001", rome[:2])
    write_run(tmp_path / "ROME" / "run_002", [zsre])
    write_run(tmp_path / "FT" / "run_000", ft)
    write_run(tmp_path / "ROME" / "run_003", [])
    write_run(tmp_path / "KN" / "run_000", [])
    return tmp_path


@pytest.fixture(scope="module")
def program():
    return Program("eval.summarize")


def test_the_summary_of_the_originals_folder_is_what_the_original_prints():
    (printed,) = json.loads((GOLDEN / "summarize_result.json").read_text())
    found = summarize(read_cases(GOLDEN / "summarize_run" / "run_000"))
    found = json.loads(json.dumps(found.original(printed["run_dir"])))
    assert list(found) == list(printed)
    for name in printed.keys() - {"run_dir", "num_cases"}:
        # −0.0 and 0.0 are one number; every other digit counts.
        assert found[name] == pytest.approx(printed[name], abs=0, rel=0, nan_ok=True), name
    assert (found["run_dir"], found["num_cases"]) == (printed["run_dir"], 2)


def test_metrics_of_a_case_by_hand():
    post = {
        # p(new) 1/2, p(true) 1/4; then a tie, which is a failure
        "rewrite_prompts_probs": nlls((math.log(2), math.log(4)), (1.0, 1.0)),
        "neighborhood_prompts_probs": nlls((math.log(2), math.log(4)), (5.0, 1.0), (5.0, 1.0)),
        "attribute_prompts_probs": nlls((1.0, 2.0)),
        "rewrite_prompts_exact": [True, False],
        "portability_prompts_exact": [],
        "paraphrase_prompts_probs": [],
        "ngram_entropy": 6.5,
        "reference_score": 0.25,
        "essence_score": 30.0,
        "text": ["a"],
    }
    metrics = case_metrics({"case_id": 3, "time": 2, "post": post})
    gap = math.exp(-1) - math.exp(-5)
    assert metrics == pytest.approx(
        {
            "time": 2.0,
            "post_rewrite_success": 0.5,
            "post_rewrite_diff": 0.125,
            "post_neighborhood_success": 2 / 3,
            "post_neighborhood_diff": (-0.25 + 2 * gap) / 3,
            "post_attribute_success": 1.0,
            "post_attribute_diff": math.exp(-1) - math.exp(-2),
            "post_rewrite_exact": 0.5,
            "post_ngram_entropy": 6.5,
            "post_reference_score": 0.25,
            "post_essence_score": 30.0,
        }
    )


def test_each_case_has_the_same_weight_regardless_of_its_number_of_prompts():
    cases = [
        case(0, counterfact([1], [1], [1])),
        case(1, counterfact([1], [0, 0, 0], [1, 0, 0, 0])),
    ]
    post = summarize(cases).state(State.POST)
    assert (post["paraphrase_success"].mean, post["paraphrase_success"].spread) == (50, 50)
    assert post["neighborhood_success"].mean == 62.5
    assert post["score"].mean == pytest.approx(3 / (1 / 100 + 1 / 50 + 1 / 62.5))


def test_a_case_without_a_metric_does_not_count_for_it():
    cases = [
        case(0, {**counterfact([1], [1], [1]), "ngram_entropy": 6.0}),
        case(1, counterfact([0], [], [1])),
        case(2, {"rewrite_prompts_exact": [True]}),
    ]
    summary = summarize(cases)
    post = summary.state(State.POST)
    assert summary.num_cases == 3 and summary.state(State.PRE) == {}
    assert {name: value.count for name, value in post.items()} == {
        **dict.fromkeys(("rewrite_success", "rewrite_diff"), 2),
        **dict.fromkeys(("paraphrase_success", "paraphrase_diff", "ngram_entropy"), 1),
        **dict.fromkeys(("neighborhood_success", "neighborhood_diff", "score"), 2),
        "rewrite_exact": 1,
    }
    assert post["ngram_entropy"].mean == 600 and post["rewrite_exact"].mean == 100
    assert post["score"].mean == pytest.approx(3 / (1 / 50 + 1 / 100 + 1 / 100))


def test_there_is_no_score_if_a_part_is_missing():
    assert "score" not in summarize([case(0, counterfact([1], [], [1]))]).state(State.POST)


def test_rates_have_wilson_intervals_even_if_all_cases_agree():
    cases = [case(i, counterfact([1], [1, i % 2], [1])) for i in range(10)]
    post = summarize(cases).state(State.POST)
    low, high = wilson(1.0, 10)
    for name in ("rewrite_success", "neighborhood_success"):
        assert (post[name].low, post[name].high) == pytest.approx((100 * low, 100 * high))
    # The case is the unit: 15 of 20 prompts are the rate of ten cases.
    low, high = wilson(0.75, 10)
    partial = post["paraphrase_success"]
    assert (partial.low, partial.mean, partial.high) == pytest.approx((100 * low, 75, 100 * high))


def test_other_means_have_bootstrap_intervals_and_times_none():
    rng = np.random.default_rng(0)
    cases = [
        case(i, {"reference_score": value}) for i, value in enumerate(rng.exponential(size=50))
    ]
    metrics = summarize(cases).metrics
    value = metrics["post_reference_score"]
    assert value.low < value.mean < value.high
    # The values are skewed to the right, and so is the interval; it is about as wide as that of a normal mean.
    assert value.high - value.mean > value.mean - value.low
    assert value.high - value.low == pytest.approx(2 * 1.96 * value.spread / 50**0.5, rel=0.1)
    assert summarize(cases).metrics["post_reference_score"] == value, "the draws have a fixed seed"
    assert not metrics["time"].has_interval


def test_the_scores_interval_is_a_bootstrap_over_cases():
    # All three parts are equal in each case, so S varies exactly as each of them.
    cases = [case(i, counterfact([win], [win], [win])) for i, win in enumerate([1, 1, 1, 0] * 10)]
    score = summarize(cases).state(State.POST)["score"]
    assert score.mean == pytest.approx(75)
    draws = resampled_means(np.array([[1.0], [1.0], [1.0], [0.0]] * 10), np.ones((40, 1), bool))
    assert (score.low, score.high) == pytest.approx(
        tuple(100 * end for end in percentile_interval(draws[:, 0]))
    )
    # Cases without one of the parts still count for the others.
    cases += [case(i, counterfact([], [1], [1])) for i in range(40, 44)]
    assert summarize(cases).state(State.POST)["score"].count == 44


@pytest.mark.parametrize("win", [0, 1])
def test_a_score_that_does_not_vary_has_no_interval(win):
    cases = [case(i, counterfact([1], [win], [1])) for i in range(2)]
    score = summarize(cases).metrics["post_score"]
    assert score.mean == 100 * win and not score.has_interval
    assert math.isnan(score.spread)


def test_zsre_scores_accuracies():
    results = {
        "rewrite_prompts_correct": [True, True],
        "paraphrase_prompts_correct": [True, False],
        "neighborhood_prompts_correct": [True, False, False, False],
        "rewrite_prompts_correct_by_token": [True, False],
    }
    summary = summarize([case(0, results, results)])
    for state in State:
        means = {name: value.mean for name, value in summary.state(state).items()}
        assert means.pop("score") == pytest.approx(3 / (1 / 100 + 1 / 50 + 1 / 25))
        assert means == {
            "rewrite_acc": 100,
            "paraphrase_acc": 50,
            "neighborhood_acc": 25,
            "rewrite_acc_by_token": 50,
        }
    assert {name.removeprefix("post_") for name in summary.original("x") if "post" in name} == {
        "rewrite_acc",
        "paraphrase_acc",
        "neighborhood_acc",
        "score",
    }


def test_an_infinite_perplexity_causes_no_warning():
    cases = [case(i, {"essence_score": value}) for i, value in enumerate((math.inf, 1e200, 20.0))]
    value = summarize(cases).metrics["post_essence_score"]
    assert value.mean == math.inf and not value.has_interval


MEMIT = {
    "case_id": 0,
    "grouped_case_ids": [0, 1, 2, 3],
    "num_edits": 4,
    "requested_rewrite": {"prompt": "{} is in", "subject": "X"},
    "time": 12.0,
    "post": {
        **counterfact([1], [1, 0], [1]),
        "rewrite_prompts_correct": [True],
        "paraphrase_prompts_correct": [False, False],
        "neighborhood_prompts_correct": [True],
    },
}


def test_folders_of_memit_and_alphaedit_are_read(program, tmp_path):
    folder = tmp_path / "MEMIT" / "run_000"
    folder.mkdir(parents=True)
    for case_id in (0, 1, 10):
        content = json.dumps(MEMIT | {"case_id": case_id})
        (folder / f"4_edits-case_{case_id}.json").write_text(content)
    (folder / "params.json").write_text("{}")
    assert find_runs(tmp_path, ["MEMIT"]) == [folder]
    metrics = summarize(read_cases(folder)).metrics
    assert metrics["time"].mean == 3.0, "per edit"
    # S is of the probabilities, and the table is that of CounterFact, although there are accuracies.
    assert metrics["post_score"].mean == pytest.approx(75.0)
    result = program(f"--results_dir={tmp_path}", "--dir_name=MEMIT")
    assert result.returncode == 0 and " ES " in result.stdout.splitlines()[0]
    (folder / "9_edits-case_1.json").write_text(json.dumps(MEMIT | {"case_id": 1}))
    with pytest.raises(ValueError, match=r"4_edits-case_1.json and 9_edits-case_1.json: move the"):
        read_cases(folder)


def test_failed_cases_are_counted_and_do_not_count(program, results):
    folder = results / "FT" / "run_000"
    failed = {"case_id": 2, "requested_rewrite": {}, "failed": "its prompt is too long."}
    (folder / "case_2.json").write_text(json.dumps(failed))
    found = summarize(read_cases(folder))
    assert (found.num_cases, found.failures) == (2, {2: "its prompt is too long."})
    assert found.describe_failures() == "1 of 3 cases failed; case 2: its prompt is too long."
    line = program(f"--results_dir={results}", "--dir_name=FT").stdout.splitlines()[2]
    assert line.split()[:5] == ["FT/run_000", "2", "+", "1", "failed"]
    table = program(f"--results_dir={results}", "--dir_name=FT", "--format=csv").stdout
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["failed"] for row in rows] == ["0", "1"]
    with pytest.raises(ValueError, match="all 1 cases failed; case 2: its prompt is too long"):
        summarize([failed]).describe_failures()


def test_cases_are_read_in_order_of_their_ids(results):
    folder = results / "ROME" / "run_000"
    (folder / "case_1.json.partial").write_text("{")
    (folder / "run.json").write_text("{}")
    assert [one["case_id"] for one in read_cases(folder)] == [0, 2, 10]
    assert [one["case_id"] for one in read_cases(folder, 2)] == [0, 2]
    assert len(read_cases(folder, 100)) == 3
    with pytest.raises(ValueError, match=r"first_n_cases=0: give a number of 1 or more"):
        read_cases(folder, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"case_id": 0',
            r"case_0\.json is damaged \(ends within a value \(column 14\)\): remove it",
        ),
        ("[]", r"case_0\.json is damaged \(holds no object\): remove it"),
        ('{"post": {}}', r"case_0\.json is damaged \(has no case_id\): remove it"),
        ('{"case_id": 0}', r"case_0\.json is damaged \(has no scores under post\): remove it"),
        ('{"case_id": 0, "post": {"text": ["a"]}}', r"has no scores under post"),
        (  # a case of EasyEdit
            '{"case_id": 0, "post": {"rewrite_acc": [1.0], "locality": {}, "portability": {}}}',
            r"case_0\.json holds the scores rewrite_acc, locality, portability of another program: give",
        ),
        ('{"case_id": 8, "post": {"rewrite_prompts_exact": [true]}}', r"\(holds case 8\)"),
        ('{"case_id": 0, "post": {"rewrite_prompts_correct": ["true"]}}', r"correct\[0\]='true'"),
        (
            '{"case_id": 0, "post": {"rewrite_prompts_probs": [{"target_new": NaN, "target_true": 1}]}}',
            r"\(post.rewrite_prompts_probs\[0\].target_new=nan\): remove it",
        ),
        ("[" * 100_000, r"case_0\.json is damaged \(is nested too deeply\)"),
    ],
)
def test_a_damaged_file_is_named(results, content, message):
    (results / "ROME" / "run_000" / "case_0.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_cases(results / "ROME" / "run_000")


@pytest.mark.parametrize(
    "post",
    [
        {"rewrite_prompts_probs": [{"target_new": 1.0}]},
        {"rewrite_prompts_probs": [1.0]},
        {"ngram_entropy": "high"},
        [],
    ],
)
def test_a_case_of_another_layout_is_named(post):
    with pytest.raises(ValueError, match=r"^case 7 has another layout \(.*\): remove its file"):
        summarize([case(7, post)])


def test_runs_are_found(results):
    rome, ft = results / "ROME", results / "FT"
    with_cases = [rome / "run_000", rome / "run_001", rome / "run_002"]
    assert find_runs(results, ["ROME"]) == with_cases
    assert find_runs(results, ["FT", "ROME"], ["run_000"]) == [ft / "run_000", rome / "run_000"]
    assert find_runs(results, ["ROME"], ["run_002", "run_000"]) == with_cases[::-2]
    assert find_runs(results, ["FT", str(ft), str(ft / "run_000")]) == [ft / "run_000"]
    assert find_runs(results, ["ROME/run_001", "FT"]) == [rome / "run_001", ft / "run_000"]


@pytest.mark.parametrize(
    ("methods", "runs", "message"),
    [
        ([], [], r"--dir_name is missing: .* holds FT, KN, ROME\.$"),
        (
            ["MEND"],
            [],
            r"--dir_name=MEND is neither a path nor a folder in .*, which holds FT, KN, ROME\.$",
        ),
        (
            ["KN"],
            [],
            r"KN has no run with cases \(case_<id>\.json .* AlphaEdit, are read\): evaluate first",
        ),
        (["FT"], ["run_007"], r"--runs=run_007: .*FT has no such run .* there: run_000\.$"),
        (["ROME"], ["run_000", "run_003"], r"--runs=run_003: .* run_000, run_001, run_002\.$"),
        (["KN"], ["run_000"], r"--runs=run_000: .* runs with cases there: none\.$"),
        (["FT/run_000"], ["run_000"], r"--dir_name=FT/run_000 is a run itself: leave out --runs"),
    ],
)
def test_an_error_about_a_missing_run_lists_the_existing_ones(results, methods, runs, message):
    with pytest.raises(ValueError, match=message):
        find_runs(results, methods, runs)


def test_a_missing_results_folder_has_no_runs(tmp_path):
    with pytest.raises(ValueError, match=r"a folder in .*absent, which holds nothing\.$"):
        find_runs(tmp_path / "absent", ["ROME"])
    with pytest.raises(
        ValueError, match=r"ROME has no files of cases \(case_.*: give the folder of a run"
    ):
        read_cases(tmp_path / "ROME")


def test_the_source_of_a_run_is_in_its_run_json(results):
    folder = results / "ROME" / "run_000"
    assert Source.read(folder) is None
    settings = {
        **{"model": "gpt2-xl", "fingerprint": "ab", "precision": "HIGHEST"},
        **{"ds_name": "cf", "dataset": "published", "dataset_sha256": "cd"},
    }
    (folder / "run.json").write_text(json.dumps({"settings": settings}))
    source = Source.read(folder)
    assert (source.model, source.dataset) == ("gpt2-xl", "published")
    for content in ("{", "[]", '{"settings": {"model": "gpt2-xl"}}'):
        (folder / "run.json").write_text(content)
        assert Source.read(folder) is None


def test_the_program_prints_tables(program, results):
    shutil.copytree(GOLDEN / "summarize_run", results / "summarize_run")
    output = results / "new" / "table.csv"
    lines = [
        ["--dir_name=ROME,FT", "--runs=run_000"],
        ["--dir_name=ROME", "--runs=run_001,run_002", "--format=markdown", "--first_n_cases=1"],
        ["--dir_name=ROME,FT", "--format=csv", f"--output={output}"],
        ["--dir_name=summarize_run", "--original"],
    ]
    said = [program(f"--results_dir={results}", *line) for line in lines]
    assert all(result.returncode == 0 for result in said), said
    text, both, written, original = (result.stdout for result in said)
    head, *rows = [line.split() for line in text.splitlines()[:4]]
    assert head[:5] == ["run", "cases", "S", "ES", "EM"]
    assert [row[:2] for row in rows] == [
        ["unedited", "3"],
        ["ROME/run_000", "3"],
        ["FT/run_000", "3"],
    ]
    assert ["0.0 [0.0, 56.1]" in line for line in text.splitlines()[1:4]] == [True, False, True]
    assert "100.0 [43.9, 100.0]" in text.splitlines()[2]

    cf, zsre = both.strip().split("\n\n")
    assert "Efficacy ES" in cf and "Efficacy EA" not in cf
    assert "Efficacy EA" in zsre and "Efficacy ES" not in zsre
    assert all(line.split("|")[2].strip() == "1" for line in cf.splitlines()[2:])

    assert written == f"Written to {output}.\n"
    lines = list(csv.DictReader(output.read_text().splitlines()))
    # One row for the unedited model, although the runs have different numbers of cases.
    assert [line["run"] for line in lines] == [
        *("unedited", "ROME/run_000", "ROME/run_001", "FT/run_000", "ROME/run_002"),
    ]
    assert float(lines[-1]["neighborhood_acc"]) == 25 and lines[-1]["rewrite_success"] == ""
    assert float(lines[1]["rewrite_success_low"]) == pytest.approx(100 * wilson(1.0, 3)[0])
    assert lines[1]["time"] == "1.0", "CSV has all columns"

    (printed,) = json.loads(original)
    assert printed["run_dir"] == str(results / "summarize_run" / "run_000")
    assert printed["post_rewrite_diff"] == [82.53, 8.85] and math.isnan(printed["post_score"][1])
    no_method = refusal(program(f"--results_dir={results}"))
    assert no_method.startswith("Error: --dir_name is missing: name at least one of the folders in")


def test_columns_are_chosen(program, results):
    common = [f"--results_dir={results}", "--dir_name=FT"]
    shown = {
        columns: program(*common, *columns).stdout.splitlines()[0].split()
        for columns in ((), ("--columns=paper",), ("--columns=full",), ("--columns=NS,s",))
    }
    paper, same, full, named = shown.values()
    assert paper == same == "run cases S ES EM PS PM NS NM".split()
    assert full == [*paper, "s"]
    assert named == ["run", "cases", "NS", "s"]
    rows = program(*common, "--format=csv", "--columns=ES").stdout.splitlines()
    assert rows[0].startswith("run,cases,rewrite_success,") and "_diff" not in rows[0]
    unknown = refusal(program(*common, "--columns=ES,XX"))
    assert unknown.startswith("Error: --columns=ES,XX names no known columns: give paper, full, or")


def test_runs_with_the_same_name_are_shown_with_their_paths(program, results, tmp_path):
    other = tmp_path / "other" / "FT"
    shutil.copytree(results / "FT", other)
    result = program(f"--results_dir={results}", f"--dir_name=FT,{other}")
    assert result.returncode == 0, result.stderr
    names = [line.split()[0] for line in result.stdout.splitlines()[1:4]]
    assert names == ["unedited", f"{results}/FT/run_000", f"{other}/run_000"]
