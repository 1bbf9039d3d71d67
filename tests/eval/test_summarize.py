"""The numbers of results folders, and `python -m eval.summarize` as a user runs it."""

import csv
import json
import math
import shutil

import pytest

from rome_jax.evaluation.summaries import State, case_metrics, find_runs, read_cases, summarize
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
    """Results whose successes are given, a number a prompt: NLLs 0 and infinity."""

    def prompts(wins, wanted_is_new=True):
        sides = [(0.0, math.inf) if win else (math.inf, 0.0) for win in wins]
        return nlls(*(side if wanted_is_new else side[::-1] for side in sides))

    return {
        "rewrite_prompts_probs": prompts(rewrite),
        "paraphrase_prompts_probs": prompts(paraphrase),
        "neighborhood_prompts_probs": prompts(neighborhood, wanted_is_new=False),
    }


def write_run(folder, cases):
    folder.mkdir(parents=True)
    for one in cases:
        (folder / f"case_{one['case_id']}.json").write_text(json.dumps(one))


@pytest.fixture
def results(tmp_path):
    """ROME with two runs on CounterFact and one on zsRE, FT with one; and runs without cases."""
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
    with Program("eval.summarize") as program:
        yield program


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


def test_cases_count_alike_whatever_their_number_of_prompts():
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


def test_no_score_where_a_part_is_missing():
    assert "score" not in summarize([case(0, counterfact([1], [], [1]))]).state(State.POST)


def test_the_score_varies_as_its_parts_do():
    # All three parts equal in each case: S varies exactly as each of them.
    cases = [case(i, counterfact([win], [win], [win])) for i, win in enumerate((1, 1, 1, 0))]
    post = summarize(cases).state(State.POST)
    assert post["score"].mean == pytest.approx(75)
    assert post["score"].half_width == pytest.approx(post["rewrite_success"].half_width)
    # Efficacy alone varies, about 50: S = 3 / (1/50 + 1/100 + 1/100) = 75, ∂S/∂m = (75/50)²/3 = 3/4, σ = 50.
    cases = [case(i, counterfact([i % 2], [1], [1])) for i in range(4)]
    assert summarize(cases).state(State.POST)["score"].spread == pytest.approx(37.5)
    # The same with the varying part in half of the cases only: half the cases, √2 times the interval.
    cases += [case(i, {**counterfact([], [1], [1])}) for i in range(4, 8)]
    score = summarize(cases).state(State.POST)["score"]
    assert score.count == 8
    assert score.half_width == pytest.approx(1.96 * 37.5 / math.sqrt(4))


def test_a_score_of_zero_has_no_interval():
    score = summarize([case(i, counterfact([1], [0], [i])) for i in range(2)]).metrics["post_score"]
    assert score.mean == 0 and math.isnan(score.spread)


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


def test_an_infinite_perplexity_is_no_warning():
    cases = [case(i, {"essence_score": value}) for i, value in enumerate((math.inf, 1e200, 20.0))]
    assert summarize(cases).metrics["post_essence_score"].mean == math.inf


def test_cases_come_in_order_of_their_ids_and_the_first_are_those_of_the_lowest(results):
    folder = results / "ROME" / "run_000"
    (folder / "case_1.json.partial").write_text("{")
    (folder / "run.json").write_text("{}")
    assert [one["case_id"] for one in read_cases(folder)] == [0, 2, 10]
    assert [one["case_id"] for one in read_cases(folder, 2)] == [0, 2]
    assert len(read_cases(folder, 100)) == 3
    with pytest.raises(ValueError, match=r"--first_n_cases=0: give 1 or more"):
        read_cases(folder, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"case_id": 0', r"case_0\.json is damaged \(Expecting ',' delimiter"),
        ("[]", r"case_0\.json has no case_id: remove it"),
        ('{"post": {}}', r"case_0\.json has no case_id: remove it"),
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
        ([], [], r"--dir_name is missing: .* holds: FT, KN, ROME\.$"),
        (["MEND"], [], r"--dir_name=MEND is no path and not in .*, which holds FT, KN, ROME\.$"),
        (["KN"], [], r"KN has no run with cases: evaluate first"),
        (["FT"], ["run_007"], r"--runs=run_007: .*FT has no such run .* there: run_000\.$"),
        (["ROME"], ["run_000", "run_003"], r"--runs=run_003: .* run_000, run_001, run_002\.$"),
        (["KN"], ["run_000"], r"--runs=run_000: .* runs with cases there: none\.$"),
        (["FT/run_000"], ["run_000"], r"--dir_name=FT/run_000 is a run itself: leave out --runs"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(results, methods, runs, message):
    with pytest.raises(ValueError, match=message):
        find_runs(results, methods, runs)


def test_a_missing_results_folder_holds_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"not in .*absent, which holds nothing\.$"):
        find_runs(tmp_path / "absent", ["ROME"])
    with pytest.raises(ValueError, match=r"ROME has no case_<id>\.json: give the folder of a run"):
        read_cases(tmp_path / "ROME")


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
        ["unedited", "3"],  # one: the two runs agree on it
        ["ROME/run_000", "3"],
        ["FT/run_000", "3"],
    ]
    assert [row[3] for row in rows] == ["0.0±0.0", "100.0±0.0", "100.0±0.0"]

    cf, zsre = both.strip().split("\n\n")
    assert "Efficacy ES" in cf and "Efficacy EA" not in cf
    assert "Efficacy EA" in zsre and "Efficacy ES" not in zsre
    assert all(line.split("|")[2].strip() == "1" for line in cf.splitlines()[2:])

    assert written == f"Written to {output}.\n"
    lines = list(csv.DictReader(output.read_text().splitlines()))
    assert [line["run"] for line in lines if not line["run"].startswith("unedited")] == [
        "ROME/run_000",
        "FT/run_000",
        "ROME/run_001",
        "ROME/run_002",
    ]
    assert float(lines[-1]["neighborhood_acc"]) == 25 and lines[-1]["rewrite_success"] == ""

    (printed,) = json.loads(original)
    assert printed["run_dir"] == str(results / "summarize_run" / "run_000")
    assert printed["post_rewrite_diff"] == [82.53, 8.85] and math.isnan(printed["post_score"][1])
    no_method = refusal(program(f"--results_dir={results}"))
    assert no_method.startswith("Error: --dir_name is missing: give one or several of what")


def test_runs_of_one_name_are_told_apart_by_their_paths(program, results, tmp_path):
    other = tmp_path / "other" / "FT"
    shutil.copytree(results / "FT", other)
    result = program(f"--results_dir={results}", f"--dir_name=FT,{other}")
    assert result.returncode == 0, result.stderr
    names = [line.split()[0] for line in result.stdout.splitlines()[1:4]]
    assert names == ["unedited", f"{results}/FT/run_000", f"{other}/run_000"]
