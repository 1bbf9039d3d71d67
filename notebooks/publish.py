"""Executes the notebooks and writes the copies with outputs that docs/notebooks shows.

    python notebooks/publish.py              # all of them, about five minutes on two cores
    python notebooks/publish.py rome

The notebooks of this folder are stored without outputs. Each one runs from its first to its last cell in a new kernel,
in an empty folder, and with nothing of the checkout but the library. Needs the extra `test`.
"""

from __future__ import annotations

import copy
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "notebooks"
PUBLISHED = ROOT / "docs" / "notebooks"

# Folders of one machine, which no output may name.
_ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|Users|usr|var|opt|mnt|work|private)/\S*")


def read(path: str | Path) -> Any:
    """Returns a notebook as it is stored.

    Args:
      path: The file.
    """
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def execute(notebook: Any, folder: str | Path, variables: Mapping[str, str] | None = None) -> Path:
    """Runs all cells in a new kernel of this interpreter; the outputs are stored in `notebook`.

    Args:
      notebook: The notebook, which is changed.
      folder: An existing empty folder for everything that the run needs and writes.
      variables: Further environment variables of the kernel.

    Returns:
      The working directory of the cells, a folder inside `folder`.

    Raises:
      CellExecutionError: If a cell fails.
    """
    folder = Path(folder)
    workdir, library = folder / "run", folder / "library"
    for directory in (workdir, library):
        directory.mkdir()
    (library / "rome_jax").symlink_to(ROOT / "rome_jax")
    # Without the folders of installed kernels, the one of this interpreter is left.
    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
    )
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=None,
        record_timing=False,
        resources={"metadata": {"path": str(workdir)}},
    )
    environment = {"PYTHONPATH": str(library), "IPYTHONDIR": str(folder / "ipython")}
    client.execute(cleanup_kc=True, env={**os.environ, **environment, **(variables or {})})
    return workdir


def clean(notebook: Any) -> Any:
    """Returns a copy to be published: the stored metadata, and outputs without progress bars and warnings.

    Args:
      notebook: An executed notebook.

    Raises:
      ValueError: If an output names a folder of this machine.
    """
    published = copy.deepcopy(notebook)
    published.metadata = {"kernelspec": dict(published.metadata["kernelspec"])}
    for cell in published.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = _without_stderr(cell.outputs)
        for output in cell.outputs:
            if "metadata" in output:
                output.metadata = {}
            if found := _ABSOLUTE.search(_text(output)):
                raise ValueError(
                    f"the output of cell {cell.id!r} names {found[0]}: print a relative path."
                )
    return published


def _without_stderr(outputs: list[Any]) -> list[Any]:
    """Returns the outputs without standard error, and what it separated in one piece."""
    kept: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def _text(output: Mapping[str, Any]) -> str:
    """Returns all text of an output."""
    data = output.get("data", {})
    return "\n".join([output.get("text", ""), *(data[kind] for kind in data if "text" in kind)])


def publish(name: str) -> Path:
    """Executes a notebook and writes its copy with outputs.

    Args:
      name: The name of its file, without .ipynb.

    Returns:
      The copy.
    """
    notebook = read(SOURCES / f"{name}.ipynb")
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, folder)
    path = PUBLISHED / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(clean(notebook), path)
    return path


def main(names: list[str]) -> None:
    """Publishes some notebooks, by default all."""
    for name in names or sorted(path.stem for path in SOURCES.glob("*.ipynb")):
        print(f"Executing {name}", flush=True)
        print(f"Wrote {publish(name).relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
