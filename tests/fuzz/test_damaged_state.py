"""Files of runs that are cut short, emptied, or have a changed byte: recomputed, or refused with name and remedy."""

import contextlib
import functools
import random
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest

from rome_jax.edit.hypernetworks import training
from rome_jax.moments import collect
from tests.fuzz import faults
from tests.fuzz.cases import what_is_wrong
from tests.fuzz.commands import program
from tests.fuzz.faults import RUNS, results

pytestmark = pytest.mark.fuzz

# What a run is stopped before, so that its last state is left.
_BEFORE = {"layer_stats": (collect, "_write"), "train_hypernetwork": (training, "_write")}
_SUFFIXES = (".json", ".npz", ".safetensors")
_KINDS = ("cut", "empty", "flip", "flip-again")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """stopped(name) -> the folder of a run that can be resumed, and the results of the resumed run."""

    @functools.cache
    def run(name):
        if name in faults.NEEDS:
            pytest.importorskip(faults.NEEDS[name])
        folder = tmp_path_factory.mktemp(name)
        faults.write_texts(folder)
        before, whole = folder / "before", folder / "whole"
        with _interrupted(name):
            _run(name, folder)
        shutil.copytree(folder / "out", before)
        done = _run(name, folder)
        assert done.returncode == 0, done.stderr
        (folder / "out").rename(whole)
        if name not in _BEFORE:
            # All but the last cases of a finished run have to be computed again.
            shutil.rmtree(before)
            shutil.copytree(whole, before)
            for path in _all_but_last(before.rglob("case_*.json")):
                if "pre" not in path.parts:
                    path.unlink()
        whole.rename(folder / "out")
        found = results(folder)
        shutil.rmtree(folder / "out")
        return before, found

    return run


def _all_but_last(paths):
    """Returns the paths of each folder without the last one."""
    return [path for path in paths if path != max(path.parent.glob("case_*.json"))]


@contextlib.contextmanager
def _interrupted(name):
    if name in _BEFORE:
        with mock.patch.object(*_BEFORE[name], side_effect=KeyboardInterrupt):
            yield
    else:
        yield


def _run(name, folder):
    _, *arguments = faults.resumed(folder, name, RUNS[name].split())
    return program(name)(*arguments, cwd=folder)


def _files(before, name):
    """Returns one file of each kind that a run reads again."""
    found = {}
    for path in sorted(before.rglob("*")):
        inside = path.relative_to(before)
        read = path.suffix in _SUFFIXES or "checkpoints" in inside.parts
        if path.is_file() and read and inside.name != "averages.json":
            found.setdefault(re.sub(r"[0-9a-f]{16,}|\d+", "N", str(inside)), inside)
    return list(found.values())


def _damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind.startswith("flip"):
        place = random.Random(f"{path.name} {kind}").randrange(max(len(content), 1))
        content[place : place + 1] = bytes(byte ^ 4 for byte in content[place : place + 1])
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(kind, content))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("name", RUNS)
def test_damaged_state(name, kind, tmp_path, stopped, record_property):
    before, expected = stopped(name)
    wrong = {}
    for inside in _files(before, name):
        folder = tmp_path / str(inside).replace("/", "_")
        shutil.copytree(before, folder / "out")
        faults.write_texts(folder)
        path = folder / "out" / inside
        _damage(path, kind)
        damaged, done = path.read_bytes(), _run(name, folder)
        if path.exists() and path.read_bytes() == damaged:  # it was not needed
            shutil.copy(before / inside, path)
        if problem := _problem(done, folder, inside, expected):
            wrong[str(inside)] = problem
    record_property("faults", len(_files(before, name)))
    assert not wrong, f"{len(wrong)} of {len(_files(before, name))}: {wrong}"


def _problem(done, folder, inside, expected):
    """Returns what is wrong with the way in which a run took a damaged file."""
    if done.returncode == 0:
        return "" if results(folder) == expected else "other results, and no error"
    if "Traceback" in done.stderr or faults.commands.BUG in done.stderr:
        return done.stderr
    named = [inside.name, *inside.parts[-2:-1], "checkpoints"]
    return what_is_wrong(faults.sentence(done.stderr), *named) and done.stderr
