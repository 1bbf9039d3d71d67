"""What the tests of all notebooks share: reading cells, the house rules, and a clean kernel."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from notebooks import publish
from notebooks.publish import read

ROOT = Path(__file__).resolve().parents[2]
FOLDER = publish.SOURCES
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
LINE = 'MODEL = "factworld-gpt2"'  # the one line to change

LOGIC = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda),
    *(ast.For, ast.While, ast.If),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)


def code_cells(notebook):
    """Returns the code cells by their id."""
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def parsed(cell):
    """Returns the syntax tree of a cell, with its magics as calls."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def text_outputs(cell) -> str:
    """Returns everything that a cell has printed or returned, except to standard error."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            texts.append(output.text)
        elif output.output_type == "execute_result":
            texts.append(output.data["text/plain"])
    return "".join(texts)


def check_stored_without_outputs(path: Path) -> None:
    """Checks that a file holds only sources and the name of the kernel, in one layout."""
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.metadata == {}
    for cell in code_cells(notebook).values():
        assert cell.outputs == [] and cell.execution_count is None
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.metadata == {"kernelspec": kernel}
    raw = json.loads(path.read_text())
    assert path.read_text() == json.dumps(raw, indent=1, ensure_ascii=False) + "\n"


def check_cells_only_call(notebook) -> None:
    """Checks that only the cell that installs has loops, conditions or definitions."""
    for name, cell in code_cells(notebook).items():
        if name != "install":
            assert not [node for node in ast.walk(parsed(cell)) if isinstance(node, LOGIC)], name


def imported_packages(notebook) -> set[str]:
    """Returns the top-level names of all modules that the cells import."""
    nodes = [node for cell in code_cells(notebook).values() for node in ast.walk(parsed(cell))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def check_needs_the_library_alone(notebook) -> None:
    """Checks that the cells use nothing of a checkout: no programs, no added path, no clone."""
    assert not {"eval", "configs", "tests", "benchmarks"} & imported_packages(notebook)
    source = "\n".join(cell.source for cell in notebook.cells)
    assert not [text for text in ("sys.path", "git clone", "pip install -e") if text in source]


def installed_by(notebook, found: bool, environment: dict[str, str], monkeypatch) -> list[str]:
    """Returns the pip commands of the first cell, if the library is found or not, in an environment."""
    commands = []

    class Shell:
        def run_line_magic(self, magic, line):
            names = {"INSTALL": scope["INSTALL"], "extras": scope["extras"]}
            commands.append(f"{magic} {line.format(**names)}")

    scope = {"get_ipython": Shell}
    cell = notebook.cells[1]
    assert cell.id == "install"
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: object() if found else None)
        patch.setattr("shutil.which", lambda name: None)
        patch.delenv("ROME_JAX_INSTALL", raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        exec(TransformerManager().transform_cell(cell.source), scope)
    return commands


def model_choices(notebook) -> list[str]:
    """Returns the models that the one line offers, and checks that each has an example."""
    cells = code_cells(notebook)
    assert sum(cell.source.count("MODEL =") for cell in cells.values()) == 1
    assert cells["model"].source.startswith(LINE)
    choices = json.loads(cells["model"].source.split("# @param ")[1])
    examples = [
        [key.value for key in node.value.keys]
        for node in parsed(cells["example"]).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXAMPLES"
    ]
    assert examples == [choices]
    return choices


def num_images(cell) -> int:
    """Returns the number of images in the outputs of a cell."""
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def execute(notebook, tmp_path: Path, monkeypatch) -> Path:
    """Runs all cells in a clean kernel without a network; returns the folder it ran in."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    before = sorted(FOLDER.rglob("*"))
    workdir = publish.execute(notebook, tmp_path, {"HF_HUB_OFFLINE": "1"})
    assert sorted(FOLDER.rglob("*")) == before
    return workdir
