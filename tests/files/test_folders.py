"""Folders that are created for what is written to them, and their temporary folders."""

import os

import pytest

from rome_jax.files import folders
from rome_jax.files.artifacts import remove_leftovers, replacing
from rome_jax.files.folders import creating, staging
from rome_jax.files.locks import lock


def test_an_exception_removes_the_folders_that_are_empty(tmp_path):
    with pytest.raises(KeyboardInterrupt), creating(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "c" / "d" / "file"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), creating(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    with pytest.raises(KeyboardInterrupt), creating(tmp_path):
        raise KeyboardInterrupt
    assert tmp_path.exists()


def test_a_folder_that_cannot_be_created_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file cannot be written \(Not a directory\): .*"):
        folders.create(tmp_path / "file")
    with pytest.raises(OSError, match="cannot be written"):
        folders.create(tmp_path / "new" / ("x" * 256))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_abandoned_temporary_folders_are_removed(tmp_path):
    abandoned, used = tmp_path / ".saving-abandoned", tmp_path / ".saving-used"
    for folder in (abandoned, used):
        folder.mkdir()
        (folder / "part").touch()
    descriptor = os.open(used, os.O_RDONLY)
    lock(descriptor)
    with staging(tmp_path) as folder:
        assert set(tmp_path.iterdir()) == {used, folder}
        with staging(tmp_path) as second:
            assert folder.exists() and second != folder
    os.close(descriptor)
    assert list(tmp_path.iterdir()) == [used]


def test_files_of_other_programs_are_not_leftovers(tmp_path):
    (tmp_path / ".download.partial").touch()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir())
