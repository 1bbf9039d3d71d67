"""The published notebooks are executed copies of the stored ones."""

from __future__ import annotations

import nbformat
import pytest

from tests.notebooks import common
from tests.notebooks.common import publish


def cell(source="", outputs=(), **metadata):
    """A code cell with some outputs."""
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata=metadata)


def notebook(*cells):
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    info = {"kernelspec": kernel, "language_info": {"name": "python", "version": "3.11.4"}}
    return nbformat.v4.new_notebook(cells=list(cells), metadata=info)


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", text=text, name=name)


def test_every_notebook_is_published():
    published = sorted(path.stem for path in publish.PUBLISHED.glob("*.ipynb"))
    assert published == common.NAMES


@pytest.mark.parametrize("name", common.NAMES)
def test_sources_are_equal_and_every_output_is_there(name):
    stored = common.read(publish.SOURCES / f"{name}.ipynb")
    published = common.read(publish.PUBLISHED / f"{name}.ipynb")
    nbformat.validate(published)
    hint = f"run `python notebooks/publish.py {name}`"
    for one, other in zip(stored.cells, published.cells, strict=True):
        assert (one.id, one.cell_type, one.source) == (other.id, other.cell_type, other.source), (
            hint
        )
    assert publish.clean(published) == published
    cells = list(common.code_cells(published).values())
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), hint
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.output_type == "error"]


def test_cleaning_removes_progress_bars_warnings_and_versions():
    dirty = notebook(
        cell(
            outputs=[stream("a"), stream("100%", "stderr"), stream("b")],
            execution={"started": "12:00"},
        )
    )
    cleaned = publish.clean(dirty)
    assert [output.text for output in cleaned.cells[0].outputs] == ["ab"]
    assert cleaned.cells[0].metadata == {} and list(cleaned.metadata) == ["kernelspec"]
    assert len(dirty.cells[0].outputs) == 3


@pytest.mark.parametrize(
    "text", ["in /" + "tmp/x1/run", "'/" + "home/someone/results'", "at /" + "root/x"]
)
def test_outputs_with_folders_of_a_machine_are_refused(text):
    with pytest.raises(ValueError, match=r"names /.*: print a relative path"):
        publish.clean(notebook(cell(outputs=[stream(text)])))
    publish.clean(notebook(cell(outputs=[stream("results/run and https://a.org/home/b")])))
