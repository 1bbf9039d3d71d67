"""A sequence that is killed at random steps and resumed equals the uninterrupted one, whatever its editor carries.

A step is an edit of a batch or a file that is moved into place, and a run is killed before or after it. In
tests/fuzz/test_faults.py whole processes are killed.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_jax.edit import METHODS, Editor, MethodName
from rome_jax.edit.editor_files import load_state, load_weights
from rome_jax.evaluation import sequence, sequence_run, sequence_scores
from rome_jax.evaluation.sequence_run import SequenceRun
from rome_jax.files.safetensors_io import open_file
from tests.eval.alike import load_alike

NUM_EDITS, BATCH, POINTS = 8, 2, (4, 8)
FEW_STEPS = {"v_num_grad_steps": 3}
# What each editor carries from batch to batch; the last one carries nothing.
EDITORS = {
    "AlphaEdit": (MethodName.ALPHAEDIT, FEW_STEPS | {"L2": 0.1}, {"past"}),
    "AlphaEdit+BLUE+NAS": (
        MethodName.ALPHAEDIT,
        FEW_STEPS | {"L2": 0.1, "modifiers": ("BLUE", "NAS"), "clamp_norm_factor": 0.1},
        {"past", "anchors"},
    ),
    "ENCORE": (MethodName.ENCORE, FEW_STEPS, {"past"}),
    "UltraEdit": (MethodName.ULTRAEDIT, {}, {"normalizers"}),
    "MEMIT, warm start": (MethodName.MEMIT, FEW_STEPS | {"v_warm_start": True}, {"earlier"}),
    "MEMIT": (MethodName.MEMIT, FEW_STEPS, set()),
}
# How often a state is saved between measurements: after every batch, or never.
SAVE_SECONDS = st.sampled_from([-1.0, 60.0])


class Killed(BaseException):
    """The end of a process, which nothing may catch."""


class Steps:
    """Counts the steps of a run, and kills it at one of them."""

    def __init__(self, patch, last=None):
        self.count, self.begun, self._last = 0, [], last
        self._around(patch, Path, "replace")
        self._around(patch, SequenceRun, "_next")

    def _around(self, patch, owner, name):
        original = getattr(owner, name)

        def stepping(own, *arguments):
            self._step()
            if name == "_next":
                self.begun.append(arguments[1].state.num_edits)
            found = original(own, *arguments)
            self._step()
            return found

        patch.setattr(owner, name, stepping)

    def _step(self):
        self.count += 1
        if self.count == self._last:
            raise Killed


@pytest.fixture(scope="module", autouse=True)
def small():
    """Few texts, short generations, and groups of newest edits of which earlier ones are left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "TEXTS", 4)
        patch.setattr(sequence_scores, "NEWEST", BATCH)
        patch.setattr(sequence_scores, "_ROWS", 8)
        yield


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model("factworld-gpt2")


@pytest.fixture(scope="module")
def dataset(model):
    """Requests of one length with few prompts."""
    found = load_alike(model)
    records = tuple(
        dataclasses.replace(
            record, paraphrase_prompts=(), neighborhood_prompts=record.neighborhood_prompts[:1]
        )
        for record in found.records[:NUM_EDITS]
    )
    return dataclasses.replace(found, records=records)


class Case:
    """An editor with its uninterrupted run."""

    def __init__(self, name, model, dataset):
        method, changes, self.carried = EDITORS[name]
        config = dataclasses.replace(METHODS[method].for_model(model.name), **changes)
        templates = ["{}"] if config.template_lengths is not None else None
        self._editor = Editor.prepare(method, model, config, templates=templates)
        self._dataset = dataset
        with tempfile.TemporaryDirectory() as folder:
            self.steps = {60.0: self.run(folder, 60.0).count}
            self.result = self.read(folder)
            self.carries = self.open(folder)._prepare()[1]
            self.carries = load_state(self.open(folder).state_path, self.carries)
        with tempfile.TemporaryDirectory() as folder:
            self.steps[-1.0] = self.run(folder, -1.0).count
            assert self.read(folder) == self.result

    def open(self, folder):
        return SequenceRun.open(folder, self._editor, self._dataset, batch_size=BATCH, sample=2)

    def run(self, folder, save_seconds, last=None):
        """Begins or resumes a run, which is killed at a step; returns the steps that it took."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sequence_run, "_SAVE_SECONDS", save_seconds)
            steps = Steps(patch, last)
            try:
                self.open(folder).run(POINTS)
            except Killed:
                assert steps.count == last
            return steps

    def saved(self, folder):
        """The number of edits in the saved state; 0 if there is none."""
        path = self.open(folder).state_path
        return header(path)["fields"]["num_edits"] if path.exists() else 0

    def read(self, folder):
        """All measurements without times, the changed weights, and the tensors and the header of the state."""
        run = self.open(folder)
        rows = [
            {name: value for name, value in row.items() if name != "seconds_per_edit"}
            for row in run.rows()
        ]
        _, changed = load_weights(run.state_path, run.editor.model.params)
        tensors = {
            name: (str(tensor.dtype), tensor.shape, tensor.read().tobytes())
            for name, tensor in open_file(run.state_path).tensors.items()
        }
        return rows, sorted(changed), tensors, header(run.state_path)["fields"]


def header(path):
    """The header of the state of an editor."""
    (text,) = (text for text in open_file(path).metadata.values() if "num_edits" in text)
    return json.loads(text)


@pytest.fixture(scope="module")
def case(request, model, dataset):
    return Case(request.param, model, dataset)


@pytest.mark.parametrize("case", EDITORS, indirect=True)
@settings(deadline=None, max_examples=4)
@given(data=st.data())
def test_a_run_that_is_killed_at_random_steps_equals_the_uninterrupted_one(case, data):
    save_seconds = data.draw(SAVE_SECONDS, "seconds between saved states")
    kills = st.lists(st.integers(1, case.steps[save_seconds]), min_size=1, max_size=2)
    with tempfile.TemporaryDirectory() as folder:
        for step in data.draw(kills, "steps at which the run is killed"):
            case.run(folder, save_seconds, step)
        saved = case.saved(folder)
        resumed = case.run(folder, save_seconds)
        assert resumed.begun == list(range(saved, NUM_EDITS, BATCH)), "only what is missing is done"
        assert case.read(folder) == case.result
        assert not case.run(folder, save_seconds).begun, "existing measurements are kept"


@pytest.mark.parametrize("case", EDITORS, indirect=True)
def test_an_editor_carries_what_it_is_chosen_for(case):
    rows, changed, *_ = case.result
    assert [row["edits"] for row in rows] == [0, *POINTS]
    assert changed and all(row["kl"] > 0 for row in rows[1:])
    assert case.steps[-1.0] > case.steps[60.0] > 4 * len(POINTS)
    fields = ("past", "normalizers", "anchors", "earlier")
    assert {name for name in fields if getattr(case.carries, name)} == case.carried
