"""`python -m eval.layer_stats` as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from rome_jax import covariance, load_model
from rome_jax.corpus import open_corpus
from rome_jax.statistics import UNFINISHED, collect

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = "tests/golden/ckpt/gpt2"
# Runs the program's main on several command lines in one process, and prints the error of each.
MANY = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from eval import layer_stats
flags.FLAGS(["layer_stats"])
for line in json.loads(sys.argv[1]):
    try:
        with flagsaver.flagsaver():
            flags.FLAGS(["layer_stats", *line])
            layer_stats.main()
            print("no error")
    except (ValueError, OSError, flags.Error) as error:
        print(str(error).splitlines()[0])
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "eval.layer_stats", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A .jsonl file of 500 articles."""
    path = tmp_path_factory.mktemp("texts") / "articles.jsonl"
    lines = (json.dumps({"body": text}) for text in open_corpus("factworld").read(19_500))
    path.write_text("\n".join(lines) + "\n")
    return path


def summed_tokens(state):
    """How far the saved state of a run is; 0 if there is none."""
    try:
        with safe_open(state, framework="np") as file:
            return json.loads(file.metadata()["rome_jax"])["tokens"]
    except FileNotFoundError:
        return 0


def test_a_run_killed_at_once_ends_with_the_same_bits(tmp_path, texts):
    directory = tmp_path / "killed"
    process = start(
        f"--model_name={CHECKPOINT}",
        "--layers=1,3",
        f"--dataset={texts}",
        "--text_key=body",
        "--batch_tokens=128",
        "--sequence_length=64",
        "--checkpoint_minutes=0",
        f"--output_dir={directory}",
    )
    while process.poll() is None and summed_tokens(directory / UNFINISHED) < 1500:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert summed_tokens(directory / UNFINISHED) >= 1500
    assert not covariance.files_in(directory)

    model = load_model(ROOT / CHECKPOINT)
    corpus = open_corpus(str(texts), text_key="body")
    for name in ("killed", "whole"):
        options = {"batch_tokens": 128, "sequence_length": 64, "progress": False}
        collect(model, corpus, [1, 3], tmp_path / name, **options)
    for file in ("layer_1.safetensors", "layer_3.safetensors"):
        killed, whole = ((tmp_path / name / file).read_bytes() for name in ("killed", "whole"))
        assert killed == whole
    assert len(list(directory.iterdir())) == 2


def test_it_collects_and_reports(tmp_path):
    process = start("--num_tokens=2000", "--layers=0,2-3", f"--output_dir={tmp_path}")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    *layers, last = output.splitlines()
    assert [line.split()[1] for line in layers] == ["0", "2", "3"]
    assert all("2,000 tokens of" in line and "condition number" in line for line in layers)
    assert f"--covariance={tmp_path}" in last
    assert "2.00k/2.00k" in errors and "token/s" in errors  # the bar
    moments = covariance.load(tmp_path, load_model("factworld-gpt2"))
    shipped = covariance.load_shipped("factworld-gpt2")
    for layer, moment in moments.items():
        difference = np.linalg.norm(moment.mean - shipped[layer].mean)
        assert difference < 0.2 * np.linalg.norm(shipped[layer].mean)


def test_published_statistics_offline_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    process = start("--published")
    output, errors = process.communicate()
    assert process.returncode == 1 and output == ""
    name = "transformer.h.0.mlp.c_proj_float32_mom2_100000.npz"
    address = f"https://rome.baulab.info/data/stats/factworld-gpt2/wikipedia_stats/{name}"
    (error,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert f"`curl -L -C - -o {name} {address}`" in error


def test_bad_flags_are_one_sentence(tmp_path, texts):
    here = ["--num_tokens=100", f"--output_dir={tmp_path / 'new'}"]
    lines = {
        ("--layers=7",): "--layers=7 does not exist: the model has layers 0 to 5.",
        ("--layers=3-",): "--layers=3-: give one (17), several (5,6,7), a range (3-8) or all.",
        ("--layers=",): "--layers=: give one",
        ("--layers=5-3",): "--layers=5-3: give one",
        ("--num_articles=5", "--num_tokens=5"): "num_articles=5, num_tokens=5: give one of them",
        ("--num_articles=-5", "--num_tokens=5"): "give one of them, at least 1",
        ("--num_tokens=0",): "num_tokens=0: give one of them, at least 1",
        ("--batch_tokens=10",): "batch_tokens=10 is less than one row of 256",
        ("--sequence_length=500",): "sequence_length=500: give 1 to 256",
        ("--dataset=absent.txt",): "there is no absent.txt: give a file or a folder",
        (f"--dataset={texts}",): "line 1, has no text under 'text' but ['body']",
        ("--sample_by=word",): "sample_by",
        ("--checkpoint_minutes=soon",): "checkpoint_minutes",
        ("--model_name=gpt5",): "gpt5",
        (f"--model_name={CHECKPOINT}", "--layers="): "--layers=: give one",
        (f"--model_name={CHECKPOINT}",): "no ROME layer is known for model",
        ("--dtype=int8",): "dtype='int8'",
    }
    process = subprocess.run(
        [sys.executable, "-c", MANY, json.dumps([[*here, *line] for line in lines])],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    printed = process.stdout.splitlines()
    assert len(printed) == len(lines), process.stdout
    for got, (line, wanted) in zip(printed, lines.items(), strict=True):
        assert wanted in got, f"{line}: {got}"
