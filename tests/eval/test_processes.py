"""Runs that several processes share: threads in the fast tests, and real processes in the slow ones."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from rome_jax.evaluation import run as evaluation_run
from rome_jax.evaluation.case_files import read_cases
from rome_jax.evaluation.run import EvaluationRun
from rome_jax.evaluation.run_settings import Settings
from rome_jax.files import groups
from rome_jax.files.groups import GroupError, IncompleteError
from rome_jax.moments import files as moment_files
from rome_jax.trace import folder as folder_module
from rome_jax.trace.facts import KnownFact
from rome_jax.trace.folder import RunFolder
from rome_jax.trace.noise import Distribution, Noise
from rome_jax.trace.protocol import Protocol, Series
from rome_jax.trace.result import SkippedCase, load_trace
from tests.eval import test_evaluate
from tests.eval.test_causal_trace import SETTINGS
from tests.eval.test_evaluate import config, contents, dataset, editor, model
from tests.groups import together
from tests.programs import ROOT, Program, refusal

__all__ = ["config", "dataset", "editor", "model"]  # fixtures
PLACE = ["--coordinator_address=localhost:1", "--num_processes=2", "--process_id=0"]


@pytest.fixture
def quick(monkeypatch):
    """No waiting, and no model: the scores of a case say which batch it was in, the traces nothing."""
    monkeypatch.setattr(groups, "_POLL", 0.01)

    def score(records):
        likelihoods = {"target_new": 1.0, "target_true": float(sum(r.case_id for r in records))}
        return {"rewrite_prompts_probs": [likelihoods]}

    def edit(editor, name, records, pre, options):
        return [
            {"case_id": r.case_id, "post": score(records), "pre": pre[r.case_id]} for r in records
        ]

    def trace(model, fact, protocol, series, provenance):
        about = {"known_id": fact.known_id, "measure": protocol.measure.value}
        return [(one, SkippedCase("unknown", {**about, "series": one.value})) for one in series]

    monkeypatch.setattr(
        evaluation_run,
        "evaluate_records",
        lambda model, name, records, **_: [score(records) for _ in records],
    )
    monkeypatch.setattr(evaluation_run, "edit_batch", edit)
    monkeypatch.setattr(folder_module, "trace_case", trace)


@pytest.fixture
def alone(quick, tmp_path, editor, dataset):
    """The cases of an evaluation in one process."""
    return contents(evaluating(tmp_path / "alone", editor, dataset)(groups.ALONE))


def evaluating(results_dir, editor, dataset, continue_from=None):
    """The work of one process of an evaluation."""

    def work(group):
        settings = Settings.of(editor, dataset, None)
        run = EvaluationRun.open(results_dir, settings, continue_from, group=group)
        run.evaluate(editor, dataset, None, batch_size=2, max_tokens=16_384, group=group)
        return run.directory

    return work


def test_an_evaluation_has_the_same_files_however_many_processes(alone, tmp_path, editor, dataset):
    root = tmp_path / "shared"
    found = together(root, *[evaluating(root, editor, dataset)] * 2)
    assert found == [root / "ROME" / "run_000"] * 2
    assert contents(found[0]) == alone
    assert {path.name for path in root.iterdir()} == {"ROME", "pre"}


def test_the_cases_of_a_process_that_fails_are_taken_up(alone, tmp_path, editor, dataset):
    def fail(group):
        run = EvaluationRun.open(tmp_path, Settings.of(editor, dataset, None), group=group)
        with group.working_in(run.directory, "the run", list):
            raise RuntimeError("no memory")

    work = evaluating(tmp_path, editor, dataset)
    first, _, last = together(tmp_path, work, fail, work)
    for error in (first, last):
        assert isinstance(error, IncompleteError)
        assert "(cases missing: 1), because process 1 of 3 ended early" in str(error)
    directory = tmp_path / "ROME" / "run_000"
    assert len(read_cases(directory)) == len(dataset.records) - 1
    again = evaluating(tmp_path, editor, dataset, "run_000")
    assert together(tmp_path, again, again) == [directory, directory]
    assert contents(directory) == alone


def test_processes_must_be_started_alike(quick, tmp_path, editor, dataset):
    other = test_evaluate.Together.prepare(editor.algorithm, editor.model, editor.config, seed=1)
    works = [evaluating(tmp_path, one, dataset) for one in (editor, other)]
    first, second = together(tmp_path, *works)
    assert isinstance(first, IncompleteError)
    assert "template_seed is 0 there and 1 here): start all processes alike" in str(second)


def test_facts_are_traced_once_each(quick, tmp_path, monkeypatch):
    facts = [KnownFact(number, "Rome", "Italy", "Rome is in") for number in range(5)]
    protocol = Protocol(Noise(Distribution.GAUSSIAN, 0.5))
    traced, save = [], folder_module.save_trace
    monkeypatch.setattr(
        folder_module, "save_trace", lambda *file: traced.append(file[0]) or save(*file)
    )

    def work(group):
        folder = RunFolder.open(tmp_path / "run", SETTINGS, group=group)
        folder.run(None, facts, protocol, [Series.HIDDEN], group)
        return [case.provenance["known_id"] for case in folder.results(facts, Series.HIDDEN)]

    assert together(tmp_path, work, work) == [list(range(5))] * 2
    assert len(traced) == 5
    (tmp_path / "run" / "cases" / "knowledge_3.npz").unlink()
    assert together(tmp_path, work, work, work) == [list(range(5))] * 3
    assert len(traced) == 6


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("eval.evaluate", ["--num_processes=2"], "--coordinator_address and --process_id is miss"),
        ("eval.causal_trace", ["--process_id=2"], "--coordinator_address and --num_processes is"),
        ("eval.evaluate", [*PLACE, "--process_id=2"], "give 0 to 1, because there are 2 processes"),
        ("eval.evaluate", [*PLACE, "--coordinator_address=node1"], "give a host and a port"),
        ("eval.layer_stats", ["--published", "--distributed"], "the processes cannot find each "),
    ],
)
def test_flags_that_describe_no_group_are_refused(program, arguments, said, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", refuse)
    folder = "results_dir" if program == "eval.evaluate" else "output_dir"
    error = refusal(Program(program)(*arguments, f"--{folder}={tmp_path / 'new'}"))
    assert said in error
    assert not list(tmp_path.iterdir())


def refuse(*arguments, **options):
    raise ValueError("coordinator_address should be defined.")


def test_the_environment_describes_a_group(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "jax.distributed.initialize", lambda *place, **options: seen.append(place) or refuse()
    )
    program = Program("eval.evaluate")
    with socket.create_server(("localhost", 0)) as coordinator:
        address = f"localhost:{coordinator.getsockname()[1]}"
        environment = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "4"}
        for name, value in {**environment, "JAX_PROCESS_ID": "3"}.items():
            monkeypatch.setenv(name, value)
        refusal(program("--distributed", f"--results_dir={tmp_path}"))
    assert seen == [(address, 4, 3)]
    monkeypatch.setenv("JAX_NUM_PROCESSES", "many")
    error = refusal(program("--distributed", f"--results_dir={tmp_path}"))
    assert error == "Error: JAX_NUM_PROCESSES='many': give an integer."


def test_one_prompt_is_for_one_process():
    prompt = ["--prompt={} plays the sport of", "--subject=Gothulf Punby"]
    error = refusal(Program("eval.causal_trace")(*prompt, *PLACE))
    assert error.startswith("Error: --coordinator_address is for many prompts: remove it")


# Real processes.


def start(program, *arguments, count=2):
    """Starts the processes of a run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = [f"--coordinator_address=localhost:{port}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", program, *arguments, *place),
                *(f"--process_id={index}", "--process_timeout=8"),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes):
    """Waits for processes, and returns the output of the first; all must succeed."""
    ends = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in ends]


@pytest.fixture
def cached(tmp_path_factory, monkeypatch):
    """Compiled programs that the processes share."""
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "processes"))


def scores(directory):
    """The scores in all case files of a run, by name."""
    cases = {path.name: json.loads(path.read_text()) for path in directory.glob("case_*.json")}
    return {name: (case["pre"], case["post"]) for name, case in cases.items()}


@pytest.mark.slow
def test_an_evaluation_survives_the_end_of_a_process(cached, tmp_path):
    arguments = ["--alg_name=FT-L", "--num_cases=6", "--batch_size=1", "--nogeneration"]
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    processes = start("eval.evaluate", *arguments, f"--results_dir={killed}")
    run = killed / "FT-L" / "run_000"
    while not list(run.glob("case_*")) and processes[1].poll() is None:
        time.sleep(0.02)
    os.kill(processes[1].pid, signal.SIGKILL)
    _, errors = processes[0].communicate(timeout=300)
    processes[1].communicate()
    assert processes[0].returncode == 1
    assert "because process 1 of 2 ended early" in errors
    assert (
        "To resume: python -m eval.evaluate" in errors and "--continue_from_run=run_000" in errors
    )
    assert 3 <= len(scores(run)) < 6  # the survivor has finished its share

    resumed = start(
        "eval.evaluate", *arguments, f"--results_dir={killed}", "--continue_from_run=run_000"
    )
    first, second = finish(resumed)
    assert "FT-L/run_000" in first and "Processes   2" in first and second == ""
    program = Program("eval.evaluate")
    assert program(*arguments, f"--results_dir={alone}").returncode == 0
    assert scores(run) == scores(alone / "FT-L" / "run_000")
    assert len(scores(run)) == 6
    assert not list(killed.glob(f"{groups._PREFIX}*/process_0"))


@pytest.mark.slow
@pytest.mark.needs("matplotlib")
def test_two_processes_trace_facts(cached, tmp_path):
    arguments = ["--num_cases=4", "--samples=2", "--kinds=hidden", "--figure_format=svg"]
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    first, _ = finish(start("eval.causal_trace", *arguments, f"--output_dir={shared}"))
    assert "averages.json" in first
    assert Program("eval.causal_trace")(*arguments, f"--output_dir={alone}").returncode == 0
    names = sorted(path.name for path in alone.glob("cases/*.npz"))
    assert sorted(path.name for path in shared.glob("cases/*.npz")) == names and names
    for name in names:
        one, other = (load_trace(folder / "cases" / name) for folder in (shared, alone))
        assert type(one) is type(other)
        if hasattr(one, "scores"):
            np.testing.assert_array_equal(one.scores, other.scores)
    for name in ("averages.json",):
        assert (shared / name).read_text() == (alone / name).read_text()


@pytest.mark.slow
def test_two_processes_collect_statistics(cached, tmp_path):
    arguments = ["--layers=1,2", "--num_tokens=20000", "--batch_tokens=512"]
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    first, _ = finish(start("eval.layer_stats", *arguments, f"--output_dir={shared}"))
    assert "20,000 tokens of" in first
    assert Program("eval.layer_stats")(*arguments, f"--output_dir={alone}").returncode == 0
    one, other = (moment_files.load(folder) for folder in (shared, alone))
    for layer in (1, 2):
        assert one[layer].count == other[layer].count == 20_000
        difference = np.abs(one[layer].mean - other[layer].mean).max()
        assert difference <= 2e-7 * np.abs(other[layer].mean).max()
    assert {path.name for path in shared.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.slow
def test_processes_that_do_not_meet_say_so(tmp_path):
    code = (
        "import sys; from rome_jax.models.processes import join\n"
        "with join(sys.argv[1], sys.argv[2], 2, int(sys.argv[3]), join_seconds=2): pass"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, address, "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert (
        f"{GroupError.__module__}.GroupError: the processes cannot find each other" in done.stderr
    )
