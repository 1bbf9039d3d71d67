"""Random hypernetworks and gradient factors for the tests of hypernetworks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.baseline_config import KEConfig, MENDConfig
from rome_jax.edit.config import MethodName
from rome_jax.edit.hypernetworks.networks import Hypernetwork
from rome_jax.edit.hypernetworks.steps import make_network
from rome_jax.edit.stages.gradients import GradientFactors, projection_sizes
from rome_jax.models.config import ModelConfig
from rome_jax.models.interventions import Leaf

GRADIENT = 0.05  # the typical size of δ in the tiny random models
MEND_CONFIG = MENDConfig((1, 2), rank=4)
KE_CONFIG = KEConfig((1, 2), lstm_width=5, condition_width=6, hidden_width=7)


def random_factors(
    sizes: dict[Leaf, tuple[int, int]], count: int, layers: int, tokens: int, seed: int = 0
) -> dict[str, GradientFactors]:
    """Draws factors; like padding, the last token of the first request has no gradient. Sizes are (inputs, outputs)."""
    generator = np.random.default_rng(seed)
    factors = {}
    for leaf, (inputs, outputs) in sizes.items():
        x = 0.5 + generator.standard_normal((count, layers, tokens, inputs))
        delta = GRADIENT * (0.5 + generator.standard_normal((count, layers, tokens, outputs)))
        delta[0, :, -1] = 0
        factors[leaf.name] = GradientFactors(*(jnp.asarray(a, jnp.float32) for a in (x, delta)))
    return factors


def random_variables(network, factors, condition: TokenBatch | None = None, seed: int = 0):
    """Draws distinct variables of a scale at which every part of a network changes its result noticeably."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), factors, condition)
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        names = [key.key for key in path]
        unit = GRADIENT if "delta" in names else 1.0
        value = 0.3 * generator.standard_normal(leaf.shape)
        match names[-1]:
            case "count":
                value = np.array(50.0)
            case "mean":
                value = unit * value
            case "squares":
                value = 49 * unit**2 * generator.uniform(0.5, 2, leaf.shape)
            case "rates":
                value = 0.1 * value
            case (
                "kernel" | "embedding"
            ):  # otherwise an LSTM hardly depends on the order of its tokens
                value = value / 0.3
            case "scale":
                value = 1 + value
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_hypernetwork(
    config: MENDConfig | KEConfig, model_config: ModelConfig, seed: int = 0
) -> Hypernetwork:
    """Draws a hypernetwork for a model, without a fingerprint."""
    sizes = {leaf: projection_sizes(model_config, leaf) for leaf in config.leaves}
    factors = random_factors(sizes, 1, len(config.layers), 2)
    condition = TokenBatch(np.zeros((1, 2), np.int32), np.ones((1, 2), bool))
    variables = random_variables(make_network(config, model_config), factors, condition, seed)
    kind = MethodName.MEND if isinstance(config, MENDConfig) else MethodName.KE
    return Hypernetwork(kind, config, variables, "tiny", None)


def float64(tree):
    """Converts a tree to NumPy arrays of float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
