"""Comparisons of methods, and `python -m eval.compare` as a user runs it."""

import dataclasses
import re
from pathlib import Path

import pytest

from rome_jax.edit.baseline_config import KNConfig
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.method import METHODS, Editor, MethodName
from rome_jax.evaluation import comparison as comparisons
from rome_jax.evaluation import tables
from rome_jax.evaluation.case_files import read_case, read_cases
from rome_jax.evaluation.columns import PAPER
from rome_jax.evaluation.comparison import (
    evaluate,
    model_config,
    parse_hypernetworks,
    prepare_each,
    select_algorithms,
)
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.evaluation.scoring import MAX_TOKENS
from rome_jax.evaluation.summaries import State, summarize
from tests.evaluation.edits import RandomEdits
from tests.programs import Program, refusal

FOLDER = Path("comparisons", "factworld-gpt2_cf")
THREE = ("ROME", "FT-attn", "KN")


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model("factworld-gpt2")


@pytest.fixture(scope="module")
def dataset(model):
    return load_dataset(DatasetName.CF, model_name=model.name, limit=2)


@pytest.fixture(scope="module")
def editors(model):
    """Fine-tuning, which makes dense edits; and random edits under the name of KN, which are scored in a batch."""
    kinds = {MethodName.FT_ATTN: Editor, MethodName.KN: RandomEdits}
    return {
        algorithm: kind.prepare(algorithm, model, METHODS[algorithm].for_model(model.name))
        for algorithm, kind in kinds.items()
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def run(results, editors, dataset):
    return evaluate(results, editors, dataset, None, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def found(results, editors, dataset):
    return run(results, editors, dataset)


def written(folder):
    """Returns the content of every file, and the time when each case was written."""
    contents = {path: path.read_bytes() for path in folder.rglob("*.json")}
    times = {path: path.stat().st_mtime_ns for path in contents if path.name.startswith("case_")}
    return contents, times


def test_rows_are_the_methods_below_the_unedited_model(found, results, dataset):
    assert list(found) == ["FT-attn", "KN"]
    unedited, *rows = tables.make_rows(found)
    (pre,) = (results / "pre").iterdir()
    scores = [read_case(pre / f"case_{record.case_id}.json") for record in dataset.records]
    assert unedited.name == "unedited" and unedited.num_cases == 2
    assert repr(unedited.metrics) == repr(summarize(scores).state(State.PRE))
    assert unedited.metrics["neighborhood_success"].mean == 100
    for row in rows:
        cases = summarize(read_cases(results / FOLDER / row.name))
        # NaN is not equal to itself, but its text is.
        assert repr(row.metrics) == repr(cases.state(State.POST) | {"time": cases.metrics["time"]})
    assert rows[0].metrics["rewrite_success"].mean == 100  # fine-tuning
    assert rows[1].metrics["rewrite_diff"] != unedited.metrics["rewrite_diff"]


def test_a_second_run_computes_nothing(found, results, editors, dataset, monkeypatch):
    def refuse(editor, requests):
        raise AssertionError(f"{editor.algorithm} edits again")

    before = written(results)
    monkeypatch.setattr(Editor, "compute", refuse)
    monkeypatch.setattr(RandomEdits, "compute", refuse)
    assert repr(run(results, editors, dataset)) == repr(found)
    assert written(results) == before


def test_missing_cases_are_computed_and_further_methods_are_added(
    found, results, editors, dataset, model
):
    config = ROMEConfig(layers=(0,), mom2_adjustment=False, context_template_length_params=())
    rome = {MethodName.ROME: RandomEdits.prepare(MethodName.ROME, model, config)}
    lost = results / FOLDER / "FT-attn" / f"case_{dataset.records[1].case_id}.json"
    lost.unlink()
    _, before = written(results)
    again = run(results, rome | editors, dataset)
    assert list(again) == ["ROME", "FT-attn", "KN"]
    for name, one in found.items():
        assert repr(again[name].state(State.POST)) == repr(one.state(State.POST))
    _, after = written(results)
    assert before.items() < after.items()
    assert {path.parent.name for path in after.keys() - before} == {"FT-attn", "ROME"}
    assert len(after) == len(before) + 3


def test_other_settings_are_refused_before_anything_is_edited(
    found, results, editors, dataset, model
):
    config = dataclasses.replace(KNConfig.for_model(model.name), steps=3)
    other = {MethodName.KN: Editor.prepare(MethodName.KN, model, config)}
    before = written(results)
    with pytest.raises(ValueError, match=r"KN holds .*hyperparameters is .*another --results_dir"):
        run(results, editors | other, dataset)
    changed = dataclasses.replace(dataset, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"_cf holds .*dataset is .*another --results_dir"):
        run(results, editors, changed)
    assert written(results) == before


def test_all_methods_are_in_the_papers_order():
    chosen = select_algorithms(None)
    assert set(chosen) == set(METHODS) and chosen[-1] == MethodName.ROME
    assert select_algorithms(["ROME", "KN"]) == [MethodName.ROME, MethodName.KN]
    assert select_algorithms(["ft-attn", " Rome"]) == [MethodName.FT_ATTN, MethodName.ROME]


@pytest.mark.parametrize("names", [[], ["ROME", "ROME"], ["ROME", "rome"]])
def test_names_of_methods_are_checked(names):
    with pytest.raises(ValueError, match=f"--algs={','.join(names)}: name some of ROME, .*, each"):
        select_algorithms(names)


def test_a_method_that_fails_is_left_out_or_an_error(capsys):
    def prepare(algorithm):
        if algorithm is MethodName.KN:
            raise OSError("there is no file.")
        return algorithm.value

    assert prepare_each([MethodName.KN, MethodName.FT], prepare, strict=False) == {"FT": "FT"}
    assert capsys.readouterr().out == "Left out    KN: there is no file.\n"
    with pytest.raises(ValueError, match=r"^cannot compare KN: there is no file\.$"):
        prepare_each([MethodName.KN, MethodName.FT], prepare, strict=True)
    with pytest.raises(ValueError, match="no method is left to compare"):
        prepare_each([MethodName.KN], prepare, strict=False)


def test_missing_resources_are_named_before_the_model_is_loaded():
    assert model_config(MethodName.ROME, "gpt2-xl", "published").layers == (17,)
    with pytest.raises(ValueError, match="no second moments come with model 'gpt2-xl'"):
        model_config(MethodName.ROME, "gpt2-xl", "shipped")
    with pytest.raises(
        ValueError,
        match=r"no KN hyperparameters are known for model 'gpt2'.*--config=configs/kn.py:gpt2-xl\.$",
    ):
        model_config(MethodName.KN, "gpt2", None)


@pytest.mark.parametrize("text", ["MEND", "MEND=", "KE=ke.pt", "mend.pt", "ROME=x.pt"])
def test_hypernetworks_are_given_by_method(text):
    chosen = [MethodName.MEND, MethodName.ROME]
    assert parse_hypernetworks(["MEND=a=b.pt"], chosen) == {"MEND": "a=b.pt"}
    with pytest.raises(
        ValueError, match=f"--hypernetworks={text}: give METHOD=FILE, where METHOD is MEND or KE"
    ):
        parse_hypernetworks([text], chosen)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors is not a file"):
        model_config(MethodName.MEND, "gpt2-xl", None, "nowhere.safetensors")


@pytest.mark.needs("matplotlib")
def test_the_program_prints_and_writes_the_table_and_refuses_bad_flags(
    found, results, tmp_path, monkeypatch
):
    table, figure = tmp_path / "table.md", tmp_path / "figure.svg"
    common = [f"--results_dir={results}", "--dataset_size_limit=2", "--skip_generation_tests"]
    nowhere = "--second_moments=nowhere.npz"
    lines = [
        [*common, "--algs=KN,FT-attn", f"--output={table}", f"--plot={figure}"],
        [*common, nowhere],
        [*common, nowhere, "--algs=KN,ROME"],
        [*common[:2], "--algs=KN"],
        [*common, "--model_name=distilgpt2"],
        [*common, "--algs=KN,LoRA"],
        [*common, "--algs=KN", "--alg_name=KN"],
        [*common, "--config=configs/kn.py:gpt2-xl"],
        [*common, "--hypernetwork=mend.safetensors"],
    ]
    _, before = written(results)
    three = {name: method for name, method in METHODS.items() if name in THREE}
    monkeypatch.setattr(comparisons, "METHODS", three)
    program = Program("eval.compare")
    said = [program(*line) for line in lines]
    whole, moments, *refused = said
    assert whole.returncode == moments.returncode == 0, said
    named, texts, unknown_model, unknown, both, *others = map(refusal, refused)
    assert written(results)[1] == before

    kept = {name: found[name] for name in ("KN", "FT-attn")}
    rows = tables.select(tables.make_rows(kept), PAPER.values())
    assert tables.render(rows) in whole.stdout
    head = tables.render(rows).splitlines()[0].split()
    assert head[:5] == ["run", "cases", "S", "ES", "EM"]  # the others follow below
    assert [row.name for row in rows] == ["unedited", "KN", "FT-attn"]
    assert table.read_text() == tables.render(rows, tables.TableFormat.MARKDOWN) + "\n"
    assert "<svg" in figure.read_text()

    assert moments.stdout.count("Left out") == 1
    assert re.search(r"\nLeft out    ROME: .*nowhere\.npz", moments.stdout)
    body = next(part for part in moments.stdout.split("\n\n") if part.startswith("run "))
    assert [line.split()[0] for line in body.splitlines()[1:]] == ["unedited", "FT-attn", "KN"]
    assert re.search(r"^Error: cannot compare ROME: .*nowhere\.npz", named)
    assert "generation_seed is None there and 0 here): give another --results_dir" in texts
    assert refused[2].stdout.count("Left out") == 3
    assert "Error: no method is left to compare" in unknown_model
    assert unknown.startswith("Error: --algs=KN,LoRA: name some of ROME, FT-attn, KN, each once")
    assert both == ("Error: --alg_name and --algs both name the methods to compare: leave one out.")
    for name, error in zip(("config", "hypernetwork"), others, strict=True):
        assert error.startswith(f"Error: --{name} applies to one method")


def test_a_single_method_by_alg_name_is_compared_as_by_algs(found, results):
    common = [f"--results_dir={results}", "--num_cases=2", "--nogeneration"]
    one, several = (
        Program("eval.compare")(*common, f"--{flag}=KN") for flag in ("alg_name", "algs")
    )
    assert one.returncode == 0, one.stderr
    assert one.stdout == several.stdout
    assert "\nKN " in one.stdout and "\nFT-attn " not in one.stdout


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--alg_name=memit+blue", ["MEMIT+BLUE"]),
        *(
            (f"--{flag}={name}", [name])
            for flag in ("alg_name", "algs")
            for name in "EMMET PMET+NAS AlphaEdit ENCORE+RECT+PRUNE UltraEdit LocFT-BF".split()
        ),
    ],
)
def test_alg_name_takes_every_method_and_modifier_that_algs_takes(flags, names, monkeypatch):
    asked = []

    def read(algorithms, *_, strict):
        asked.append(algorithms if strict else None)
        raise SystemExit

    monkeypatch.setattr(comparisons, "read_configs", read)
    assert Program("eval.compare")(*flags.split()).returncode == 0
    assert asked == [names]
