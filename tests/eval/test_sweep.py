"""Sweeps over grids of hyperparameters, and `python -m eval.sweep`."""

import contextlib
import csv
import dataclasses
import io
import json
from unittest import mock

import pytest

from rome_jax.edit.baseline_config import FTConfig
from rome_jax.edit.config import KeyMode, ROMEConfig
from rome_jax.edit.method import MethodName
from rome_jax.edit.methods import rome
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.evaluation.grid import Grid, label
from rome_jax.evaluation.scoring import MAX_TOKENS
from rome_jax.evaluation.sweep import Sweep, text_table, write_csv
from rome_jax.factworld.records import Role
from rome_jax.models.interventions import Leaf
from tests.programs import Program, refusal

BASE = ROMEConfig(layers=(0,), v_num_grad_steps=3, context_template_length_params=((3, 1),))
GRID = Grid.parse(["v_lr=0.001,0.5", "clamp_norm_factor=0.1,20"], BASE)
NAMES = [f"v_lr={lr},clamp_norm_factor={norm}" for lr in ("0.001", "0.5") for norm in (0.1, 20)]
DEFAULT_NAME = "ROME_factworld-gpt2_cf_v_lr_clamp_norm_factor"


@pytest.fixture(scope="module")
def sweep(shipped_model):
    """Two records at four points that share one compiled program."""
    model = shipped_model("factworld-gpt2")
    dataset = load_dataset(DatasetName.CF, model_name=model.name, limit=2, role=Role.TUNING)
    return Sweep(GRID, MethodName.ROME, model, dataset)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def run(sweep, results):
    directory = results / "sweeps" / sweep.name
    return sweep.run(directory, results / "pre", batch_size=1, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def first_run(sweep, results):
    """What a sweep finds, and what it prints if every edit counts as too large."""
    output = io.StringIO()
    with mock.patch.object(rome, "EXPLOSION_RATIO", 0.0), contextlib.redirect_stdout(output):
        found = run(sweep, results)
    return found, output.getvalue()


@pytest.fixture(scope="module")
def found(first_run):
    return first_run[0]


def files(folder, pattern="*/case_*.json"):
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


@pytest.mark.parametrize("name", ["../../../escape", "a/b", "..", "/sweep", ""])
def test_a_sweep_name_that_is_a_path_is_refused(tmp_path, name):
    program = Program("eval.sweep")
    message = refusal(
        program(
            "--sweep=layers=0,1", f"--sweep_name={name}", f"--results_dir={tmp_path / 'results'}"
        )
    )
    assert f"--sweep_name={name!r} is not a name" in message
    assert not list(tmp_path.iterdir())


def test_a_point_has_one_line_of_warnings(first_run):
    warnings = [line for line in first_run[1].splitlines() if "Warning" in line]
    assert len(warnings) == len(NAMES)
    assert all(
        line.startswith("  Warning: 2 of 2 edits are too large: the edit") for line in warnings
    )


def test_a_grid_is_every_combination_and_its_last_key_varies_fastest():
    assert [point.name for point in GRID.points] == NAMES
    assert GRID.points[1].config == dataclasses.replace(BASE, v_lr=0.001, clamp_norm_factor=20)


@pytest.mark.parametrize(
    "text, field, expected",
    [
        ("layers=0,2", "layers", [(0,), (2,)]),
        ("layers=(0,),(2,1)", "layers", [(0,), (1, 2)]),
        ("v_lr = 1, 5e-1", "v_lr", [1, 0.5]),
        ("mom2_adjustment=true,False", "mom2_adjustment", [True, False]),
        ("v_num_grad_steps=2.0", "v_num_grad_steps", [2]),
        ("key_mode=reference,'consistent'", "key_mode", list(KeyMode)),
        (
            "context_template_length_params=(),((5,10),)",
            "context_template_length_params",
            [(), ((5, 10),)],
        ),
    ],
)
def test_values_are_literals_and_a_lone_item_is_a_tuple_of_one(text, field, expected):
    assert [getattr(point.config, field) for point in Grid.parse([text], BASE).points] == expected


def test_weights_go_by_their_names_and_none_is_a_value():
    texts = ["leaves=MLP_DOWN,(MLP_DOWN,ATTN_QKV)", "norm_constraint=None,1e-3"]
    points = Grid.parse(texts, FTConfig(layers=(0,))).points
    assert [point.config.leaves for point in points[1:3]] == [
        (Leaf.MLP_DOWN,),
        (Leaf.MLP_DOWN, Leaf.ATTN_QKV),
    ]
    assert [point.config.norm_constraint for point in points] == [None, 1e-3] * 2
    assert points[3].name == "leaves=MLP_DOWN+ATTN_QKV,norm_constraint=0.001"


@pytest.mark.parametrize(
    "texts, sentence",
    [
        ([], "--sweep is missing: .* the hyperparameters are layers, .*, key_mode"),
        (
            ["lr=1"],
            "--sweep='lr=1': there is no hyperparameter 'lr'; the hyperparameters are layers, fact_token",
        ),
        (["v_lr"], "--sweep='v_lr': give values separated by commas, such as v_lr=0.5"),
        (["v_lr=1,,2"], "give values separated by commas"),
        (["v_lr=f(1)"], "give values separated by commas"),
        (["v_lr=0.1,-1"], "--sweep='v_lr=0.1,-1': v_lr=-1: give a number above 0"),
        (["v_lr=high"], "v_lr='high': give a finite number"),
        (["v_lr=1,nan"], "v_lr='nan': give a finite number"),
        (["v_lr=1e400"], "v_lr=inf: give a finite number"),
        (["v_lr=True"], "v_lr=True: give a finite number"),
        (["v_num_grad_steps=2.5"], "v_num_grad_steps=2.5: give an integer"),
        (["mom2_adjustment=maybe"], "mom2_adjustment='maybe': give true or false"),
        (["layers=0.5"], r"layers\[0\]=0.5: give an integer"),
        (
            ["context_template_length_params=((5,),)"],
            r"context_template_length_params\[0\]\[1\] is",
        ),
        (["key_mode=other"], "key_mode='other': give one of reference, consistent"),
        (["v_lr=" + "(" * 5000], "give values separated by commas"),
        ([f"{key}={','.join(map(str, range(1, 200)))}" for key in ("v_lr", "kl_factor")], "39601"),
        (["v_lr=1,1.0"], "--sweep='v_lr=1,1.0': give each value once"),
        (["v_lr=1", "v_lr=2"], "names v_lr, v_lr: give each hyperparameter once"),
    ],
)
def test_a_bad_grid_is_one_sentence(texts, sentence):
    with pytest.raises(ValueError, match=sentence):
        Grid.parse(texts, BASE)


def test_labels_tell_values_apart():
    values = [(0,), (0, 1), ((5, 10), (10, 10)), (), 0.1 + 0.2, 1e-5, 20, None, True]
    expected = ["0", "0+1", "5x10+10x10", "none", "0.3", "1e-05", "20", "None", "True"]
    assert list(map(label, values)) == expected


def test_each_point_is_a_run_of_its_hyperparameters(sweep, results, found):
    assert list(found) == NAMES
    directory = results / "sweeps" / DEFAULT_NAME
    losses = set()
    for point in GRID.points:
        folder = directory / point.name
        params = json.loads((folder / "params.json").read_text())
        assert ROMEConfig.from_dict(params) == point.config
        assert len(files(folder, "case_*.json")) == 2
        case = json.loads(next(folder.glob("case_*.json")).read_text())
        losses.add(case["post"]["rewrite_prompts_probs"][0]["target_new"])
    assert len(losses) == 3  # with the small learning rate the edit stays within both norms
    (pre,) = (results / "pre").iterdir()
    assert len(files(pre, "case_*.json")) == 2
    shared = json.loads((directory / "run.json").read_text())["settings"]
    assert shared["swept"] == ["v_lr", "clamp_norm_factor"]
    assert not set(shared["swept"]) & set(shared["hyperparameters"])


def test_only_missing_cases_are_evaluated_again(sweep, results, found):
    before = files(results / "sweeps" / DEFAULT_NAME)
    lost = sorted(before)[3]
    content = json.loads(lost.read_text())
    lost.unlink()
    again = run(sweep, results)
    after = files(results / "sweeps" / DEFAULT_NAME)
    assert {path for path in before if after[path] != before[path]} == {lost}
    assert json.loads(lost.read_text())["post"] == content["post"]
    for metric in ("post_score", "post_rewrite_diff"):
        assert again[lost.parent.name].metrics[metric] == found[lost.parent.name].metrics[metric]


def test_further_values_belong_to_the_same_sweep(sweep, results, found):
    grid = Grid.parse(["v_lr=0.5,0.1", "clamp_norm_factor=20"], BASE)
    before = files(results / "sweeps" / DEFAULT_NAME)
    more = run(dataclasses.replace(sweep, grid=grid), results)
    assert list(more) == [NAMES[3], "v_lr=0.1,clamp_norm_factor=20"]
    # As texts, because a NaN differs from itself.
    assert repr(more[NAMES[3]].metrics) == repr(found[NAMES[3]].metrics)
    after = files(results / "sweeps" / DEFAULT_NAME)
    assert before.items() < after.items() and len(after) == len(before) + 2


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"grid": Grid.parse(["v_lr=0.5", "clamp_norm_factor=0.1"], ROMEConfig(layers=(1,)))},
            "hyperparameters is .* give another --sweep_name",
        ),
        ({"seed": 1}, "template_seed is 0 there and 1 here.*: give another --sweep_name"),
        (
            {"grid": Grid.parse(["layers=1,9"], BASE)},
            "layers=9 does not exist: the model has layers 0 to 5",
        ),
    ],
)
def test_other_settings_and_unknown_layers_are_refused(sweep, results, found, change, sentence):
    before = files(results, "**/*.json")
    with pytest.raises(ValueError, match=sentence):
        run(dataclasses.replace(sweep, **change), results)
    assert files(results, "**/*.json") == before


def test_the_table_has_a_row_for_the_unedited_model_and_each_point(found, tmp_path):
    head, *rows = text_table(found).split("\n\n")[0].splitlines()
    assert head.split() == ["run", "cases", "S", "ES", "PS", "NS"]
    assert [row.split()[0] for row in rows] == ["unedited", *NAMES]
    write_csv(tmp_path / "sweep.csv", GRID, found)
    with (tmp_path / "sweep.csv").open() as file:
        unedited, *rows = csv.DictReader(file)
    assert (unedited["run"], unedited["v_lr"]) == ("unedited", "")
    assert [(row["v_lr"], row["clamp_norm_factor"]) for row in rows] == [
        (lr, norm) for lr in ("0.001", "0.5") for norm in ("0.1", "20")
    ]
    score = found[NAMES[3]].metrics["post_score"]
    assert float(rows[3]["score"]) == score.mean and rows[3]["cases"] == "2"


@pytest.mark.needs("matplotlib")
def test_the_program_resumes_a_sweep_and_draws_it(sweep, results, found, tmp_path):
    hparams = tmp_path / "hparams.json"
    hparams.write_text(json.dumps(BASE.to_dict()))
    common = [f"--hparams_fname={hparams}", f"--results_dir={results}", "--num_records=2"]
    grid = ["--sweep=v_lr=0.001,0.5", "--sweep=clamp_norm_factor=0.1,20"]
    before = files(results, "**/case_*.json")
    lines = [
        [*common, *grid, "--figure_format=svg"],
        [*common, *grid, "--generation_tests"],
        [*common, "--sweep=v_lrs=1"],
        common,
        ["--model_name=gpt2-xl", "--second_moments=shipped", "--sweep=mom2_adjustment=False,True"],
        [*common, *grid, "--config=configs/rome.py"],
    ]
    program = Program("eval.sweep")
    finished, *refused = [program(*line) for line in lines]
    assert finished.returncode == 0, finished.stderr
    texts, unknown, missing, moments, both = map(refusal, refused)
    directory = results / "sweeps" / DEFAULT_NAME
    assert finished.stdout.rstrip().endswith(f"{directory / 'sweep.svg'}")
    assert "<svg" in (directory / "sweep.svg").read_text()
    assert all(f"\n{name} " in finished.stdout for name in NAMES)
    assert (directory / "sweep.csv").read_text().startswith("v_lr,clamp_norm_factor,run,cases,")
    assert "generation_seed is None there and 0 here): give another --sweep_name" in texts
    assert "there is no hyperparameter 'v_lrs'" in unknown
    assert missing.startswith("Error: --sweep is missing")
    assert moments.startswith("Error: no second moments come with model 'gpt2-xl'")
    assert both.startswith("Error: --config and --hparams_fname both")
    assert files(results, "**/case_*.json") == before


def test_records_without_roles_and_without_generation_prompts_are_announced(monkeypatch, tmp_path):
    def stop(*_, **__):
        raise ValueError("stopped.")

    for program, name in (("eval.sweep", "Sweep"), ("eval.evaluate", "method.prepare")):
        monkeypatch.setattr(f"{program}.{name}", stop)
        more = ["--sweep=layers=0,1"] if program == "eval.sweep" else []
        done = Program(program)("--data_path=sample", f"--results_dir={tmp_path}", *more)
        assert "Data        cf of sample, 20 cases" in done.stdout and "stopped" in done.stderr
        assert ("no records are set apart for tuning: report" in done.stdout) == bool(more)
        assert ("Generation  none, because the records have no" in done.stdout) != bool(more)
