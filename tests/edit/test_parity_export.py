"""An exported edited model in transformers: it loads, and its logits are those of our edited model."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM, AutoTokenizer

from rome_jax.data.tokens import encode
from rome_jax.edit.edit_files import load_edits, save_edits
from rome_jax.edit.saved_edits import apply_edits
from rome_jax.models import forward
from rome_jax.models.export import save_hf
from tests.models.checkpoints import FAMILIES
from tests.saved import random_edit

pytestmark = pytest.mark.parity

TEXT = "The mother tongue of Danielle Darrieux is"


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_edited_model(golden_model, family, tmp_path):
    model = golden_model(family)
    path = save_edits(tmp_path / "edit.safetensors", [random_edit(model)])
    edited = apply_edits(model, load_edits(path))
    save_hf(tmp_path / "edited", edited)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "edited", output_loading_info=True
    )
    assert not any(report.values()), report
    ids = AutoTokenizer.from_pretrained(tmp_path / "edited")(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = theirs(ids).logits[0].numpy()
    batch = encode(edited.tokenizer, [TEXT])
    got, before = (
        np.asarray(forward.logits(one.params, one.config, batch))[0, : len(expected)]
        for one in (edited, model)
    )
    assert np.abs(got - expected).max() <= 1e-4 * expected.std()
    assert np.abs(got - before).max() > 0.1 * expected.std(), "the edit does something"
