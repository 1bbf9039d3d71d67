"""Files of hypernetworks: the round trip, and every kind of refused file."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from rome_jax.edit.baseline_config import RateOrder
from rome_jax.edit.config import MethodName
from rome_jax.edit.hypernetworks import networks as hypernetworks
from rome_jax.version import __version__
from tests.edit.networks import KE_CONFIG, MEND_CONFIG, random_hypernetwork

ABOUT = {"training": {"learning_rate": 1e-3}, "data": {"source": "a test"}}


@pytest.fixture(scope="module")
def network(model):
    config = dataclasses.replace(MEND_CONFIG, rate_order=RateOrder.REFERENCE, lr_scale=0.5)
    found = random_hypernetwork(config, model.config)
    return dataclasses.replace(found, fingerprint=model.fingerprint(), about=ABOUT)


def header_of(path):
    with safe_open(path, framework="np") as file:
        return file.metadata()


def rewrite(path, **changes):
    """Changes values of the file's header; None removes a value."""
    header = json.loads(header_of(path)["rome_jax"]) | changes
    header = {name: value for name, value in header.items() if value is not None}
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {"rome_jax": json.dumps(header)})


def test_a_file_returns_the_saved_network(network, model, tmp_path):
    path = hypernetworks.save(tmp_path / "new" / "mend.safetensors", network)
    found = hypernetworks.load(path, model)
    assert (found.kind, found.config) == (MethodName.MEND, network.config)
    assert (found.model, found.fingerprint, found.about) == ("tiny", model.fingerprint(), ABOUT)
    jax.tree.map(np.testing.assert_array_equal, found.variables, network.variables)
    assert [p.name for p in path.parent.iterdir()] == ["mend.safetensors"]


def test_ke_has_only_parameters(model, tmp_path):
    network = random_hypernetwork(KE_CONFIG, model.config)
    found = hypernetworks.load(hypernetworks.save(tmp_path / "ke.safetensors", network))
    assert (found.kind, found.config, found.fingerprint) == (MethodName.KE, KE_CONFIG, None)
    assert list(found.variables) == ["params"]
    jax.tree.map(np.testing.assert_array_equal, found.variables, network.variables)


def test_half_precision_rounds_parameters_but_not_statistics(network, tmp_path):
    path = hypernetworks.save(tmp_path / "mend.safetensors", network, np.float16)
    found = hypernetworks.load(path)
    own = network.variables
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found.variables))
    jax.tree.map(np.testing.assert_array_equal, found.variables["statistics"], own["statistics"])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.float32(np.float16(b))),
        found.variables["params"],
        own["params"],
    )
    with safe_open(path, framework="np") as file:
        stored = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert all((kind == "F16") == name.startswith("params") for name, kind in stored.items())
    assert set(stored.values()) == {"F16", "F32"}


def test_saving_replaces_a_file(network, model, tmp_path):
    path = tmp_path / "network.safetensors"
    hypernetworks.save(path, random_hypernetwork(KE_CONFIG, model.config))
    hypernetworks.save(path, network)
    assert hypernetworks.load(path).kind is MethodName.MEND


def test_another_suffix(network, tmp_path):
    with pytest.raises(ValueError) as error:
        hypernetworks.save(tmp_path / "mend.pt", network)
    assert str(error.value) == f"{tmp_path}/mend.pt must end in .safetensors."
    assert not list(tmp_path.iterdir())


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        hypernetworks.load(tmp_path / "mend.safetensors")
    assert str(error.value) == (
        f"{tmp_path}/mend.safetensors is not a file: give a file that eval.train_hypernetwork wrote."
    )


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), ".* is truncated or damaged .*"),
        (lambda path: path.write_bytes(b""), ".* is truncated or damaged .*"),
        (lambda path: path.write_bytes(b"not safetensors" * 100), ".* truncated or damaged .*"),
        (
            lambda path: save_file({"a": np.zeros(1)}, path),
            "its metadata is empty: it was cut short",
        ),
        (
            lambda path: save_file({}, path, {"rome_jax": "{"}),
            "its metadata ends within a value .*",
        ),
        (lambda path: save_file({}, path, {"rome_jax": "[]"}), "its metadata is not a JSON .*"),
        (lambda path: rewrite(path, kind="ROME"), "ROME has no hypernetwork"),
        (lambda path: rewrite(path, kind=["MEND"]), "its metadata: kind=.*"),
        (lambda path: rewrite(path, config={}), "layers is missing.*"),
        (lambda path: rewrite(path, about=None), "its metadata: about is missing: give it"),
        (
            lambda path: rewrite(path, format=hypernetworks.FORMAT + 1),
            "format 2 is newer than 1",
        ),
    ],
    ids="short empty other foreign spoilt list kind kinds config header newer".split(),
)
def test_files_that_hold_no_hypernetwork(network, tmp_path, spoil, why):
    path = hypernetworks.save(tmp_path / "mend.safetensors", network)
    spoil(path)
    start = f"{path} holds no hypernetwork that rome_jax {__version__} can read"
    with pytest.raises(ValueError, match=rf"{start} \({why}\): give a file") as error:
        hypernetworks.load(path)
    assert str(error.value).endswith("that eval.train_hypernetwork wrote.")


def test_a_network_of_other_weights(network, model, tmp_path):
    path = hypernetworks.save(tmp_path / "mend.safetensors", network)
    params = model.params | {"ln_f": jax.tree.map(lambda leaf: leaf + 1, model.params["ln_f"])}
    other = model.replace(name="other", params=params)
    with pytest.raises(ValueError) as error:
        hypernetworks.load(path, other)
    assert str(error.value) == (
        f"the hypernetwork of MEND was trained for tiny (weights {model.fingerprint()[:12]}), not for other (float32 "
        f"weights {other.fingerprint()[:12]}): load that model, or train one for this model with `python -m "
        "eval.train_hypernetwork --alg_name=MEND --model_name=other`."
    )
    assert (
        hypernetworks.load(path).fingerprint == model.fingerprint()
    )  # without a model, weights are not compared


def test_networks_without_a_fingerprint_fit_any_model(network, model):
    published = dataclasses.replace(network, fingerprint=None)
    assert published.check(model) is published
