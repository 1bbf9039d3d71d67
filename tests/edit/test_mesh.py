"""Every method on a mesh of eight simulated devices, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rome_jax.edit.config import MethodName
from rome_jax.edit.variant import MethodVariant
from tests.eight_devices_methods import BATCHES, EDITORS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

# As tests/edit/methods compare with the original. Gradient descent on weights and
# layers that are solved one after another magnify rounding.
TOLERANCE = dict.fromkeys(
    [
        *(MethodName.FT, MethodName.FT_L, MethodName.FT_ATTN, MethodName.LOCFT_BF),
        *(MethodName.MEMIT, MethodName.EMMET, MethodName.PMET),
        *(MethodName.ALPHAEDIT, MethodName.ENCORE),
    ],
    1e-3,
)


@pytest.fixture(scope="module")
def found():
    """Runs tests/eight_devices_methods.py; returns its results."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.eight_devices_methods"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MethodName)
def test_a_method_makes_the_same_edit_on_eight_devices(found, name):
    assert found["devices"] == 8
    errors = found["methods"][name]
    assert errors and max(errors.values()) < TOLERANCE.get(name, 1e-4), errors


@pytest.mark.parametrize("name", EDITORS)
def test_an_editor_writes_the_same_batches_on_eight_devices(found, name):
    bound = TOLERANCE.get(MethodVariant.parse(name).method, 1e-4)
    batches = found["editors"][name]
    assert len(batches) == len(BATCHES)
    for errors in batches:
        assert errors and max(errors.values()) < bound, errors


def test_second_moments_are_the_same_on_eight_devices(found):
    assert 0 < found["statistics"] < 1e-5


def test_no_weight_of_an_mlp_is_gathered(found):
    # Each device keeps its part of the weights; only activations travel.
    sizes = [own.get("all-gather", 0) for own in found["communication"].values()]
    assert max(sizes) < found["weight"] / 8


def test_no_layer_reshards(found):
    # One sum after attention and one after the MLP, as the weights are split by heads and by width.
    assert found["communication"]["forward"].keys() == {"all-reduce"}
    assert found["communication"]["states"].keys() == {"all-reduce"}


def test_the_factors_of_an_edit_are_split_like_the_weights(found):
    assert found["factors"] == [["data", "model", None], ["data", None, None]]
