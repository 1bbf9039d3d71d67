"""Models of the check at their real or a tiny size, and their second moments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from benchmarks.evaluate_cases import EDIT_LAYERS
from benchmarks.gpu.moment import second_moment_matrix
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import PRESETS
from rome_jax.moments.second_moment import SecondMoment

# Full model names by the names that `--sizes` takes.
NAMES = {name.split("/")[-1]: name for name in EDIT_LAYERS}
_TINY: Mapping[str, int] = {
    "num_layers": 4,
    "width": 32,
    "num_heads": 4,
    "mlp_width": 64,
    "vocab_size": 300,
    "context_length": 64,
}


@dataclasses.dataclass(frozen=True)
class Size:
    """A model to check.

    Attributes:
      config: Configuration of the model.
      layer: Edit layer; for a model of real size the published one.
    """

    config: ModelConfig
    layer: int

    @classmethod
    def of(cls, name: str, tiny: bool = False) -> Size:
        """Returns a model at its real size, or a tiny model of the same family.

        Args:
          name: Model, as `--sizes` names it.
          tiny: Whether to return the tiny model.

        Example:
          >>> Size.of("gpt2-xl").layer, Size.of("gpt-j-6B", tiny=True).config.width
          (17, 32)
        """
        config = PRESETS[NAMES[name]]
        if not tiny:
            return cls(config, EDIT_LAYERS[NAMES[name]])
        rotary = config.rotary and dataclasses.replace(config.rotary, dim=4)
        return cls(
            dataclasses.replace(config, **_TINY, rotary=rotary, head_dim=0, num_kv_heads=0), 1
        )


def second_moment(width: int) -> SecondMoment:
    """Builds and factors the second moment C of `second_moment_matrix`.

    An edit factors C once per layer, so the factorization is not part of the time of one edit.

    Args:
      width: F, the width of the MLP's keys.
    """
    moment = SecondMoment(second_moment_matrix(width), width)
    moment.solve(np.ones(width))
    return moment
