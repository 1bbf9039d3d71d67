"""The second moments that come with the package for a pretrained model."""

import jax
import numpy as np
import pytest

import rome_jax
from rome_jax.data.samples import EXAMPLE
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.files.wheels import SMOLLM2
from rome_jax.models.registry import load_model
from rome_jax.moments import shipped
from rome_jax.moments.shipped import is_shipped, load_shipped
from rome_jax.moments.sources import read

NAME = "smollm2-135m"


def test_the_edited_layers_of_the_pretrained_model_come_with_the_package():
    assert is_shipped(NAME)
    moments = load_shipped(NAME)
    edited = [config.for_model(NAME).layers for config in (rome_jax.ROMEConfig, MEMITConfig)]
    assert set(moments) == set().union(*edited)
    for layer, moment in moments.items():
        known = moment.provenance
        assert (known.model, known.layer, known.corpus) == (NAME, layer, "self")
        assert known.command.startswith("python -m eval.layer_stats --model_name=smollm2-135m")
        assert known.recipe["seed"] == 0 and 0 < known.error < 0.1
        assert moment.mean.shape == (1536, 1536) and moment.count > 10 * 1536
        assert moment.is_definite and moment.condition_number() < 1e8


def test_a_layer_that_does_not_come_with_the_package_is_named(shipped_model, monkeypatch):
    model = shipped_model("factworld-gpt2")
    monkeypatch.setattr(shipped.files, "load", lambda path: {4: None})
    with pytest.raises(
        FileNotFoundError, match=r"of layers 4 come with factworld-gpt2, not of 2, 3"
    ):
        read(None, [2, 3, 4], model)


@pytest.mark.slow
def test_an_edit_with_it_gives_the_target():
    if not SMOLLM2.path.is_file():
        pytest.skip(f"{SMOLLM2.path.name} is not in the cache")
    pytest.importorskip("gguf")
    model = load_model(NAME, offline=True)
    config = rome_jax.ROMEConfig.for_model(NAME)
    moments = read(None, config.layers, model)
    assert moments[config.layers[0]].match == "verified"
    result = rome_jax.edit.method.METHODS["ROME"].compute(
        model, [EXAMPLE], config, second_moments=moments, key=jax.random.key(0)
    )
    batch = rome_jax.encode(model.tokenizer, [EXAMPLE.text])
    written = rome_jax.generate(
        model.params, model.config, batch, max_new_tokens=1, deltas=result.deltas[0]
    )
    assert written.texts(model.tokenizer, with_prompt=False) == [EXAMPLE.target_text]
    assert np.isfinite(result.deltas[0].updates[0].left).all()
