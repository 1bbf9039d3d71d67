"""Second moments: accumulation from batches, files, and finding them for a model."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rome_jax.data.tokens import pad
from rome_jax.models import forward
from rome_jax.models.interventions import Site
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import files as moment_files
from rome_jax.moments import published as reference_stats
from rome_jax.moments.files import MomentProvenance, SecondMoment
from rome_jax.version import __version__
from tests.golden_cases import GOLDEN
from tests.models.checkpoints import random_params, tiny_config

STATS = "stats_files/gpt2/transformer.h.1.mlp.c_proj_float32_mom2_500.npz"
LENGTHS = (12, 1, 7, 9, 3, 12, 5, 8)


@pytest.fixture(scope="module")
def tiny():
    config = tiny_config("gpt2")
    return random_params(config), config


@pytest.fixture(scope="module")
def model(tiny):
    params, config = tiny
    return LanguageModel("tiny", config, params, None, "random")


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 50, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(tiny, rows):
    """Per layer, Σ k kᵀ / count in float64, from the keys of each row alone."""
    params, config = tiny
    total = 0
    for row in rows:
        batch = pad([row], multiple=12)
        keys = forward.capture(params, config, batch, (Site.MLP_KEY,))[Site.MLP_KEY]
        keys = np.asarray(keys, np.float64)[:, 0, : len(row)]
        total = total + np.swapaxes(keys, 1, 2) @ keys
    return total / sum(LENGTHS)


def relative_error(actual, wanted):
    return np.linalg.norm(actual - wanted) / np.linalg.norm(wanted)


def positive_definite(width, seed=0):
    root = np.random.default_rng(seed).standard_normal((width, width))
    return root @ root.T / width + np.eye(width)


def moments_for(model, layers=(0, 2), **known):
    """Second moments that say that they were collected on `model`."""
    known = {"model": model.name, "fingerprint": model.fingerprint(), "dtype": "float32"} | known
    return {
        layer: SecondMoment(positive_definite(40, layer), 90 + layer, MomentProvenance(**known))
        for layer in layers
    }


# Accumulation


@pytest.mark.parametrize(
    ("per_batch", "left"), [(8, False), (8, True), (4, False), (1, False)], ids=str
)
def test_accumulate_is_the_mean_outer_product_of_the_keys(tiny, rows, expected, per_batch, left):
    batches = [
        pad(rows[i : i + per_batch], multiple=12, left=left) for i in range(0, len(rows), per_batch)
    ]
    moments = moment_files.accumulate(*tiny, batches)
    assert sorted(moments) == [0, 1, 2]
    for layer, moment in moments.items():
        assert moment.count == sum(LENGTHS)
        assert moment.mean.dtype == np.float64
        np.testing.assert_array_equal(moment.mean, moment.mean.T)
        assert relative_error(moment.mean, expected[layer]) <= 1e-6


def test_accumulate_does_the_layers_asked_for(tiny, model, rows, expected):
    moments = moment_files.accumulate(*tiny, [pad(rows, multiple=12)], layers=[1])
    assert sorted(moments) == [1]
    assert relative_error(moments[1].mean, expected[1]) <= 1e-6
    known = moments[1].provenance
    assert (known.layer, known.fingerprint) == (1, model.fingerprint())
    assert (known.dtype, known.version) == ("float32", __version__)


def test_batches_may_come_from_a_generator(tiny, rows):
    batches = (pad([row], multiple=12) for row in rows[:2])
    assert moment_files.accumulate(*tiny, batches)[0].count == sum(LENGTHS[:2])


def test_no_batches_is_an_error(tiny):
    with pytest.raises(ValueError, match="at least one batch"):
        moment_files.accumulate(*tiny, [])


# Files of ours


@pytest.mark.parametrize("width", [1, 2, 3, 10])
def test_triangles(width):
    matrix = positive_definite(width)
    matrix = np.triu(matrix) + np.triu(matrix, 1).T
    triangle = moment_files.pack_triangle(matrix, np.float64)
    np.testing.assert_array_equal(triangle, matrix[np.triu_indices(width)])
    np.testing.assert_array_equal(moment_files.unpack_triangle(triangle), matrix)


def test_save_and_load(tmp_path, model):
    known = {
        "corpus": "texts",
        "revision": "sha256:0",
        "limit": "9 articles",
        "articles": 9,
        "rows": 4,
        "sequence_length": 32,
        "version": "0.0.1",
    }
    moments = moments_for(model, **known)
    moment_files.save(tmp_path / "new", moments)
    names = ["layer_0.safetensors", "layer_2.safetensors"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == names
    loaded = moment_files.load(tmp_path / "new", model)
    assert list(loaded) == [0, 2]
    for layer, moment in moments.items():
        assert loaded[layer].count == moment.count
        assert loaded[layer].provenance == dataclasses.replace(moment.provenance, layer=layer)
        rounded = moment.mean.astype(np.float32).astype(np.float64)
        np.testing.assert_array_equal(np.triu(loaded[layer].mean), np.triu(rounded))
        np.testing.assert_array_equal(loaded[layer].mean, loaded[layer].mean.T)
    one = moment_files.load(tmp_path / "new" / names[1], model)
    assert list(one) == [2]
    assert list(moment_files.load(tmp_path / "new", layers=[2])) == [2]


def test_a_file_is_half_of_a_float32_matrix(tmp_path, model):
    moment_files.save(tmp_path, moments_for(model, [1]))
    arrays = load_file(tmp_path / "layer_1.safetensors")
    assert {name: (a.dtype, a.shape) for name, a in arrays.items()} == {
        "triangle": (np.float32, (40 * 41 // 2,))
    }


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    moment_files.save(tmp_path, {0: SecondMoment(np.eye(2), 5)})

    def no_space(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("rome_jax.files.safetensors_io.os.replace", no_space)
    with pytest.raises(OSError, match="no space"):
        moment_files.save(tmp_path, {0: SecondMoment(2 * np.eye(2), 5)})
    assert [file.name for file in tmp_path.iterdir()] == ["layer_0.safetensors"]
    np.testing.assert_array_equal(moment_files.load(tmp_path)[0].mean, np.eye(2))


@pytest.mark.parametrize("layer", [None, 2])
def test_another_model_is_an_error_that_names_both(tmp_path, model, layer):
    moment_files.save(tmp_path, moments_for(model))
    path = tmp_path if layer is None else moment_files.file_of(tmp_path, layer)
    half = {**model.params, "wte": {"embedding": model.params["wte"]["embedding"] * 2}}
    other = model.replace(name="other", params=half)
    message = (
        rf"was collected on tiny \(float32 weights {model.fingerprint()[:12]}\), not on other "
        rf"\(float32 weights {other.fingerprint()[:12]}\)"
    )
    with pytest.raises(ValueError, match=message):
        moment_files.load(path, other)
    assert moment_files.load(path)  # without a model, nobody minds


def test_a_model_of_another_dtype_is_another_model(tmp_path, model):
    moment_files.save(tmp_path, moments_for(model))
    half = {
        **model.params,
        "wte": {"embedding": model.params["wte"]["embedding"].astype("bfloat16")},
    }
    assert half["wte"]["embedding"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"tiny \(float32 .* not on tiny \(bfloat16 "):
        moment_files.load(tmp_path, model.replace(params=half))


def test_what_is_not_there_is_an_error(tmp_path, model):
    for read in (moment_files.load, moment_files.load_reference):
        with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
            read(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="holds no second moments"):
        moment_files.load(tmp_path)
    moment_files.save(tmp_path, moments_for(model))
    with pytest.raises(FileNotFoundError, match=r"layers 0, 2, not of 1: .*--layers=1`"):
        moment_files.load(tmp_path, layers=[1, 2])


def damaged_files(path, triangle, metadata):
    """Ways in which a file can be wrong, with the sentence for each."""
    good = {"rome_jax": json.dumps(metadata)}

    def write(arrays, meta):
        return lambda: save_file(arrays, path, meta)

    def truncate():
        path.write_bytes(path.read_bytes()[:-7])

    return {
        "truncated": (truncate, "is damaged"),
        "empty": (lambda: path.write_bytes(b""), "is damaged"),
        "no metadata": (write({"triangle": triangle}, None), "holds no second moment of rome_jax"),
        "other metadata": (
            write({"triangle": triangle}, {"rome_jax": "[1]"}),
            "holds no second moment of rome_jax",
        ),
        "a field too many": (
            write({"triangle": triangle}, {"rome_jax": json.dumps(metadata | {"new": 1})}),
            "holds no second moment of rome_jax",
        ),
        "other tensors": (write({"delta": triangle}, good), r"holds \['delta'\], not 'triangle'"),
        "no triangle": (write({"triangle": triangle[:-1]}, good), "is no triangle"),
        "NaN": (write({"triangle": triangle * np.float32("nan")}, good), "or NaN in it"),
        "no tokens": (
            write({"triangle": triangle}, {"rome_jax": json.dumps(metadata | {"tokens": 0})}),
            "0 tokens",
        ),
    }


@pytest.mark.parametrize("kind", list(damaged_files(None, np.ones(3), {})))
def test_a_damaged_file_is_an_error(tmp_path, model, kind):
    moment_files.save(tmp_path, moments_for(model, [1]))
    path = moment_files.file_of(tmp_path, 1)
    triangle = load_file(path)["triangle"]
    metadata = dataclasses.asdict(moment_files.load(path)[1].provenance) | {"tokens": 91}
    damage, message = damaged_files(path, triangle, metadata)[kind]
    damage()
    for place in (tmp_path, path):
        with pytest.raises(ValueError, match=message):
            moment_files.load(place)


def test_a_file_of_the_original_is_not_one_of_ours(request):
    with pytest.raises(ValueError, match="load_reference"):
        moment_files.load(GOLDEN / STATS)


def test_shipped_files_belong_to_their_models():
    for name in ("factworld-gpt2", "factworld-gptj"):
        for layer, moment in moment_files.load_shipped(name).items():
            known = moment.provenance
            assert (known.model, known.layer, known.corpus) == (name, layer, "factworld")
            assert (known.limit, known.articles) == ("all", 20_000)
            assert moment.fill_rate >= 0.99


# The front door


def test_read_takes_ours(tmp_path, model):
    moment_files.save(tmp_path, moments_for(model))
    assert list(moment_files.read(tmp_path, [2], model)) == [2]
    assert list(moment_files.read(moment_files.file_of(tmp_path, 0), [0], model)) == [0]
    with pytest.raises(FileNotFoundError, match="not of 1"):
        moment_files.read(tmp_path, [1, 2], model)
    with pytest.raises(ValueError, match="not on other"):
        other = model.replace(
            name="other",
            params={**model.params, "ln_f": {"scale": jnp.ones(18), "bias": jnp.ones(18)}},
        )
        moment_files.read(tmp_path, [2], other)


def original(directory, layer, width=40, articles=500):
    """A file as the original writes it."""
    path = directory / f"transformer.h.{layer}.mlp.c_proj_float32_mom2_{articles}.npz"
    total = positive_definite(width, layer).astype(np.float32) * 70
    np.savez(path, **{"mom2.mom2": total, "mom2.count": 70, "sample_size": articles})
    return path


def test_read_takes_the_originals(tmp_path, model):
    paths = {layer: original(tmp_path, layer) for layer in (0, 1)}
    (one,) = moment_files.read(paths[1], [1], model).values()
    both = moment_files.read(tmp_path, [0, 1], model)
    assert list(both) == [0, 1] and both[1].count == one.count == 70
    np.testing.assert_array_equal(both[1].mean, one.mean)
    assert relative_error(both[0].mean, positive_definite(40, 0)) <= 1e-6
    anonymous = paths[1].rename(tmp_path / "mine.npz")
    np.testing.assert_array_equal(moment_files.read(anonymous, [2], model)[2].mean, one.mean)


def test_read_refuses_the_originals_where_they_do_not_fit(tmp_path, model):
    path = original(tmp_path, 1)
    with pytest.raises(ValueError, match=r"one layer, but layers=\(0, 1\) are wanted"):
        moment_files.read(path, [0, 1], model)
    with pytest.raises(ValueError, match="is of layer 1 by its name, but layer 2 is wanted"):
        moment_files.read(path, [2], model)
    with pytest.raises(FileNotFoundError, match=r"holds 0 files transformer\.h\.2\.mlp\.c_proj_"):
        moment_files.read(tmp_path, [2], model)
    original(tmp_path, 1, articles=9)
    with pytest.raises(FileNotFoundError, match=r"holds 2 files .*: name the file"):
        moment_files.read(tmp_path, [1], model)
    with pytest.raises(ValueError, match="has width 7 and tiny has 40"):
        moment_files.read(original(tmp_path, 0, width=7), [0], model)
    with pytest.raises(FileNotFoundError, match="absent"):
        moment_files.read(tmp_path / "absent", [0], model)


def test_read_downloads_the_published_ones(tmp_path, model, monkeypatch):
    served = original(tmp_path, 1)
    monkeypatch.setattr(reference_stats, "download", lambda model, layer: served)
    assert moment_files.read("published", [1], model)[1].count == 70
