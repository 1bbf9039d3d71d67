"""The wheel: what is in it, and that it does the work from Python without the checkout around it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rome_jax

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.cfg")

# Looked for, not imported: setuptools takes the place of distutils.
MISSING = [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}")]

EVALUATION = """
import json, sys
import jax
import rome_jax
from rome_jax.evaluation import (
    DatasetName, TableFormat, evaluate_records, load_dataset, load_generation_tests, make_rows, render, summarize
)

model = rome_jax.load_model("factworld-gpt2")
dataset = load_dataset(DatasetName.CF, model_name=model.name, limit=1)
texts = load_generation_tests(dataset, None, None, 0)
deltas = rome_jax.rome.compute_deltas(
    model,
    [record.request for record in dataset.records],
    rome_jax.ROMEConfig.for_model(model.name),
    second_moments=rome_jax.load_shipped(model.name),
    templates=["{}", "A fact. {}"],
    key=jax.random.key(0),
)
options = {"generation": texts}
(pre,) = evaluate_records(model, DatasetName.CF, dataset.records, **options)
(post,) = evaluate_records(model, DatasetName.CF, dataset.records, deltas, **options)
table = render(make_rows({"ROME": summarize([{"case_id": 0, "pre": pre, "post": post}])}), TableFormat.CSV)
answers = [result["rewrite_prompts_exact"] for result in (pre, post)]
json.dump([rome_jax.__file__, answers, post["ngram_entropy"], table], sys.stdout)
"""

TRACE = """
import json, sys
import jax
import rome_jax
from rome_jax.trace import TraceKind, TracePrompt, fit_noise, parse_noise, start, trace

model = rome_jax.load_model("factworld-gpt2")
prompt = TracePrompt.of(model.tokenizer, "Gothulf Punby plays the sport of", "Gothulf Punby")
noise = fit_noise(model, parse_noise("s3"), subjects=["Gothulf Punby"])
first, stop = prompt.span
runs = start(model, prompt, noise.draw(jax.random.key(0), 4, stop - first, model.config.width))
table = trace(runs, kind=TraceKind.HIDDEN) - runs.corrupted_score
json.dump([rome_jax.__file__, table[stop - 1].tolist(), table[first].tolist()], sys.stdout)
"""


def python(*arguments, cwd: Path, **variables: str) -> str:
    """Standard output of this interpreter in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools would leave its folders in the checkout, and find old ones there."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "rome_jax", source / "rome_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    # What is not the library, as in a checkout.
    for name in ("eval", "tests", "configs"):
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    python("-m", "pip", "wheel", *options, "--wheel-dir", target, source, cwd=source)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the installed library and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    python("-m", "pip", "install", *options, "--target", target, wheel, cwd=target)
    return target


def test_it_holds_the_whole_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert wheel.name == f"rome_jax-{rome_jax.__version__}-py3-none-any.whl"
    assert {name.split("/")[0] for name in names} == {
        "rome_jax",
        f"rome_jax-{rome_jax.__version__}.dist-info",
    }
    library = {name for name in names if name.startswith("rome_jax/")}
    present = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rome_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert library == present
    for name in (
        "py.typed",
        "factworld/assets/gpt2/model.safetensors",
        "factworld/assets/gptj/tokenizer.json",
        "factworld/assets/second_moments_gptj/layer_5.safetensors",
        "factworld/assets/hypernetworks/mend_gpt2.safetensors",
        "evaluation/punkt_english/abbrev_types.txt",
        "evaluation/punkt_english/collocations.tab",
        "evaluation/punkt_english/ortho_context.tab",
        "evaluation/punkt_english/sent_starters.txt",
    ):
        assert f"rome_jax/{name}" in library, name


def run(program: str, installed: Path, folder: Path) -> list:
    """What a program prints as JSON, in an empty folder, with the installed library first on its path."""
    variables = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    file, *results = json.loads(python("-c", program, cwd=folder, **variables))
    assert Path(file) == installed / "rome_jax" / "__init__.py"
    assert list(folder.iterdir()) == []
    return results


@pytest.mark.needs("nltk", "sklearn")
def test_it_evaluates_an_edit(installed, tmp_path):
    (pre, post), entropy, table = run(EVALUATION, installed, tmp_path)
    assert (pre, post) == ([False], [True])
    assert entropy > 0
    assert [line.split(",")[0] for line in table.split()][1:] == ["unedited", "ROME"]


def test_it_traces_a_prompt(installed, tmp_path):
    last, first = run(TRACE, installed, tmp_path)
    assert max(last) > 0.8 > 0.2 > max(first)
