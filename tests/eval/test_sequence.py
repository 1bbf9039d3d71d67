"""`python -m eval.sequence`: what it measures, when it begins again, what it refuses, and its two aliases."""

import dataclasses
import importlib
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import encode
from rome_jax.edit import METHODS, Editor, MethodName, NotFiniteError
from rome_jax.edit.editor_files import ChangedWeight, load_weights
from rome_jax.evaluation import load_dataset, sequence, sequence_run, sequence_scores
from rome_jax.evaluation.sequence_distance import divergence, norm_ratios
from rome_jax.evaluation.sequence_measurement import BROKEN
from rome_jax.evaluation.sequence_run import SequenceRun, run_sequence
from rome_jax.files.locks import FolderInUseError, in_use
from rome_jax.models import forward
from rome_jax.models.interventions import Leaf, Part
from rome_jax.models.runs import read_run
from tests.eval.alike import load_alike
from tests.programs import Program, refusal
from tests.saved import random_delta

NUM_EDITS, BATCH = 9, 3
MEASURED = (3, 6, 9)
TEXT = "Gothulf Punby plays the sport of rowing."


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer texts, tokens and records, and groups of newest edits of which earlier ones are left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "TEXTS", 8)
        patch.setattr(sequence_scores, "NEWEST", 3)
        yield


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model("factworld-gpt2")


@pytest.fixture(scope="module")
def dataset(model):
    """Requests of one length with few short prompts."""

    def short(prompts, count):
        return tuple(p for p in prompts if len(model.tokenizer.encode(p)) <= 12)[:count]

    found = load_alike(model)
    records = tuple(
        dataclasses.replace(
            record,
            paraphrase_prompts=short(record.paraphrase_prompts, 1),
            neighborhood_prompts=short(record.neighborhood_prompts, 2),
        )
        for record in found.records[:NUM_EDITS]
    )
    return dataclasses.replace(found, records=records)


@pytest.fixture(scope="module")
def editor(model):
    """AlphaEdit, whose state grows with every batch, in few steps of v*."""
    name = MethodName.ALPHAEDIT
    config = dataclasses.replace(METHODS[name].for_model(model.name), v_num_grad_steps=4, L2=0.1)
    return Editor.prepare(name, model, config, templates=["{}"])


@pytest.fixture(scope="module")
def opened(editor, dataset):
    """opened(folder) -> the run in a folder."""

    def open_run(folder, **changes):
        options = {"batch_size": BATCH, "sample": 2} | changes
        return SequenceRun.open(folder, editor, dataset, **options)

    return open_run


@pytest.fixture(scope="module")
def whole(opened, tmp_path_factory):
    """A run that was not interrupted."""
    run = opened(tmp_path_factory.mktemp("whole"))
    run.run()
    return run


def numbers(run):
    """All measurements without times, and the bits of the changed weights."""
    rows = [{k: v for k, v in row.items() if k != "seconds_per_edit"} for row in run.rows()]
    params, changed = load_weights(run.state_path, run.editor.model.params)
    return rows, {weight.name: np.asarray(weight.of(params)).tobytes() for weight in changed}


def test_newest_and_earlier_edits_are_measured_apart(whole):
    before, *rows = whole.rows()
    assert [row["edits"] for row in rows] == list(MEASURED)
    assert (before["newest"], before["earlier"], before["kl"]) == (None, None, 0)
    assert before["requests"]["efficacy"] == before["requests"]["efficacy_generated"] == 0
    assert before["requests"]["neighborhood_generated"] == 100
    assert rows[0]["earlier"] is None
    sizes = [(row["newest"]["of"], row["earlier"]["of"]) for row in rows[1:]]
    assert sizes == [(3, 3), (3, 6)]
    for row in rows:
        assert row["requests"] is row["finished"] is row["stopped"] is None
        assert row["newest"]["records"] == 2
        assert row["newest"]["neighbors"] + row["newest"]["neighbors_edited"] == 4
        assert row["kl"] > 0 and row["perplexity"] > 1 and row["residual"] < 1e-6
        assert list(row["norm_ratios"]) == ["0", "1", "2"]
        assert 0 < row["norm_ratios"]["0"] < 5 and row["seconds_per_edit"] > 0
    assert max(row["newest"]["efficacy"] for row in rows) > 0
    about = read_run(whole.directory)
    assert about["settings"]["alg_name"] == "AlphaEdit" and about["templates"] == ["{}"]
    assert about["second_moments"] == dict.fromkeys("012", "verified")
    assert list(whole.report()["falls"]) == ["share", "efficacy", "efficacy_generated"]


def test_a_missing_measurement_from_before_the_state_begins_again(whole, opened, tmp_path):
    shutil.copytree(whole.directory, tmp_path / "run")
    run = opened(tmp_path / "run")
    kept = run.path(3).read_bytes()
    run.path(6).unlink()
    run.run()
    assert numbers(run) == numbers(whole)
    assert run.path(3).read_bytes() == kept


def test_easyedit_668_scores_before_edits_are_those_of_the_unedited_model(whole, opened, tmp_path):
    """There, edits in sequence replace the model that the scores before an edit are measured on."""
    folder = tmp_path / "again"
    shutil.copytree(whole.directory, folder)
    (folder / "edits_00000.json").unlink()
    again = opened(folder)
    again.run()
    before, *after = again.rows()
    assert before == whole.rows()[0]
    assert before["kl"] == 0 < min(row["kl"] for row in after)


def test_what_a_method_does_at_the_end_is_measured_apart(opened, tmp_path, monkeypatch, model):
    make = sequence_run.make_editor
    last = random_delta(model, layers=(5,))

    def finishing(*args, **kwargs):
        return make(*args, **kwargs)._replace(finish=lambda *_: last)

    monkeypatch.setattr(sequence_run, "make_editor", finishing)
    run = opened(tmp_path)
    run.run([NUM_EDITS])
    (row,) = [row for row in run.rows() if row["edits"]]
    assert list(row["finished"]["norm_ratios"]) == ["0", "1", "2", "5"]
    assert row["finished"]["kl"] != row["kl"]


def test_a_run_stops_when_the_model_no_longer_gives_numbers(opened, tmp_path, monkeypatch):
    following = SequenceRun._next

    def failing(self, editor, position):
        if position.state.num_edits == 6:
            raise NotFiniteError("the edit holds numbers that are not finite: lower the rate.")
        return following(self, editor, position)

    monkeypatch.setattr(SequenceRun, "_next", failing)
    run = opened(tmp_path)
    for _ in range(2):  # the second call has nothing to do
        run.run([3, 9])
    rows = run.rows()
    assert [row["edits"] for row in rows] == [0, 3, 6]
    assert [row["stopped"] is not None for row in rows] == [False, False, True]


def test_numbers_that_are_not_finite_are_null_and_raise_an_alarm(model, whole, tmp_path):
    kernel = model.params["blocks"]["mlp"]["down"]["kernel"].at[2].set(jnp.nan)
    down = model.params["blocks"]["mlp"]["down"] | {"kernel": kernel}
    blocks = model.params["blocks"] | {"mlp": model.params["blocks"]["mlp"] | {"down": down}}
    broken = model.replace(params=model.params | {"blocks": blocks})
    weight = frozenset({ChangedWeight(Leaf.MLP_DOWN, Part.KERNEL, 2)})
    state = dataclasses.replace(whole._prepare()[1], num_edits=3)
    row = whole._measure(sequence_run._Position(state, broken, weight), whole.texts)
    assert row["kl"] is row["perplexity"] is row["norm_ratios"]["2"] is None
    assert row["stopped"] == BROKEN and row["newest"]["efficacy"] == 0


def test_kl_is_zero_without_edits_and_that_of_the_logits_with_them(model):
    assert divergence(model, model, [TEXT]) == 0
    kernel = model.params["blocks"]["mlp"]["down"]["kernel"].at[2].multiply(1.5)
    down = model.params["blocks"]["mlp"]["down"] | {"kernel": kernel}
    blocks = model.params["blocks"] | {"mlp": model.params["blocks"]["mlp"] | {"down": down}}
    edited = model.replace(params=model.params | {"blocks": blocks})
    batch = encode(model.tokenizer, [TEXT])
    log_p, log_q = (
        np.asarray(jax.nn.log_softmax(forward.logits(one.params, one.config, batch)), np.float64)[
            0, :-1
        ]
        for one in (model, edited)
    )
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    assert divergence(model, edited, [TEXT]) == pytest.approx(expected, rel=1e-4)
    changed = [ChangedWeight(Leaf.MLP_DOWN, Part.KERNEL, layer) for layer in (1, 2)]
    assert norm_ratios(model.params, edited.params, changed) == {1: 0.0, 2: pytest.approx(0.5)}


def test_other_settings_and_a_folder_in_use_are_refused(whole, opened):
    with pytest.raises(ValueError, match=r"batch_size is 3 there and 2 here.*another --output_dir"):
        opened(whole.directory, batch_size=2)
    with in_use(whole.directory), pytest.raises(FolderInUseError, match="--output_dir="):
        whole.run()
    with pytest.raises(ValueError, match="no batch ends at 5 edits"):
        whole.run([5])


def test_records_of_a_file_have_texts_of_their_own(editor, tmp_path):
    dataset = load_dataset("cf", path="sample", limit=3)
    run = SequenceRun.open(tmp_path, editor, dataset)
    assert run.world is None and len(run.texts) == 3
    assert read_run(tmp_path)["settings"]["dataset"] == "sample"
    bare = tuple(dataclasses.replace(r, neighborhood_prompts=()) for r in dataset.records)
    with pytest.raises(ValueError, match="sample has no neighborhood prompts about other subjects"):
        run_sequence(tmp_path, editor, dataclasses.replace(dataset, records=bare))


@pytest.fixture
def files(dataset, tmp_path):
    """Flags that name a file with one template and one with the requests."""
    templates, data = tmp_path / "templates.json", tmp_path / "cf.json"
    templates.write_text('["{}"]')
    names = ("case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts")
    records = [{name: getattr(one, name) for name in names} for one in dataset.records]
    data.write_text(json.dumps(records))
    return [f"--templates={templates}", f"--data_path={data}", "--config.v_num_grad_steps=4"]


@pytest.mark.needs("matplotlib")
def test_the_program_writes_numbers_a_table_and_a_figure(files, tmp_path):
    flags = ["--alg_name=AlphaEdit", "--num_edits=3", "--batch_size=3", "--config.L2=0.1"]
    flags += [*files, f"--output_dir={tmp_path}/out"]
    program = Program("eval.sequence")
    done = program(*flags)
    assert done.returncode == 0, done.stderr
    assert "Data        cf.json; perplexity of neighborhood prompts" in done.stdout
    first, *_ = (line for line in done.stdout.splitlines() if line.startswith("unedited"))
    assert first.split()[1:7] == ["-"] * 6
    assert "Alarm       none" in done.stdout
    report = json.loads((tmp_path / "out" / "sequence.json").read_text())
    assert [row["edits"] for row in report["measurements"]] == [0, 3]
    assert report["flags"]["chunk_size"] == 8 and report["model"] == "factworld-gpt2"
    assert (tmp_path / "out" / "sequence.png").read_bytes().startswith(b"\x89PNG")
    other = refusal(program(*flags, "--batch_size=2"))
    assert "holds a run of other settings" in other and "give another --output_dir" in other


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--counts=1,0", "--counts='1,0': give whole numbers from 1 to 100"),
        ("--counts=101", "--counts='101': give whole numbers from 1 to 100"),
        ("--counts=1 --every=2", "--counts and --every both say when to measure: leave one out"),
        ("--num_edits=900", "--num_cases asks for 900 edits, but factworld has 876 records: give"),
        ("--batch_size=0", "--batch_size=0: give an integer from 1 to"),
        ("--alg_name=MEMIT --hypernetwork=x", "--hypernetwork=x is only for MEND and KE"),
        ("--data_path=nowhere.json", "nowhere.json"),
    ],
)
@pytest.mark.needs("matplotlib")
def test_what_cannot_be_measured_is_refused_before_the_model_loads(flags, said, tmp_path):
    program = Program("eval.sequence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.flags.model.load", lambda: pytest.fail("the model is loaded"))
        assert said in refusal(program(*flags.split(), f"--output_dir={tmp_path}"))


# The defaults of the other programs, as flags of eval.sequence.
ALIASES = {
    "eval.sequential_edits": "--alg_name=ROME --num_edits=200 --batch_size=1 --every=20 --output_dir=sequential",
    "eval.mass_edits": "--alg_name=MEMIT --num_edits=100 --batch_size=100 --output_dir=mass_edits",
}


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_has_the_defaults_that_it_says(alias, tmp_path, monkeypatch):
    asked = []

    def opened(directory, editor, dataset, **options):
        asked.append([str(directory), editor.name, len(dataset.records), options["batch_size"]])
        return SimpleNamespace(run=asked[-1].append, report=dict)

    monkeypatch.setattr(SequenceRun, "open", opened)
    monkeypatch.setattr("eval.sequence.report_edits", lambda *_: None)
    for name, flags in ((alias, []), ("eval.sequence", ALIASES[alias].split())):
        done = Program(name)(*flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert asked[0] == asked[1]
    words = f"{asked[0][1]}, {asked[0][2]} edits in"
    assert words in importlib.import_module(alias).__doc__


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_measures_the_same_bits_as_eval_sequence(alias, files, tmp_path):
    given, found = [*files, "--num_edits=3"], []
    explicit = [*ALIASES[alias].replace("100", "3").split(), *given]
    for name, flags in ((alias, given), ("eval.sequence", explicit)):
        folder = tmp_path / name
        done = Program(name)(*flags, f"--output_dir={folder}")
        assert done.returncode == 0, done.stderr
        report = json.loads((folder / "sequence.json").read_text())
        for row in report["measurements"]:
            row.pop("seconds_per_edit")
        state = (folder / "state.safetensors").read_bytes()
        header = int.from_bytes(state[:8], "little")  # which holds times
        found.append([report["settings"], report["measurements"], state[8 + header :]])
    assert found[0] == found[1]
    assert [row["edits"] for row in found[0][1]] == [0, 3]
    assert found[0][1][-1]["kl"] > 0


@pytest.mark.needs("matplotlib")
def test_an_alias_says_how_to_resume_itself(tmp_path, monkeypatch):
    def stopped(self, points):
        raise KeyboardInterrupt

    monkeypatch.setattr(SequenceRun, "run", stopped)
    done = Program("eval.mass_edits")("--num_edits=2", f"--output_dir={tmp_path}")
    assert done.returncode == 130
    assert f"python -m eval.mass_edits --num_edits=2 --output_dir={tmp_path}" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "eval.mass_edits --data_path=sample --num_edits=30",
            "sample has 20 records: give at most 20",
        ),
        (
            "eval.mass_edits --model_name=gpt2-xl --second_moments=shipped",
            "no second moments come with",
        ),
        ("eval.sequential_edits --config.layers=6", "layers=6"),
    ],
)
@pytest.mark.needs("matplotlib")
def test_an_alias_refuses_before_the_model_loads(flags, said, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.flags.model.load", lambda: pytest.fail("the model is loaded"))
    name, *arguments = flags.split()
    assert said in refusal(Program(name)(*arguments, f"--output_dir={tmp_path}"))
