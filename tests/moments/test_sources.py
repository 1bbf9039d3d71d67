"""The front door: where second moments are found, and which are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.moments import published
from rome_jax.moments.files import file_of, save
from rome_jax.moments.shipped import load_shipped
from rome_jax.moments.sources import read
from tests.moments.examples import (
    moments_for,
    original_file,
    positive_definite,
    relative_error,
    tiny_model,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_directory_or_a_file_of_rome_jax_is_read(tmp_path, model):
    save(tmp_path, moments_for(model))
    assert list(read(tmp_path, [2], model)) == [2]
    assert list(read(file_of(tmp_path, 0), [0], model)) == [0]
    with pytest.raises(FileNotFoundError, match="not of 1"):
        read(tmp_path, [1, 2], model)
    with pytest.raises(ValueError, match="not on other"):
        other = model.replace(
            name="other",
            params={**model.params, "ln_f": {"scale": jnp.ones(18), "bias": jnp.ones(18)}},
        )
        read(tmp_path, [2], other)


def test_files_of_the_original_are_read(tmp_path, model):
    paths = {layer: original_file(tmp_path, layer) for layer in (0, 1)}
    (one,) = read(paths[1], [1], model).values()
    both = read(tmp_path, [0, 1], model)
    assert list(both) == [0, 1] and both[1].count == one.count == 70
    np.testing.assert_array_equal(both[1].mean, one.mean)
    assert relative_error(both[0].mean, positive_definite(40, 0)) <= 1e-6
    anonymous = paths[1].rename(tmp_path / "mine.npz")
    np.testing.assert_array_equal(read(anonymous, [2], model)[2].mean, one.mean)


def test_files_of_the_original_that_do_not_fit_are_refused(tmp_path, model):
    path = original_file(tmp_path, 1)
    with pytest.raises(ValueError, match=r"one layer, but layers=\(0, 1\) are requested"):
        read(path, [0, 1], model)
    with pytest.raises(
        ValueError, match="belongs to layer 1 by its name, but layer 2 is requested"
    ):
        read(path, [2], model)
    with pytest.raises(FileNotFoundError, match=r"holds 0 files transformer\.h\.2\.mlp\.c_proj_"):
        read(tmp_path, [2], model)
    original_file(tmp_path, 1, articles=9)
    with pytest.raises(FileNotFoundError, match=r"holds 2 files .*: give the path of the file"):
        read(tmp_path, [1], model)
    with pytest.raises(ValueError, match="has width 7 and the model has 40"):
        read(original_file(tmp_path, 0, width=7), [0], model)
    with pytest.raises(FileNotFoundError, match="absent"):
        read(tmp_path / "absent", [0], model)


def test_published_files_are_downloaded(tmp_path, model, monkeypatch):
    served = original_file(tmp_path, 1)
    monkeypatch.setattr(published, "download", lambda model, layer: served)
    assert read("published", [1], model)[1].count == 70


def test_without_a_source_the_shipped_ones_are_read(shipped_model, model):
    shipped = shipped_model("factworld-gpt2")
    found = read(None, [3, 1], shipped)
    assert list(found) == [1, 3]
    np.testing.assert_array_equal(found[3].mean, load_shipped("factworld-gpt2")[3].mean)
    with pytest.raises(ValueError, match="layers=6 does not exist"):
        read(None, [6], shipped)
    with pytest.raises(ValueError, match="no second moments come with model 'tiny'"):
        read(None, [0], model)


def test_shipped_files_belong_to_their_models():
    for name in ("factworld-gpt2", "factworld-gptj"):
        for layer, moment in load_shipped(name).items():
            known = moment.provenance
            assert (known.model, known.layer, known.corpus) == (name, layer, "factworld")
            assert (known.limit, known.articles) == ("all", 20_000)
            assert moment.fill_rate >= 0.99
