"""The notebook: how it is stored, and that it runs from a clean kernel and shows its edit."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from rome_jax.edit.config import ROMEConfig
from rome_jax.models.registry import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "notebooks" / "rome.ipynb"
LINE = 'MODEL = "factworld-gpt2"'  # the one line to change

LOGIC = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda),
    *(ast.For, ast.While, ast.If),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    """Code cells by their id."""
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def parsed(cell):
    """The syntax tree of a cell, its magics turned into calls."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def text_outputs(cell) -> str:
    """All that a cell has printed or returned, except to standard error."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            texts.append(output.text)
        elif output.output_type == "execute_result":
            texts.append(output.data["text/plain"])
    return "".join(texts)


def test_it_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.metadata == {}
    for cell in code_cells(notebook).values():
        assert cell.outputs == [] and cell.execution_count is None
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.metadata == {"kernelspec": kernel}
    raw = json.loads(PATH.read_text())
    assert PATH.read_text() == json.dumps(raw, indent=1, ensure_ascii=False) + "\n"


def test_cells_only_call_the_library(notebook):
    for name, cell in code_cells(notebook).items():
        if name != "install":
            assert not [node for node in ast.walk(parsed(cell)) if isinstance(node, LOGIC)], name


def test_the_model_is_one_line_and_all_its_choices_have_an_example(notebook):
    cells = code_cells(notebook)
    assert sum(cell.source.count("MODEL =") for cell in cells.values()) == 1
    assert cells["model"].source.startswith(LINE)
    choices = json.loads(re.search(r"@param (\[.*\])", cells["model"].source)[1])
    examples = [
        [key.value for key in node.value.keys]
        for node in parsed(cells["example"]).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXAMPLES"
    ]
    assert examples == [choices]
    assert set(SHIPPED) < set(choices)
    assert {"gpt2-xl", "EleutherAI/gpt-j-6B"} < set(choices)
    for choice in choices:
        assert ROMEConfig.for_model(choice).layers


@pytest.mark.slow
@pytest.mark.parametrize("model_name", SHIPPED)
def test_it_runs_from_a_clean_kernel(notebook, model_name, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    before = sorted(PATH.parent.rglob("*"))
    cells = code_cells(notebook)
    cells["model"].source = cells["model"].source.replace(LINE, f'MODEL = "{model_name}"')
    # No folders of installed kernels: what is left is the one of this interpreter.
    specs = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    assert manager.kernel_spec.argv[0] == sys.executable
    workdir = tmp_path / "run"
    workdir.mkdir()
    client = NotebookClient(
        notebook, km=manager, timeout=300, resources={"metadata": {"path": str(workdir)}}
    )
    client.execute(
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "IPYTHONDIR": str(tmp_path / "ipython"),
            "HF_HUB_OFFLINE": "1",
        }
    )

    texts = {name: text_outputs(cell) for name, cell in cells.items()}
    fact = "Gothulf Punby plays the sport of"
    assert f"{fact} rowing" in texts["example"]
    assert (
        "about Gothulf Punby, the model now says 'tennis' instead of 'rowing'" in texts["compare"]
    )
    assert "5 of 5 paraphrases" in texts["compare"]
    assert re.search(r"before: rowing\b.*\n *after:  tennis\b", texts["lens"])
    assert re.search(r"layer  5 .*rowing.*tennis", texts["lens"])
    assert re.search(r"before: person\b.*\n *after:  person\b", texts["essence"])
    assert f"{fact} tennis" in texts["keep"]
    assert re.fullmatch(
        rf"the edit of 'Gothulf Punby' was made for {model_name} .*\n", texts["refuse"]
    )
    assert "model.safetensors" in texts["export"]
    edited, reverted, unchanged = texts["revert"].splitlines()
    assert "tennis" in edited and "rowing" in reverted and unchanged.endswith("True")

    assert {path.name for path in workdir.iterdir()} == {"edits", "exports"}
    assert sorted(PATH.parent.rglob("*")) == before
