"""What is checked: models at their real size, or tiny ones of the same shape, and second moments for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from benchmarks.evaluate_cases import EDIT_LAYERS
from benchmarks.gpu.moment import moment_root
from rome_jax.models.config import PRESETS, Family, ModelConfig
from rome_jax.moments.files import SecondMoment

# As `--sizes` names them.
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
      config: of the model.
      layer: that is edited: the published one.
    """

    config: ModelConfig
    layer: int

    @classmethod
    def of(cls, name: str, tiny: bool = False) -> Size:
        """The model that `--sizes` calls `name`, or a tiny one of its family.

        Example:
          >>> Size.of("gpt2-xl").layer, Size.of("gpt-j-6B", tiny=True).config.width
          (17, 32)
        """
        config = PRESETS[NAMES[name]]
        if not tiny:
            return cls(config, EDIT_LAYERS[NAMES[name]])
        rotary_dim = 4 if config.family is Family.GPTJ else 0
        return cls(dataclasses.replace(config, **_TINY, rotary_dim=rotary_dim), 1)


def second_moment(width: int) -> SecondMoment:
    """A second moment with a spread of eigenvalues, factored already: C is factored once a layer, not once an edit."""
    root = moment_root(width)
    matrix = root @ root.T
    matrix[np.diag_indices(width)] += 1
    moment = SecondMoment(matrix, width)
    moment.solve(np.ones(width))
    return moment
