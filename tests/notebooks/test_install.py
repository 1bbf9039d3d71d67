"""The first cell of every notebook, and that none needs more than the installed library."""

from __future__ import annotations

import pytest

from tests.notebooks import common

NAMES = sorted(path.stem for path in common.FOLDER.glob("*.ipynb"))


@pytest.fixture(params=NAMES)
def notebook(request):
    return common.read(common.FOLDER / f"{request.param}.ipynb")


def test_it_needs_the_library_alone(notebook):
    common.check_needs_the_library_alone(notebook)


@pytest.mark.parametrize(
    "source", ["dist/rome_jax-0.1.0-py3-none-any.whl", "./rome_jax", "rome_jax"]
)
def test_it_installs_from_a_wheel_a_clone_or_the_name_whichever_is_set(
    notebook, source, monkeypatch
):
    given = {"ROME_JAX_INSTALL": source}
    commands = common.installed_by(notebook, False, given, monkeypatch)
    assert commands == [f'pip install --quiet "{source}[eval,plot]"']


def test_it_takes_the_name_if_nothing_is_set_and_leaves_alone_what_is_there(notebook, monkeypatch):
    commands = common.installed_by(notebook, False, {}, monkeypatch)
    assert commands == ['pip install --quiet "rome_jax[eval,plot]"']
    assert common.installed_by(notebook, True, {}, monkeypatch) == []
