"""Programs that are killed, stopped, or run twice at once, full disks, and caches that cannot be written to.

Each test is one fault and starts processes. tests/fuzz/test_damaged_state.py damages the files of runs.
"""

import dataclasses
import functools
import resource
import signal
import subprocess
import time

import pytest

from tests.fuzz import commands, faults
from tests.fuzz.cases import what_is_wrong
from tests.fuzz.faults import OTHERS, RUNS, finish, left_behind, results, resumed, sentence, start

pytestmark = pytest.mark.fuzz

_TOO_LONG = {"train_factworld"}  # minutes; tests/factworld_training kills it
# What happens to a run, one after the other: a signal before it moves a file into place, or after a part of its time.
_SEQUENCE = (
    ("move", 1, signal.SIGKILL),
    ("move", 2, signal.SIGTERM),
    ("move", 2, signal.SIGKILL),
    ("time", 0.4, signal.SIGINT),
    ("move", 3, signal.SIGKILL),
    ("time", 0.6, signal.SIGKILL),
    ("move", 1, signal.SIGHUP),
)
# Whether a process can have a file system of its own, of a few kilobytes.
_MOUNTS = not subprocess.run(
    "unshare -rm mount -t tmpfs none /mnt", shell=True, capture_output=True
).returncode
needs_mounts = pytest.mark.skipif(not _MOUNTS, reason="needs user namespaces")


@dataclasses.dataclass(frozen=True)
class Whole:
    """The results of an uninterrupted run, and its seconds."""

    results: dict
    seconds: float


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The folder for the compiled programs of all runs."""
    return tmp_path_factory.mktemp("compiled") / "cache"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """whole(name) -> the uninterrupted run of a program."""

    @functools.cache
    def run(name):
        for _ in range(2):  # the first one fills the cache
            folder = tmp_path_factory.mktemp(name)
            began = time.monotonic()
            status, _, errors = finish(begin(folder, cache, name))
            assert status == 0, errors
        return Whole(results(folder), time.monotonic() - began)

    return run


def begin(folder, cache, name, move=0, number=signal.SIGKILL):
    """Starts a run, or resumes it, in a process that gets a signal before a move."""
    if name in faults.NEEDS:
        pytest.importorskip(faults.NEEDS[name])
    faults.write_texts(folder)
    _, *arguments = resumed(folder, name, RUNS[name].split())
    dying = ["tests.fuzz.dying", "moves", str(move), str(int(number)), name, *arguments]
    return start(folder, dying, cache)


def check_resumed(folder, cache, name, expected):
    """Resumes a run, which must end as an uninterrupted one and leave nothing else."""
    status, _, errors = finish(start(folder, resumed(folder, name, RUNS[name].split()), cache))
    assert status == 0, errors
    assert results(folder) == expected.results
    assert not left_behind(folder)


def test_every_program_that_resumes_is_tried():
    resumable = {n for n in commands.program_names() if commands.program(n).program.resumable}
    assert resumable == set(RUNS) | _TOO_LONG


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_killed_and_stopped_again_and_again(name, tmp_path, cache, whole, record_property):
    """A signal other than SIGKILL leaves no temporary file, and the run resumes after each to the same result."""
    expected, wrong, count = whole(name), [], 0
    for kind, place, number in _SEQUENCE:
        before, existing = left_behind(tmp_path), faults.folders(tmp_path)  # by SIGKILL
        process = begin(tmp_path, cache, name, place if kind == "move" else 0, number)
        if kind == "time":
            time.sleep(place * expected.seconds)
            process.send_signal(number)
        _, errors = process.communicate(timeout=faults.SECONDS)
        count += process.returncode != 0
        left = [one for one in left_behind(tmp_path, existing) if one not in before]
        if problem := _problem(process.returncode, number, errors, left):
            wrong.append(f"{number.name} at {kind} {place}: {problem}")
    record_property("faults", count)
    assert not wrong, f"{len(wrong)} of {count}: {wrong}"
    assert count >= len(_SEQUENCE) - 2, "some came too late"
    check_resumed(tmp_path, cache, name, expected)


def _problem(status, number, errors, left):
    """Returns what is wrong with the end of a run that got a signal; it may have ended before."""
    if "Traceback" in errors or "Exception ignored" in errors or commands.BUG in errors:
        return errors
    if status == 0 or (number == signal.SIGKILL and status == -number):
        return ""
    last = [line for line in errors.splitlines() if line and "|" not in line][-1:]  # not a bar
    if status != 128 + number or not last or not last[0].startswith(("Stopped.", "To resume: ")):
        return f"status {status}: {errors[-300:]}"
    return ", ".join(left)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_starts(number, tmp_path, cache):
    process = start(tmp_path, ["eval.edit"], cache)
    time.sleep(0.6)  # it imports the library
    process.send_signal(number)
    status, _, errors = finish(process)
    assert status == 128 + number and errors.strip() == "Stopped."


@pytest.mark.parametrize("name", OTHERS)
def test_an_export_is_killed(name, tmp_path, cache):
    """The same command succeeds afterwards and removes what the killed one left."""
    program, arguments = OTHERS[name]
    more = ["--overwrite"] * (name != "save")

    def run(move):
        dying = ["tests.fuzz.dying", "moves", str(move), "9", program, *arguments.split(), *more]
        return finish(start(tmp_path, dying, cache))[0]

    assert run(0) == 0
    moves, expected = int((tmp_path / "moves").read_text()), results(tmp_path).keys()
    for move in (1, moves):
        assert run(move) == -signal.SIGKILL
    subprocess.run(["rm", "-r", tmp_path / "out"], check=True)
    for move in (1, moves):
        assert run(move) == -signal.SIGKILL
    assert run(0) == 0
    assert not left_behind(tmp_path)
    assert results(tmp_path).keys() == expected


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_in_one_folder(name, tmp_path, cache, whole):
    """Each ends well or in one sentence that names the folder; then the results are those of one process."""
    expected = whole(name)
    ends = [finish(process) for process in [begin(tmp_path, cache, name) for _ in range(2)]]
    assert any(status == 0 for status, _, _ in ends), ends
    for status, _, errors in ends:
        assert status == 0 or not what_is_wrong(sentence(errors), "out"), errors
    assert not left_behind(tmp_path)
    found = results(tmp_path)
    if name == "evaluate":  # each has a run of its own
        assert all(status == 0 for status, _, _ in ends)
        second = {path: found.pop(path) for path in list(found) if "run_001" in path}
        assert len(second) == sum("run_000" in path for path in found)
    assert found == expected.results


_KILOBYTES = {"layer_stats": 1500, "save": 8}  # of a disk that fills up; 24 for the others
ALL = {name: (name, arguments) for name, arguments in RUNS.items()} | OTHERS


@pytest.mark.parametrize("name", ALL)
def test_a_full_disk(name, tmp_path, cache):
    """No file can be written: one sentence names it, and nothing at all is left."""
    program, arguments = ALL[name]
    if program in faults.NEEDS:
        pytest.importorskip(faults.NEEDS[program])

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

    faults.write_texts(tmp_path)
    command = [f"eval.{program}", *arguments.split(), "--nocompilation_cache"]
    status, _, errors = finish(start(tmp_path, command, cache, preexec_fn=fill))
    assert status == 1, errors
    assert not what_is_wrong(sentence(errors), "out"), errors
    assert not (tmp_path / "out").exists()


@needs_mounts
@pytest.mark.parametrize("name", ALL)
def test_a_disk_fills_up(name, tmp_path, cache, whole):
    """One sentence names the place; no temporary file is left; with more space, the run resumes."""
    program, arguments = ALL[name]
    expected = whole(name) if name in RUNS else None
    faults.write_texts(tmp_path)
    disk = f"mount -t tmpfs -o size={_KILOBYTES.get(name, 24)}k none out"
    process = on_a_disk(tmp_path, disk, [f"eval.{program}", *arguments.split()], cache)
    status, _, errors = finish(process)
    (tmp_path / "kept").rename(tmp_path / "out")
    assert status == 1, errors
    assert not what_is_wrong(sentence(errors), "out"), errors
    if any((tmp_path / "out").iterdir()):
        assert not left_behind(tmp_path)
    if name in RUNS:
        check_resumed(tmp_path, cache, name, expected)


@needs_mounts
@pytest.mark.parametrize("name", ALL)
def test_a_folder_that_is_read_only(name, tmp_path, cache):
    """It is refused before the work begins, in one sentence that names it."""
    program, arguments = ALL[name]
    if program in faults.NEEDS:
        pytest.importorskip(faults.NEEDS[program])
    faults.write_texts(tmp_path)
    disk = "mount -t tmpfs -o ro none out"
    process = on_a_disk(tmp_path, disk, [f"eval.{program}", *arguments.split()], cache)
    status, out, errors = finish(process)
    assert status == 1 and not out, errors
    assert not what_is_wrong(sentence(errors), "out"), errors


def on_a_disk(folder, mount, command, cache):
    """Starts a program in a folder whose "out" is on a disk of its own; what it holds is copied to "kept"."""
    (folder / "out").mkdir()
    (folder / "kept").mkdir()
    script = f'{mount} && "$@"; code=$?; cp -a out/. kept; umount out; rmdir out; exit $code'
    line = ["unshare", "-rm", "sh", "-c", script, "sh", *faults.python(*command)]
    streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    env = faults.environment(cache)
    return subprocess.Popen(line, cwd=folder, text=True, env=env, **streams)


_CACHES = {
    "file": ("ROME_JAX_CACHE", "{folder}/texts.txt"),
    "below-a-file": ("ROME_JAX_CACHE", "{folder}/texts.txt/cache"),
    "null": ("ROME_JAX_CACHE", "/dev/null"),
    "proc": ("ROME_JAX_CACHE", "/proc/cache"),
    "xdg-file": ("XDG_CACHE_HOME", "{folder}/texts.txt"),
    "xdg-null": ("XDG_CACHE_HOME", "/dev/null"),
    "xdg-proc": ("XDG_CACHE_HOME", "/proc/1"),
    "no-home": ("HOME", "/nowhere/at/all"),
}


@pytest.mark.parametrize("kind", _CACHES)
def test_a_cache_that_cannot_be_written_to(kind, tmp_path, cache):
    """One warning names it, and the program works."""
    name, value = _CACHES[kind]
    faults.write_texts(tmp_path)
    variables = {k: v for k, v in faults.environment(cache).items() if k != "ROME_JAX_CACHE"}
    variables[name] = value.format(folder=tmp_path)
    if kind == "no-home":
        variables[name] = str(tmp_path / "texts.txt")
    command = ["eval.edit", "--alg_name=FT-L", "--save=out/edit.safetensors"]
    status, out, errors = finish(start(tmp_path, command, cache, env=variables))
    assert status == 0 and "Saved" in out, errors
    (warning,) = [line for line in errors.splitlines() if line.startswith("Warning: ")]
    assert "ROME_JAX_CACHE" in warning and variables[name] in warning
    assert (tmp_path / "texts.txt").is_file()


@pytest.mark.parametrize("kind", ["closed", "full"])
def test_an_output_that_cannot_be_written_to(kind, tmp_path, cache):
    command = ["eval.edit", "--alg_name=FT-L"]
    if kind == "full":
        with open("/dev/full", "w") as full:
            _, errors = start(tmp_path, command, cache, stdout=full).communicate()
    else:
        process = start(tmp_path, command, cache)
        process.stdout.close()
        errors = process.stderr.read()
        process.wait()
    assert "Traceback" not in errors and "Exception ignored" not in errors
    assert not what_is_wrong(sentence(errors), "output")
