"""Collections that several processes share; here they are threads."""

import itertools
import threading

import numpy as np
import pytest

from rome_jax.files import groups
from rome_jax.files.groups import IncompleteError, ProcessGroup
from rome_jax.moments import files as moment_files
from rome_jax.moments.key_sums import KeySums
from rome_jax.moments.limits import Limit
from tests.groups import together
from tests.moments.examples import tiny_model
from tests.moments.test_collect import Killed, contents, corpus, run, texts, whole

__all__ = ["corpus", "texts", "whole"]  # fixtures


@pytest.fixture(scope="module")
def model(golden_model):
    return tiny_model("some/tiny").replace(tokenizer=golden_model("gpt2").tokenizer)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(groups, "_POLL", 0.01)


def share(model, corpus, directory, count, **changes):
    """Collects in several processes; returns what each raised, or None."""
    works = [lambda group: run(model, corpus, directory, group=group, **changes)] * count
    return together(directory, *works)


@pytest.fixture(scope="module")
def halves(model, corpus, tmp_path_factory):
    """The files of two processes that were not interrupted."""
    directory = tmp_path_factory.mktemp("halves")
    assert share(model, corpus, directory, 2) == [None, None]
    return contents(directory)


def test_several_processes_give_the_result_of_one(model, corpus, whole, tmp_path, halves):
    assert set(halves) == set(whole)
    for name, content in (*whole.items(), *((f"two_{n}", c) for n, c in halves.items())):
        folder = tmp_path / ("two" if name.startswith("two_") else "one")
        folder.mkdir(exist_ok=True)
        (folder / name.removeprefix("two_")).write_bytes(content)
    one, two = (moment_files.load(tmp_path / name, model) for name in ("one", "two"))
    for layer, moment in one.items():
        assert two[layer].count == moment.count
        known, shared = moment.provenance, two[layer].provenance
        assert (shared.rows, shared.articles) == (known.rows, known.articles)
        assert shared.error == pytest.approx(known.error, rel=1e-6)
        difference = np.abs(two[layer].mean - moment.mean).max()
        assert difference <= 2e-7 * np.abs(moment.mean).max()  # the rounding of a float32


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_killed_part_is_resumed_by_any_number_of_processes(
    model, corpus, halves, tmp_path, monkeypatch, count
):
    add, added, place = KeySums.add, itertools.count(), threading.local()

    def die(self, batch):
        if getattr(place, "dies", False) and next(added) == 3:
            raise Killed
        add(self, batch)

    def killed(group):
        place.dies = True
        run(model, corpus, tmp_path, group=group, checkpoint_seconds=0)

    monkeypatch.setattr(KeySums, "add", die)
    first, second = together(
        tmp_path, lambda group: run(model, corpus, tmp_path, group=group), killed
    )
    assert isinstance(first, IncompleteError) and isinstance(second, Killed)
    assert "(parts missing: 1), because process 1 of 2 ended early" in str(first)
    assert {path.name for path in tmp_path.iterdir()} == {
        "unfinished_0_of_2.safetensors",
        "unfinished_1_of_2.safetensors",
    }
    again = []
    monkeypatch.setattr(KeySums, "add", lambda self, batch: again.append(1) or add(self, batch))
    assert set(share(model, corpus, tmp_path, count)) == {None}
    assert contents(tmp_path) == halves
    batches = -(-moment_files.read_provenance(tmp_path / "layer_0.safetensors")[0].rows // 4)
    assert len(again) == batches // 2 - 3  # those of part 1 that were not summed before


def test_a_collection_in_one_part_stays_in_one_part(model, corpus, whole, tmp_path, monkeypatch):
    add, added = KeySums.add, itertools.count()

    def die(self, batch):
        if next(added) == 5:
            raise Killed
        add(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(KeySums, "add", die)
        with pytest.raises(Killed):
            run(model, corpus, tmp_path, checkpoint_seconds=0)
    assert share(model, corpus, tmp_path, 2) == [None, None]
    assert contents(tmp_path) == whole


def test_states_of_different_collections_are_refused(model, corpus, tmp_path):
    for name in ("unfinished.safetensors", "unfinished_0_of_2.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds unfinished\.safetensors, .* of different coll"):
        run(model, corpus, tmp_path)


def test_an_error_needs_one_process(model, corpus, tmp_path):
    with pytest.raises(ValueError, match=r"until_error=0\.1 needs the sums of all processes"):
        run(model, corpus, tmp_path, limit=Limit(error=0.1), group=ProcessGroup(0, 2))


def test_processes_with_other_settings_are_refused(model, corpus, tmp_path):
    def collecting(length):
        return lambda group: run(model, corpus, tmp_path, group=group, sequence_length=length)

    first, second = together(tmp_path, collecting(48), collecting(32))
    assert isinstance(second, ValueError) and "sequence_length is 48 there and 32 here" in str(
        second
    )
    assert isinstance(first, IncompleteError)
