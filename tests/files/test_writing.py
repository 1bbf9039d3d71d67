"""Files that appear complete or not at all, names that are no paths, and folders in use."""

import errno
import io
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from rome_jax.files.artifacts import remove_leftovers, replacing, write_whole
from rome_jax.files.locks import FolderInUseError, in_use
from rome_jax.files.places import check_name
from rome_jax.files.safetensors_io import read_header, write
from rome_jax.files.system_errors import explaining


def _write_often(path, letter):
    for _ in range(300):
        write_whole(path, letter * 1000)


def test_many_processes_can_write_one_file(tmp_path):
    fork = multiprocessing.get_context("forkserver")
    writers = [
        fork.Process(target=_write_often, args=(tmp_path / "run.json", letter))
        for letter in (b"a", b"b")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert (tmp_path / "run.json").read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("exists", [True, False])
def test_symbolic_links_are_followed(tmp_path, exists):
    target, link = tmp_path / "there" / "run.json", tmp_path / "link.json"
    if exists:
        write_whole(target, b"old")
        target.chmod(0o640)
    link.symlink_to("there/run.json")
    write_whole(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert not exists or target.stat().st_mode & 0o777 == 0o640


def test_link_to_itself_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match=r"link cannot be written \(Too many levels"):
        write_whole(tmp_path / "link", b"")
    assert (tmp_path / "link").is_symlink()


def test_pipes_are_written_to(tmp_path):
    pipe, found = tmp_path / "pipe.safetensors", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    array = np.arange(3, dtype=np.float32)
    write(pipe, {"x": (array.dtype, array.shape)}, [array])
    reader.join()
    assert pipe.is_fifo()
    write_whole(tmp_path / "copy", found[0])
    np.testing.assert_array_equal(read_header(tmp_path / "copy")["x"].read(), array)


@pytest.mark.parametrize("linked", [False, True])
def test_a_full_device_is_named_and_stays(tmp_path, linked):
    path = "/dev/full"
    if linked:
        path = tmp_path / "link"
        path.symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"(full|link) cannot be written \(No space left on device\): free"
    ):
        write_whole(path, b"x" * 100_000)
    assert not os.path.isfile("/dev/full")


def test_standard_output_keeps_what_is_printed(tmp_path):
    program = (
        "from rome_jax.files.artifacts import write_whole; print('before');"
        "write_whole('/dev/stdout', b'written\\n'); print('after')"
    )
    with open(tmp_path / "out.txt", "wb") as file:
        subprocess.run([sys.executable, "-c", program], check=True, stdout=file)
    assert (tmp_path / "out.txt").read_text() == "before\nwritten\nafter\n"
    assert len(list(tmp_path.iterdir())) == 1


class _FullDisk(io.FileIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writer", ["whole", "tensors"])
def test_full_disk_leaves_nothing(tmp_path, monkeypatch, writer):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr("builtins.open", _FullDisk)
    with pytest.raises(OSError, match=r"x.safetensors cannot be written \(No space left"):
        if writer == "whole":
            write_whole(path, b"new")
        else:
            write(path, {"x": (np.dtype(np.int8), (1,))}, [np.zeros(1, np.int8)])
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_an_exception_leaves_nothing(tmp_path):
    def tensors():
        yield np.zeros(1, np.int8)
        raise KeyboardInterrupt

    specs = {name: (np.dtype(np.int8), (1,)) for name in "ab"}
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x.safetensors", specs, tensors())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "kind", "why"),
    [
        ("", IsADirectoryError, "it is a folder"),
        ("file/run.json", NotADirectoryError, "Not a directory"),
        ("x" * 256, OSError, "File name too long"),
    ],
)
def test_impossible_places_are_named(tmp_path, place, kind, why):
    (tmp_path / "file").touch()
    with pytest.raises(kind, match=f"cannot be written \\({why}\\): .*\\.$") as refused:
        write_whole(tmp_path / place, b"")
    assert str(tmp_path) in str(refused.value) and "Errno" not in str(refused.value)
    assert refused.value.errno
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_may_have_the_longest_length(tmp_path):
    write_whole(tmp_path / ("x" * 255), b"1")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"1"


def test_errors_that_are_explained_already_pass():
    inner = PermissionError("runs cannot be written (Permission denied): choose another place.")
    with pytest.raises(PermissionError) as raised, explaining("elsewhere"):
        raise inner
    assert raised.value is inner
    with pytest.raises(OSError, match="tokenizer cannot be written"), explaining("tokenizer"):
        raise Exception("No space left on device (os error 28)")
    with pytest.raises(OSError, match=r"params cannot be written .*: free"), explaining("params"):
        raise ValueError("INTERNAL: Error writing [OS error 28: No space left on device] in ocdbt")
    with pytest.raises(KeyError), explaining("elsewhere"):
        raise KeyError("another error")


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    program = (
        "import os, sys; from rome_jax.files.artifacts import replacing\n"
        "with replacing(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "x"], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "y") as file:
        remove_leftovers(tmp_path)
        file.write(b"in progress")
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "a/b",
        "../up",
        "/no/such/place/x",
        "a\\b",
        "a\0b",
        "a\nb",
        "~",
        "~root",
        "x" * 201,
        "\udc80",
    ],
)
def test_paths_are_no_names(name):
    with pytest.raises(ValueError, match=r"^--sweep_name=.* is not a name: .*\.$") as refused:
        check_name(name, "--sweep_name")
    str(refused.value).encode()


def test_ordinary_names_are_kept():
    for name in ("layers=0,v_lr=0.5", "run_000", "gpt2-xl 2", "Größe", ".hidden", "-1"):
        assert check_name(name, "name") == name


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    program = (
        "import sys; from rome_jax.files.locks import in_use\n"
        "with in_use(sys.argv[1]): print(1, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    other.stdout.read(1)
    refused = pytest.raises(FolderInUseError, match=r"--output_dir=.* is in use by another run")
    with refused, in_use(tmp_path, "--output_dir"):
        pass
    other.kill()
    other.communicate()
    for _ in range(2):
        with in_use(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
