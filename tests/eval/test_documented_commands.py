"""Every `python -m eval...` command in the shell blocks of README.md and docs/*.md runs, in document order.

Small limits are appended to each command, by program. What a command needs to download is not downloaded: its run ends
successfully at the first attempt to open a connection.
"""

import json
import re
import shlex
import shutil
import socket
from unittest import mock

import huggingface_hub.constants
import pytest

from eval import train_factworld
from rome_jax.factworld.facts import make_world
from rome_jax.factworld.records import Role, counterfact_records, known_facts
from rome_jax.files import wheels
from tests.programs import ROOT, Program

NETWORKS = ROOT / "rome_jax" / "factworld" / "assets" / "hypernetworks"
LIMITS = {
    "eval.causal_trace": "--samples=2 --kinds=hidden --figure_format=svg",
    "eval.compare": "--num_cases=1 --skip_generation_tests",
    "eval.compare_sequences": "",
    "eval.edit": "",
    "eval.edits": "",
    "eval.evaluate": "--num_cases=1 --skip_generation_tests",
    "eval.factworld_report": "--num_cases=2 --num_sweep_cases=0 --num_traced=1",
    "eval.layer_stats": "--batch_tokens=512",
    "eval.mass_edits": "--num_edits=2 --chunk_size=1",
    "eval.plan": "",
    "eval.screening_report": "--num_cases=1 --samples=2",
    "eval.sequence": "--num_edits=2 --batch_size=2",
    "eval.sequential_edits": "--num_edits=2",
    "eval.statistics_table": "--num_tokens=0,1000 --num_cases=2",
    "eval.summarize": "",
    "eval.sweep": "--num_cases=1 --nogeneration --figure_format=svg",
    "eval.train_factworld": "",
    "eval.train_hypernetwork": "--batch_size=4 --max_steps=1 --validate_every=1",
}
TRAINING = "eval.train_hypernetwork"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# What describes a process among several; the others are not there.
GROUP = {"distributed", "coordinator_address", "num_processes", "process_id"}


def commands(markdown):
    """The commands of eval in the shell blocks of a text, each as a list of words."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", markdown, re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [one for one in words if one[:2] == ["python", "-m"] and one[2].startswith("eval.")]


def limited(name, arguments):
    """A command line with its limits, a few of which depend on the flags that it has."""
    arguments = [one for one in arguments if one.lstrip("-").partition("=")[0] not in GROUP]
    if name != "eval.plan":  # it plans for devices that are not there
        arguments = [re.sub(r"^--mesh=.*", "--mesh=data:1", argument) for argument in arguments]
    limits = shlex.split(LIMITS[name])
    given = dict(argument.lstrip("-").partition("=")[::2] for argument in arguments)
    if name == "eval.causal_trace" and "prompt" not in given:
        limits.append("--num_cases=1")
    if name == "eval.layer_stats" and "num_articles" not in given:
        limits.append("--num_tokens=1000")
    if name == "eval.compare" and "hypernetworks" not in given:
        limits.append("--algs=FT-L,ROME")
    if name in ("eval.sequence", "eval.sequential_edits") and "counts" in given:
        limits.append("--counts=2")
    if name == "eval.sweep":  # one value of each hyperparameter
        arguments = [re.sub(r"^(--sweep=\w+=[^(,]+),.*", r"\1", argument) for argument in arguments]
    if name == "eval.train_hypernetwork" and "model_name" not in given:
        method = given.get("alg_name", "MEND").lower()
        limits += [f"--config=configs/{method}.py", "--config.layers=(5,)"]
        limits += ["--config.rank=4"] * (method == "mend")
    return [*arguments, *limits]


def supply(arguments, folder):
    """Writes the files that the reader has, or that an earlier command would have downloaded or computed."""
    for argument in arguments:
        flag, _, value = argument.partition("=")
        paths = (
            re.findall(r"(?:(MEND|KE)=)?([\w./-]+)", value) if "/" in value or "." in value else []
        )
        for method, path in paths:
            _supply_one(flag, method, folder / path)


def _supply_one(flag, method, path):
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if flag == "--second_moments":
        path.touch()
    elif flag == "--hypernetworks":
        shutil.copy(NETWORKS / f"{method.lower()}_gpt2.safetensors", path)
    elif flag == "--data_path":
        path.write_text(json.dumps(counterfact_records(make_world(), 0, Role.TUNING, 20)))
    elif flag == "--fact_file":
        path.write_text(json.dumps(known_facts(make_world(), seed=0)))
    elif flag == "--dataset" and path.suffix == ".jsonl":
        path.write_text(json.dumps({"text": "It is a city."}) + "\n")


class Connected(SystemExit):
    """A program has tried to open a connection."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder like a fresh checkout, on a machine without cached files, where connections end the program."""
    for name in ("configs", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.png"))
    cache = str(tmp_path / "cache")
    monkeypatch.setenv("ROME_JAX_CACHE", cache)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(socket, "getaddrinfo", mock.Mock(side_effect=Connected(0)))
    monkeypatch.setattr(socket.socket, "connect", mock.Mock(side_effect=Connected(0)))
    monkeypatch.setattr(wheels, "subprocess", mock.Mock(run=mock.Mock(side_effect=Connected(0))))
    # Training takes hours; the other programs of a process cannot share the number of its devices.
    monkeypatch.setattr(train_factworld, "jax", mock.Mock())
    monkeypatch.setattr(train_factworld, "train", mock.Mock(side_effect=SystemExit(0)))
    return tmp_path


def test_commands_are_found():
    text = "```sh\n$ ls\npython -m eval.edit --a='b c' \\\n  --d  # e\n```\n`python -m eval.x`\n"
    assert commands(text) == [["python", "-m", "eval.edit", "--a=b c", "--d"]]
    assert len(commands(DOCUMENTS[0].read_text())) > 5


def test_every_program_has_limits():
    programs = {f"eval.{path.stem}" for path in (ROOT / "eval").glob("*.py")}
    assert programs - set(LIMITS) == {"eval.cli", "eval.refusals", "eval.stopping"}


@pytest.mark.needs("datasets", "matplotlib", "nltk", "sklearn")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.name, marks=pytest.mark.slow if path.parent.name == "docs" else ()
        )
        for path in DOCUMENTS
        if commands(path.read_text())
    ],
)
def test_the_commands_of_a_document_run(path, folder):
    chosen = commands(path.read_text())
    if path.parent == ROOT:
        chosen = [one for one in chosen if one[2] != TRAINING]
    assert not failures(chosen, folder)


@pytest.mark.needs("matplotlib")
@pytest.mark.slow  # compiling a training step takes longer than any other command
def test_the_trainings_of_the_readme_run(folder):
    chosen = [one for one in commands(DOCUMENTS[0].read_text()) if one[2] == TRAINING]
    assert chosen and not failures(chosen, folder)


def failures(chosen, folder):
    """Runs commands in a folder, and returns those that fail with the ends of their messages."""
    failed = []
    for _, _, name, *arguments in chosen:
        supply(arguments, folder)
        program = Program(name, offline=False)
        done = program(*limited(name, arguments), stdin="Rome is in\n\n", cwd=folder)
        if done.returncode:
            failed.append(f"{shlex.join([name, *arguments])}: {done.stderr[-500:]}")
    return "\n".join(failed)


@pytest.mark.parametrize(
    "line",
    [
        "eval.edit --model_name=gpt2-xl --second_moments=published --prompt={} --subject=a --target_new=b",
        "eval.layer_stats --model_name=gpt2-xl --layers=17 --published",
        "eval.evaluate --model_name=gpt2-xl --second_moments=published",
        "eval.causal_trace --fact_file=published",
        "eval.edit --model_name=somebody/some-model",
    ],
)
def test_downloads_begin_after_all_checks(line, folder):
    """So that the test above cannot mistake a refusal for a download, or the reverse."""
    name, *arguments = line.split()
    program = Program(name, offline=False)
    assert program(*arguments, cwd=folder).returncode == 0
    refused = program(*arguments, "--dtype=int8", cwd=folder)
    assert refused.returncode == 1 and "dtype='int8'" in refused.stderr
