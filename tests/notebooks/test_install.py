"""The house rules of every notebook: how it is stored, what it installs, and the one line that names the model."""

from __future__ import annotations

import pytest

from rome_jax.models.registry import IN_WHEELS, SHIPPED
from tests.notebooks import common


@pytest.fixture(params=common.NAMES)
def name(request):
    return request.param


@pytest.fixture
def notebook(name):
    return common.read(common.FOLDER / f"{name}.ipynb")


def test_it_is_stored_without_outputs_and_only_calls_the_library(name, notebook):
    common.check_stored_without_outputs(common.FOLDER / f"{name}.ipynb")
    common.check_cells_only_call(notebook)


def test_it_needs_only_the_library(notebook):
    common.check_needs_the_library_alone(notebook)


def test_the_model_is_one_line_and_every_choice_has_an_example(notebook):
    assert common.model_choices(notebook) == [
        *SHIPPED,
        *IN_WHEELS,
        "gpt2-xl",
        "EleutherAI/gpt-j-6B",
    ]


@pytest.mark.parametrize(
    "source", ["dist/rome_jax-0.1.0-py3-none-any.whl", "./rome_jax", "rome_jax"]
)
def test_it_installs_from_a_wheel_a_clone_or_the_name_whichever_is_set(
    notebook, source, monkeypatch
):
    given = {"ROME_JAX_INSTALL": source}
    commands = common.installed_by(notebook, False, given, monkeypatch)
    assert commands == [f'pip install --quiet "{source}[eval,gguf,plot]"']


def test_it_installs_by_name_by_default_and_nothing_if_the_library_is_there(notebook, monkeypatch):
    commands = common.installed_by(notebook, False, {}, monkeypatch)
    assert commands == ['pip install --quiet "rome_jax[eval,gguf,plot]"']
    assert common.installed_by(notebook, True, {}, monkeypatch) == []
