"""`python -m eval.mass_edits` with a few edits, and how it resumes."""

import dataclasses
import json

import pytest

from rome_jax.edit.method import METHODS, Editor, MethodName
from rome_jax.evaluation import mass_edits as mass_edit_runs
from rome_jax.evaluation.datasets import DatasetName, load_dataset
from rome_jax.evaluation.mass_edits import MassEdits, choose_records, read_counts
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, edit_requests
from rome_jax.files.checksums import METADATA_KEY
from rome_jax.files.locks import FolderInUseError, in_use
from rome_jax.models.runs import read_run
from tests.programs import Program, refusal


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder that the program has filled with measurements of two and three edits."""
    folder = tmp_path_factory.mktemp("mass")
    done = Program("eval.mass_edits")("--counts=3,2", "--chunk_size=1", f"--output_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.needs("matplotlib")
@pytest.mark.slow
def test_the_program_writes_numbers_and_a_figure(written):
    report = json.loads((written / "mass_edits.json").read_text())
    about = read_run(written)
    assert about["second_moments"]["ROME"] == {"0": "verified"}
    assert about["second_moments"]["MEMIT"] == dict.fromkeys("012", "verified")
    assert list(report["runs"]) == ["ROME", "MEMIT"]
    for rows in report["runs"].values():
        assert [row["edits"] for row in rows] == [2, 3]
        assert rows[-1]["retention"] == 100
        assert rows[-1]["neighborhood"] >= 80
        assert rows[0]["seconds"] > 0
    rome = report["runs"]["ROME"]
    assert rome[0]["seconds"] < rome[1]["seconds"], "a sequence continues from the earlier edits"
    assert report["before"]["retention"] == 0
    assert report["before"]["neighborhood"] >= 95
    assert report["settings"]["MEMIT"]["layers"] == [0, 1, 2]
    assert (written / "mass_edits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.needs("matplotlib")
@pytest.mark.slow
def test_existing_measurements_are_kept(written, world, shipped_model, monkeypatch):
    model = shipped_model("factworld-gpt2")
    editors = [
        Editor.prepare(algorithm, model, METHODS[algorithm].for_model(model.name), chunk_size=1)
        for algorithm in (MethodName.ROME, MethodName.MEMIT)
    ]
    mass = MassEdits.open(written, editors, world, 0)
    missing = mass.path(MethodName.MEMIT, 2)
    old = json.loads(missing.read_text())
    missing.unlink()
    asked = []

    def models(editor, records, counts):
        asked.append((editor.algorithm, counts))
        return mass_edit_runs.memit_models(editor, records, counts)

    monkeypatch.setattr(mass_edit_runs, "_MODELS", dict.fromkeys(MethodName, models))
    mass.measure([3, 2])
    assert asked == [(MethodName.ROME, []), (MethodName.MEMIT, [2])]
    new = json.loads(missing.read_text())
    assert new.pop(METADATA_KEY)
    for name in ("edits", "retention", "paraphrase", "neighborhood"):
        assert new[name] == old[name]
    assert new["perplexity"] == pytest.approx(old["perplexity"], rel=1e-5)

    with pytest.raises(ValueError, match=r"seed is 0 there and 1 here.*give another --output_dir"):
        MassEdits.open(written, editors, world, 1)
    with in_use(written), pytest.raises(FolderInUseError, match=r"--output_dir=.* is in use"):
        mass.measure([3, 2])
    for damage, wrong in (
        ("{", "ends within a value .*remove it"),
        ("[]", "is not a JSON object: remove it"),
        (json.dumps(new | {"perplexity": float("nan")}), ": perplexity=nan: give a finite number"),
    ):
        missing.write_text(damage)
        with pytest.raises(ValueError, match=rf"MEMIT_0002\.json ?{wrong}"):
            mass.report([3, 2])
    missing.write_text("{")
    with pytest.raises(ValueError, match=r"MEMIT_0002\.json ends within a value .*remove it"):
        mass.report([2])


def test_held_out_requests_come_first(world):
    records = choose_records(world, 0)
    held_out = {request.case_id for request in edit_requests(world, 0, Role.HELD_OUT)}
    assert len(records) == len({record.case_id for record in records}) == 1000
    assert {record.case_id for record in records[: len(held_out)]} == held_out
    assert len(held_out) == 876, "the number in the help of eval.mass_edits"


def test_records_of_a_file_are_edited_in_place_of_factworlds(shipped_model, tmp_path):
    model = shipped_model("factworld-gpt2")
    editor = Editor(MethodName.ROME, model, METHODS[MethodName.ROME].for_model(model.name), 0, {})
    dataset = load_dataset(DatasetName.CF, path="sample")
    mass = MassEdits.open(tmp_path, [editor], dataset, 0)
    assert mass.world is None and mass.records == dataset.records
    assert len(mass.texts) == 20
    assert read_run(tmp_path)["settings"]["dataset_sha256"] == dataset.sha256
    fewer = dataclasses.replace(dataset, sha256="0")
    with pytest.raises(ValueError, match=r"dataset is sample .* there and sample \(0\) here"):
        MassEdits.open(tmp_path, [editor], fewer, 0)
    with pytest.raises(ValueError, match=r"covariance is None there and published here"):
        MassEdits.open(tmp_path, [editor], dataset, 0, "published")


def test_more_edits_than_records_and_missing_second_moments_are_refused():
    program = Program("eval.mass_edits")
    more = refusal(program("--data_path=sample", "--counts=1,30"))
    assert "--counts asks for 30 edits, but sample has 20 records: give at most 20" in more
    none = refusal(program("--model_name=gpt2-xl", "--second_moments=shipped"))
    assert "no second moments come with model 'gpt2-xl': leave out --second_moments" in none


def test_counts_are_whole_numbers_up_to_a_thousand():
    assert read_counts(["30", "1", "1000", "1"]) == [1, 30, 1000]
    for wrong in ([], ["0"], ["1001"], ["1", "x"], ["-3"], ["1.5"]):
        with pytest.raises(ValueError, match=r"--counts=.*give whole numbers from 1 to 1000"):
            read_counts(wrong)
