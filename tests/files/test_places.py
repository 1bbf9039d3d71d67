"""Places to write to, which are checked before the work whose results go there."""

import os
from pathlib import Path

import pytest

from rome_jax.files.places import check_path, check_writable, check_writable_file


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a file, a folder, a link to nothing and a link to itself."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("broken").symlink_to("nothing")
    Path("loop").symlink_to("loop")
    Path("linked").symlink_to("folder")


@pytest.mark.parametrize("check", [check_path, check_writable, check_writable_file])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "--save is empty: give a path"),
        ("  ", "--save is empty: give a path"),
        ("a\0b", r"--save='a.*b' has a NUL character"),
        ("a" * 256, "--save='aaa.* has a name of more than 255 bytes: give a shorter one"),
        ("é" * 128, ".*has a name of more than 255 bytes"),
        ("a/" * 2048 + "b", ".*is longer than 4095 bytes"),
    ],
)
def test_paths_that_nothing_can_have(check, path, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check(path, "--save")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder", "is the path of a folder: give the path of a file in it"),
        ("linked", "is the path of a folder"),
        ("new/", "is the path of a folder"),
        (".", "is the path of a folder"),
        ("folder/..", "is the path of a folder"),
        ("loop", "leads back to itself"),
        ("file/new", "file is a file: give a folder"),
    ],
)
def test_places_that_are_not_for_files(path, message):
    with pytest.raises(OSError, match=rf"^--save='{path}'.*({message}).*\.$"):
        check_writable_file(path, "--save")


def test_places_for_files():
    for path in (
        "new",
        "file",
        "broken",
        "linked/new",
        "broken/new",
        "a/b/new",
        "a" * 255,
        "/dev/null",
        "./x",
    ):
        assert check_writable_file(path) == Path(path)
    assert not Path("a").exists()


@pytest.mark.parametrize("path", ["file", "file/new", "broken", "broken/new", "loop", "loop/new"])
def test_places_that_are_not_for_folders(path):
    with pytest.raises(NotADirectoryError, match=rf"^--output_dir='{path}': .*: give a"):
        check_writable(path, "--output_dir")


def test_places_for_folders():
    for path in ("new", "folder", ".", "..", "linked/new", "new/"):
        assert check_writable(path) == Path(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    Path("folder").chmod(0o500)
    for check in (check_writable, check_writable_file):
        with pytest.raises(PermissionError, match="folder is not writable: give another folder"):
            check("folder/new")
