"""`python -m eval.layer_stats`."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import safe_open

from rome_jax import load_model, load_shipped
from rome_jax.data.corpus import open_corpus
from rome_jax.moments import files as moment_files
from rome_jax.moments import own_texts
from rome_jax.moments.collect import collect
from rome_jax.moments.state import UNFINISHED
from tests.programs import ROOT, Program, refusal

CHECKPOINT = "tests/golden/ckpt/gpt2"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program on a machine without a network and without cached files."""
    environment = {
        "ROME_JAX_CACHE": str(tmp_path_factory.mktemp("cache")),
        **dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9"),  # nobody listens
    }
    return Program("eval.layer_stats", environment=environment)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A .jsonl file of 500 articles."""
    path = tmp_path_factory.mktemp("texts") / "articles.jsonl"
    lines = (json.dumps({"body": text}) for text in open_corpus("factworld").read(19_500))
    path.write_text("\n".join(lines) + "\n")
    return path


def summed_tokens(state):
    """The number of tokens in the saved state of a run; 0 without one."""
    try:
        with safe_open(state, framework="np") as file:
            return sum(json.loads(file.metadata()["rome_jax"])["tokens"])
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_a_killed_run_resumes_to_bit_identical_files(tmp_path, texts):
    directory = tmp_path / "killed"
    arguments = [
        f"--model_name={CHECKPOINT}",
        "--layers=1,3",
        f"--dataset={texts}",
        "--text_key=body",
        "--batch_tokens=128",
        "--sequence_length=64",
        "--checkpoint_minutes=0",
        f"--output_dir={directory}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "eval.layer_stats", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and summed_tokens(directory / UNFINISHED) < 1500:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert summed_tokens(directory / UNFINISHED) >= 1500
    assert not moment_files.files_in(directory)

    model = load_model(ROOT / CHECKPOINT)
    corpus = open_corpus(str(texts), text_key="body")
    for name in ("killed", "whole"):
        options = {"batch_tokens": 128, "sequence_length": 64, "progress": False}
        collect(model, corpus, [1, 3], tmp_path / name, **options)
    for file in ("layer_1.safetensors", "layer_3.safetensors"):
        killed, whole = ((tmp_path / name / file).read_bytes() for name in ("killed", "whole"))
        assert killed == whole
    assert len(list(directory.iterdir())) == 2


def test_it_collects_and_reports(program, tmp_path):
    result = program("--num_tokens=2000", "--layers=0,2-3", f"--output_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    *layers, last = result.stdout.splitlines()
    assert [line.split()[1] for line in layers] == ["0", "2", "3"]
    assert all("2,000 tokens of" in line and "condition number" in line for line in layers)
    assert f"--second_moments={tmp_path}" in last
    assert "2.00k/2.00k" in result.stderr and "token/s" in result.stderr  # the bar
    moments = moment_files.load(tmp_path, load_model("factworld-gpt2"))
    shipped = load_shipped("factworld-gpt2")
    for layer, moment in moments.items():
        difference = np.linalg.norm(moment.mean - shipped[layer].mean)
        assert difference < 0.2 * np.linalg.norm(shipped[layer].mean)


def test_the_model_writes_the_corpus_itself(program, tmp_path, monkeypatch):
    monkeypatch.setattr(own_texts, "_ROWS", 8)
    monkeypatch.setattr(own_texts, "DOCUMENT_TOKENS", 24)
    monkeypatch.setattr(own_texts, "TEMPERATURES", (0.85,))
    flags = ["--dataset=self", "--seed=3", "--num_articles=16", "--layers=0", "--batch_tokens=256"]
    result = program(*flags, f"--output_dir={tmp_path}", "--file_dtype=float16")
    assert result.returncode == 0, result.stderr
    assert "tokens of 16 articles" in result.stdout
    (moment,) = moment_files.load(tmp_path).values()
    assert moment.provenance.recipe["seed"] == 3
    assert moment.provenance.command.startswith("python -m eval.layer_stats --dataset=self")


def test_too_few_tokens_are_not_advertised(program, tmp_path):
    # The files record the command, although the name of the folder is not valid Unicode.
    result = program("--num_tokens=100", "--layers=0", f"--output_dir={tmp_path}/\udce9")
    assert result.returncode == 0, result.stderr
    assert "not positive definite" in result.stdout and "Use them" not in result.stdout
    assert "Edits cannot use layer 0: collect more than 512 tokens" in result.stdout


def test_published_statistics_offline_are_one_sentence(program):
    result = program("--published")
    assert result.returncode == 1 and result.stdout == ""
    name = "transformer.h.0.mlp.c_proj_float32_mom2_100000.npz"
    address = f"https://rome.baulab.info/data/stats/factworld-gpt2/wikipedia_stats/{name}"
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert f"`curl -L -C - -o {name} {address}`" in error


def test_bad_flags_are_one_sentence(program, tmp_path, texts):
    here = ["--num_tokens=100", f"--output_dir={tmp_path / 'new'}"]
    lines = {
        ("--layers=7",): "--layers=7 does not exist: the model has layers 0 to 5.",
        (
            "--layers=3-",
        ): "--layers='3-' names no layers of a model: give one (17), several (5,6,7), a range (3-8), or all.",
        ("--layers=",): "--layers='' names no layers of a model: give one",
        ("--layers=5-3",): "--layers='5-3' names no layers of a model: give one",
        (
            "--num_articles=5",
            "--num_tokens=5",
        ): "--num_articles=5 and --num_tokens=5 both limit the corpus: leave one out",
        ("--num_articles=-5",): "--num_articles='-5': give a whole number of 0 or more, or all",
        ("--num_tokens=0",): "--num_tokens='0': give a whole number of 1 or more, or all",
        ("--batch_tokens=10",): "batch_tokens=10 is less than one row of 256 tokens",
        ("--sequence_length=500",): "sequence_length=500 does not fit the model: give 1 to 256",
        ("--dataset=absent.txt",): "there is no 'absent.txt': give an existing file or folder",
        (f"--dataset={texts}",): "line 1, has no field 'text', only ['body']",
        ("--sample_by=word",): "sample_by",
        ("--checkpoint_minutes=soon",): "checkpoint_minutes",
        ("--model_name=gpt5",): "gpt5",
        (
            f"--model_name={CHECKPOINT}",
            "--layers=",
        ): "--layers='' names no layers of a model: give one",
        (f"--model_name={CHECKPOINT}",): "no ROME layer is known for model",
        ("--dtype=int8",): "dtype='int8'",
        ("--seed=3",): "--seed is only for --dataset=self: leave it out",
        ("--until_error=0",): "until_error=0.0: give a number between 0 and 1",
        ("--until_error=2",): "--until_error=2: give a number from 0 to 1",
    }
    for line, expected in lines.items():
        error = refusal(program(*here, *line))
        assert expected in error, f"{line}: {error}"
