"""MEND's transform alone against the numbers of its authors' code: three calls in training, one in evaluation.

The authors' code has options that the library lacks: separate networks for x and δ, a network for one of them alone, no
normalization, and no residual connection (`xavier`). These variants are built from the parts of the library's network.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.edit.baseline_config import MENDConfig
from rome_jax.edit.methods import mend
from rome_jax.edit.stages.gradients import GradientFactors
from tests.edit.hypernetworks.recorded import NUMBERS, assert_close, check_statistics, under
from tests.golden_cases import read_case

CASE = read_case("mend_transform")


def layers_of(weights, net, mode):
    """The parameters of the low-rank layers of one net, with the scale and shift of one mode."""
    layers = {}
    while f"{net}.layers.{len(layers)}.u" in weights:
        own = under(weights, f"{net}.layers.{len(layers)}.")
        none = np.zeros((1, len(own["bias"])), np.float32)
        layers[f"layer_{len(layers)}"] = {
            "u": own["u"].T,
            "v": own["v"].T,
            "bias": own["bias"],
            "scale": own.get("mode_scale.weight", none + 1)[[mode or 0]],
            "shift": own.get("mode_shift.weight", none)[[mode or 0]],
        }
    return layers


def whole(config, weights, mode, factors, statistics, training):
    """(x̃, δ̃, statistics) of the library's network."""
    own = MENDConfig((0,), rank=config["rank"], num_hidden=config["n_hidden"])
    variables = {"params": layers_of(weights, "mlp", mode), "statistics": statistics}
    found, changed = mend.GradientTransform(own).apply(
        variables, factors, training, mutable=["statistics"]
    )
    return found.x, found.delta, changed["statistics"]


def from_parts(config, weights, mode, factors, statistics, training):
    """(x̃, δ̃, statistics) of another network of the authors."""
    inputs, changed = [], {}
    for name, value in (("x", factors.x), ("delta", factors.delta)):
        normalized, after = mend.RunningNormalizer().apply(
            {"statistics": statistics[name]}, value, factors.mask, training, mutable=["statistics"]
        )
        changed[name] = after["statistics"]
        inputs.append(normalized if config["norm"] else value)
    joined = {"mlp": jnp.concatenate(inputs, axis=-1)}
    outputs = joined if config["combine"] else dict(zip(("mlp1", "mlp2"), inputs, strict=True))
    for net, z in outputs.items():
        for params in layers_of(weights, net, mode).values():
            out = mend.LowRankLayer(config["rank"]).apply({"params": params}, z)
            z = out - z if config["init"] == "xavier" else out
        outputs[net] = z
    z = jnp.concatenate(list(outputs.values()), axis=-1)
    return *jnp.split(z, [factors.x.shape[-1]], axis=-1), changed


@pytest.mark.parametrize("name", CASE.info["variants"])
def test_the_transform_equals_that_of_the_authors(name):
    variant, arrays = CASE.info["variants"][name], under(CASE.arrays, f"{name}.")
    config, weights = variant["cfg"], under(arrays, "w.")
    known = config["combine"] and config["norm"] and config["init"] == "id"
    transform = whole if known else from_parts
    statistics = {
        factor: {"count": jnp.zeros(()), "mean": jnp.zeros(size), "squares": jnp.zeros(size)}
        for factor, size in (("x", variant["x_dim"]), ("delta", variant["delta_dim"]))
    }
    assert [call["training"] for call in variant["calls"]] == [True, True, True, False]
    for index, call in enumerate(variant["calls"]):
        expected, what, before = under(arrays, f"c{index}."), f"call {index}", statistics
        factors = GradientFactors(expected["u"][:, None], expected["v"][:, None])
        x, delta, statistics = transform(
            config, weights, call["mode"], factors, statistics, call["training"]
        )
        assert_close(x[factors.mask], expected["out_u"], NUMBERS, f"{what}, x")
        assert_close(delta[factors.mask], expected["out_v"], NUMBERS, f"{what}, delta")
        check_statistics(statistics, expected, what)
    jax.tree.map(np.testing.assert_array_equal, statistics, before)  # evaluation keeps them
