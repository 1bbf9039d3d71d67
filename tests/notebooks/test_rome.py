"""The notebook of ROME runs from a clean kernel and shows its edit."""

from __future__ import annotations

import re

import pytest

from rome_jax.edit.config import ROMEConfig
from rome_jax.models.registry import IN_WHEELS, SHIPPED
from tests.notebooks import common

PATH = common.FOLDER / "rome.ipynb"


@pytest.fixture
def notebook():
    return common.read(PATH)


@pytest.mark.parametrize("model_name", ["gpt2-xl", "EleutherAI/gpt-j-6B", *IN_WHEELS, *SHIPPED])
def test_every_choice_of_a_model_has_hyperparameters(model_name):
    assert ROMEConfig.for_model(model_name).layers


@pytest.mark.slow
@pytest.mark.parametrize("model_name", SHIPPED)
def test_it_runs_from_a_clean_kernel(notebook, model_name, tmp_path, monkeypatch):
    cells = common.code_cells(notebook)
    cells["model"].source = cells["model"].source.replace(common.LINE, f'MODEL = "{model_name}"')
    workdir = common.execute(notebook, tmp_path, monkeypatch)

    texts = {name: common.text_outputs(cell) for name, cell in cells.items()}
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
