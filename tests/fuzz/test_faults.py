"""Programs that are killed, that write to one folder at once, or whose disk is full. Each test starts processes."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.fuzz import commands
from tests.fuzz.cases import litter, what_is_wrong
from tests.programs import ROOT

pytestmark = pytest.mark.fuzz

_SECONDS = 300  # the longest that a command may take
_KILLS = 3
_TIMES = ("time", "wall_time", "compile_time", "seconds", "created", "versions", "flags")
# Small runs of the programs that resume, each writing to the folder "out".
_RUNS = {
    "layer_stats": "--layers=0 --dataset=texts.txt --sample_by=line --batch_tokens=64 --checkpoint_minutes=0 "
    "--output_dir=out",
    "evaluate": "--alg_name=FT-L --num_cases=6 --batch_size=2 --nogeneration --results_dir=out",
    "sweep": "--alg_name=FT-L --sweep=lr=1e-4,1e-3 --num_cases=2 --batch_size=1 --results_dir=out",
    "compare": "--algs=FT-L,KN --num_cases=2 --batch_size=1 --nogeneration --results_dir=out",
    "causal_trace": "--num_cases=4 --kinds=hidden --samples=2 --output_dir=out",
    "train_hypernetwork": "--max_steps=9 --validate_every=3 --batch_size=2 --output_dir=out",
    "mass_edits": "--counts=1,2 --output_dir=out",
}
_NEEDS = {
    "causal_trace": "matplotlib",
    "train_hypernetwork": "matplotlib",
    "mass_edits": "matplotlib",
}
_TOO_LONG = {"train_factworld"}  # minutes; tests/factworld_training kills it


def start(folder, name, arguments, **options):
    (folder / "texts.txt").write_text("".join(f"Town {i} lies in the north.\n" for i in range(400)))
    environment = os.environ | {"ROME_JAX_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-m", f"eval.{name}", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def finish(process):
    out, errors = process.communicate(timeout=_SECONDS)
    assert "Traceback" not in errors and commands.BUG not in errors, errors
    return process.returncode, out, errors


def results(folder):
    """Everything that a run wrote and that does not depend on the time, by path."""
    found = {}
    for path in sorted((folder / "out").rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".npz":
            with np.load(path) as file:
                found[name] = {key: file[key].tolist() for key in file.files if key != "provenance"}
        elif path.suffix == ".safetensors":
            content = path.read_bytes()
            length = int.from_bytes(content[:8], "little")
            found[name] = content[8 + length :]
    return found


def without_times(content):
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key not in _TIMES}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def temporary(folder):
    return litter(
        {}, {path.name: (0, 0) for path in folder.rglob("*") if "cache" not in path.parts}
    )


def test_every_program_that_resumes_is_killed():
    resumable = {n for n in commands.program_names() if commands.program(n).program.resumable}
    assert resumable == set(_RUNS) | _TOO_LONG


@pytest.mark.parametrize("name", _RUNS)
def test_a_killed_program_resumes_to_the_same_result(name, tmp_path):
    """Killed at random moments and started again, it ends as an uninterrupted run does."""
    if name in _NEEDS:
        pytest.importorskip(_NEEDS[name])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    arguments = _RUNS[name].split()
    status, _, errors = finish(start(whole, name, arguments))  # also fills the compilation cache
    assert status == 0, errors
    began = time.monotonic()
    subprocess.run(["rm", "-rf", whole / "out"], check=True)
    assert finish(start(whole, name, arguments))[0] == 0
    seconds = time.monotonic() - began
    generator = random.Random(name)
    for _ in range(_KILLS):
        process = start(killed, name, resumed(killed, name, arguments), start_new_session=True)
        time.sleep(generator.uniform(0.3, 0.95) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    status, _, errors = finish(start(killed, name, resumed(killed, name, arguments)))
    assert status == 0, errors
    assert results(killed) == results(whole)
    assert not temporary(killed)


def resumed(folder, name, arguments):
    """The command that resumes a run; only `evaluate` begins another run unless it is told otherwise."""
    if name == "evaluate" and list(folder.glob("out/*/run_000/run.json")):
        return [*arguments, "--continue_from_run=run_000"]
    return arguments


@pytest.mark.parametrize("name", ["layer_stats", "mass_edits"])
def test_two_processes_in_one_folder(name, tmp_path):
    """Each ends well or in one sentence that names the folder, and at least one ends well."""
    if name in _NEEDS:
        pytest.importorskip(_NEEDS[name])
    arguments = _RUNS[name].split()
    ends = [finish(process) for process in [start(tmp_path, name, arguments) for _ in range(2)]]
    assert any(status == 0 for status, _, _ in ends), ends
    for status, _, errors in ends:
        if status:
            (message,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
            assert not what_is_wrong(message, "out"), message
    assert not temporary(tmp_path)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("edit", ["--alg_name=FT-L", "--save=out/edit.safetensors"]),
        ("edit", ["--alg_name=FT-L", "--export_hf=out/model"]),
        ("edit", ["--alg_name=FT-L", "--export_orbax=out/model"]),
        *((name, arguments.split()) for name, arguments in _RUNS.items()),
    ],
)
def test_a_full_disk(name, arguments, tmp_path):
    """A file that cannot be written ends the program in one sentence that names it, and leaves no part of it."""
    if name in _NEEDS:
        pytest.importorskip(_NEEDS[name])

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

    arguments = [*arguments, "--nocompilation_cache"]
    status, _, errors = finish(start(tmp_path, name, arguments, preexec_fn=fill))
    assert status == 1, errors
    (message,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert not what_is_wrong(message, "out"), message
    assert not temporary(tmp_path)
