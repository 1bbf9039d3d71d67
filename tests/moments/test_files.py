"""Files of second moments: written, read, checked."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rome_jax.models import provenance
from rome_jax.models.provenance import Match, Origin, dtype_of
from rome_jax.moments import files as moment_files
from rome_jax.moments.published import load_reference
from rome_jax.moments.second_moment import SecondMoment
from tests.golden_cases import GOLDEN
from tests.moments.examples import moments_for, tiny_model

STATS = "stats_files/gpt2/transformer.h.1.mlp.c_proj_float32_mom2_500.npz"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


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


def test_float16_halves_a_file_and_keeps_the_directions(tmp_path, model):
    spread = np.logspace(-3, 3, 40)  # C has entries from 1e-6 to 1e6, beyond float16
    (moment,) = moments_for(model, [1]).values()
    moment = dataclasses.replace(moment, mean=moment.mean * np.outer(spread, spread))
    moment_files.save(tmp_path, {1: moment}, "float16")
    arrays = load_file(tmp_path / "layer_1.safetensors")
    assert arrays["triangle"].dtype == np.float16 and arrays["scale"].shape == (40,)
    loaded = moment_files.load(tmp_path, model)[1]
    assert loaded.is_definite and loaded.provenance.layer == 1
    keys = np.random.default_rng(0).standard_normal((5, 40)) * spread
    found, wanted = loaded.solve(keys) * spread, moment.solve(keys) * spread
    assert np.linalg.norm(found - wanted) <= 2e-3 * np.linalg.norm(wanted)

    arrays["scale"] = arrays["scale"][:7]
    with safe_open(tmp_path / "layer_1.safetensors", framework="np") as file:
        metadata = {"rome_jax": file.metadata()["rome_jax"]}
    save_file(arrays, tmp_path / "layer_1.safetensors", metadata)
    with pytest.raises(ValueError, match=r"layer_1\.safetensors is damaged \(a scale of shape"):
        moment_files.load(tmp_path)
    with pytest.raises(ValueError, match="dtype='int8': give float32 or float16"):
        moment_files.save(tmp_path, {1: moment}, "int8")


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    moment_files.save(tmp_path, {0: SecondMoment(np.eye(2), 5)})

    def no_space(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.replace", no_space)
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
    assert moment_files.load(path)  # Without a model, any file is accepted.


def test_another_dtype_of_the_same_weights_is_accepted_and_recorded(tmp_path, model, monkeypatch):
    half = model.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))
    for collected, used in ((model, half), (half, model)):
        moment_files.save(
            tmp_path,
            moments_for(collected, [0], base=Origin.of(collected).base, dtype=dtype_of(collected)),
        )
        assert moment_files.load(tmp_path, used)[0].match is Match.OTHER_DTYPE
        assert moment_files.load(tmp_path, collected)[0].match is Match.SAME
    # Without the base fingerprint, nothing shows that these are the same weights.
    monkeypatch.setattr(provenance, "_RELATED", set())
    moment_files.save(tmp_path, moments_for(model, [0]))
    with pytest.raises(ValueError, match=r"tiny \(float32 .* not on tiny \(bfloat16 "):
        moment_files.load(tmp_path, half)


def test_missing_files_are_errors(tmp_path, model):
    for read in (moment_files.load, load_reference):
        with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
            read(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="holds no second moments"):
        moment_files.load(tmp_path)
    moment_files.save(tmp_path, moments_for(model))
    with pytest.raises(FileNotFoundError, match=r"layers 0, 2, not of 1: .*--layers=1`"):
        moment_files.load(tmp_path, layers=[1, 2])


def damaged_files(path, triangle, metadata):
    """Returns ways in which a file can be wrong, with part of the message for each."""
    good = {"rome_jax": json.dumps(metadata)}

    def write(arrays, meta):
        return lambda: save_file(arrays, path, meta)

    def truncate():
        path.write_bytes(path.read_bytes()[:-7])

    return {
        "truncated": (truncate, "or damaged"),
        "empty": (lambda: path.write_bytes(b""), "or damaged"),
        "no metadata": (write({"triangle": triangle}, None), "holds no second moment of rome_jax"),
        "other metadata": (
            write({"triangle": triangle}, {"rome_jax": "[1]"}),
            "metadata is not a JSON object",
        ),
        "a field too many": (
            write({"triangle": triangle}, {"rome_jax": json.dumps(metadata | {"new": 1})}),
            "metadata: new is not a field that is read",
        ),
        "other tensors": (write({"delta": triangle}, good), "holds no second moment of rome_jax"),
        "no triangle": (write({"triangle": triangle[:-1]}, good), "is not a packed triangle"),
        "NaN": (write({"triangle": triangle * np.float32("nan")}, good), "holds NaN"),
        "no tokens": (
            write({"triangle": triangle}, {"rome_jax": json.dumps(metadata | {"tokens": 0})}),
            "tokens=0: give a number of 1 or more",
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


def test_a_file_of_the_original_is_refused():
    with pytest.raises(ValueError, match="load_reference"):
        moment_files.load(GOLDEN / STATS)


def test_a_flipped_byte_is_noticed(tmp_path, model):
    moment_files.save(tmp_path, moments_for(model, [1]))
    path = moment_files.file_of(tmp_path, 1)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"layer_1\.safetensors is truncated or damaged"):
        moment_files.load(tmp_path)


def test_files_of_earlier_versions_load(tmp_path, model):
    """They have neither checksums nor a base fingerprint."""
    moment = moments_for(model, [1])[1]
    triangle = np.ones(40 * 41 // 2, np.float32)
    fields = dataclasses.asdict(moment.provenance) | {"tokens": 91, "layer": 1}
    del fields["base"]
    save_file(
        {"triangle": triangle},
        moment_files.file_of(tmp_path, 1),
        {"rome_jax": json.dumps(fields)},
    )
    assert moment_files.load(tmp_path, model)[1].match is Match.SAME
