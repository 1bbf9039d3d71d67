"""`python -m eval.sequence --ds_name=zsre`: questions of factworld and of a file, and what is refused."""

import json

import pytest

from rome_jax.evaluation import sequence
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, counterfact_records, zsre_records
from tests.programs import Program, refusal

PROGRAMS = ("eval.sequence", "eval.sequential_edits", "eval.mass_edits")
FLAGS = ("--alg_name=FT-L", "--num_edits=2", "--batch_size=2")

pytestmark = pytest.mark.needs("matplotlib")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the same requests in both layouts."""
    folder, world = tmp_path_factory.mktemp("data"), make_world()
    for name, made in (("cf", counterfact_records), ("zsre", zsre_records)):
        (folder / f"{name}.json").write_text(json.dumps(made(world, 0, Role.HELD_OUT, 2)))
    return folder


def test_questions_of_a_file_and_those_of_factworld_are_measured(files, tmp_path, monkeypatch):
    monkeypatch.setattr(sequence, "TEXTS", 8)
    found = {}
    for name, more in (("own", []), ("file", [f"--data_path={files}/zsre.json"])):
        folder = tmp_path / name
        done = Program("eval.sequence")(*FLAGS, "--ds_name=zsre", *more, f"--output_dir={folder}")
        assert done.returncode == 0, done.stderr
        said = "Data        zsre.json; perplexity of locality questions with their answers"
        assert (said in done.stdout) == (name == "file")
        found[name] = json.loads((folder / "sequence.json").read_text())
        assert found[name]["settings"]["ds_name"] == "zsre"
    own, file = (
        [row["newest"] or row["requests"] for row in one["measurements"]] for one in found.values()
    )
    assert own == file and own[0]["neighborhood"] == own[1]["efficacy"] == 100
    other = Program("eval.sequence")(*FLAGS, f"--output_dir={tmp_path}/own")
    assert "ds_name is zsre there and cf here" in refusal(other)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--ds_name=zsre --data_path={}/cf.json", "these are CounterFact records: give ds_name=cf"),
        ("--data_path={}/zsre.json", "these are zsRE records: give ds_name=zsre"),
        ("--ds_name=wiki", "--ds_name=wiki: give one of cf, zsre."),
        ("--ds_name=zsre --data_path=sample", "these are CounterFact records: give ds_name=cf"),
        ("--ds_name=zsre --num_edits=877", "asks for 877 edits, but factworld has 876 records"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    name, flags, said, files, tmp_path, monkeypatch
):
    monkeypatch.setattr("eval.flags.model.load", lambda: pytest.fail("the model is loaded"))
    arguments = flags.format(files).split()
    assert said in refusal(Program(name)(*arguments, f"--output_dir={tmp_path}/out"))
    assert not (tmp_path / "out").exists()


def test_a_figure_of_records_without_neighbors_has_no_line_of_the_unedited_model():
    from rome_jax.plots.sequence_comparison import plot_comparison
    from rome_jax.plots.sequences import plot_edits

    scores = {
        f"{kind}{way}": 50.0 for kind in ("efficacy", "paraphrase") for way in ("", "_generated")
    }
    scores |= {"records": 1, "neighborhood": None, "neighborhood_generated": None}
    row = {
        "edits": 1,
        "newest": scores,
        "earlier": None,
        "perplexity": 2.0,
        "kl": 0.1,
        "norm_ratios": {"0": 0.2},
    }
    before = row | {"edits": 0, "newest": None, "requests": scores, "norm_ratios": {}}
    report = {"model": "m", "settings": {"alg_name": "ROME", "batch_size": 1}, "alarms": []}
    report["measurements"] = [before, row]
    assert not plot_edits(report).axes[2].lines
    neighbors = plot_comparison({"ROME": report}).axes[2]
    assert all(line.get_linestyle() != ":" for line in neighbors.lines)
