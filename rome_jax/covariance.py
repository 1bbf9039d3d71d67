"""Second moments of MLP keys, C = E[k kᵀ], and the whitening solve u = C⁻¹ k (paper, equation 2 and appendix E.2).

C is uncentered and taken over all positions of a corpus. The paper calls it a covariance, the original's files a
second moment ("mom2"). Products run in float32 at highest precision and are summed in float64 on the host, where
the solve happens too: C is badly conditioned, and it is factored once for a layer.

Axes: B rows, T tokens, F MLP width.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.fingerprint import fingerprint
from rome_jax.models.interventions import Site
from rome_jax.models.registry import SHIPPED
from rome_jax.tokens import TokenBatch


@dataclasses.dataclass(frozen=True, eq=False)
class SecondMoment:
    """C of one layer.

    Attributes:
      mean: float64 [F, F], symmetric.
      count: tokens behind it.
      fingerprint: of the model it was collected on; empty if that is not known.
    """

    mean: np.ndarray
    count: int
    fingerprint: str = ""

    def __post_init__(self):
        if self.mean.ndim != 2 or self.mean.shape[0] != self.mean.shape[1]:
            raise ValueError(f"mean has shape {self.mean.shape}; a second moment is square.")

    @functools.cached_property
    def _cholesky(self) -> tuple[np.ndarray, bool]:
        try:
            return scipy.linalg.cho_factor(self.mean.astype(np.float64), lower=True)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"the second moment of {self.count} tokens and width {self.mean.shape[0]} is not positive "
                "definite: collect more tokens than its width, or edit without it (mom2_adjustment=False)."
            ) from None

    def solve(self, keys: jax.typing.ArrayLike) -> np.ndarray:
        """C⁻¹ k for keys [..., F], by Cholesky in float64; float32 [..., F].

        Raises:
          ValueError: C is not positive definite, or the width differs.

        Example:
          >>> SecondMoment(np.diag([1.0, 4.0]), count=10).solve(np.array([2.0, 2.0])).tolist()
          [2.0, 0.5]
        """
        keys = np.asarray(keys, np.float64)
        if keys.shape[-1] != self.mean.shape[0]:
            raise ValueError(
                f"keys of width {keys.shape[-1]} and a second moment of width {self.mean.shape[0]}: "
                "it was collected on another model."
            )
        flat = keys.reshape(-1, keys.shape[-1])
        return (
            scipy.linalg.cho_solve(self._cholesky, flat.T).T.reshape(keys.shape).astype(np.float32)
        )


@functools.partial(jax.jit, static_argnames=("config", "stop"))
def _batch_sums(params: forward.Params, config: ModelConfig, batch: TokenBatch, stop: int):
    """Σ k kᵀ over a batch's real tokens for each layer below `stop`, [stop, F, F]."""
    keys = forward.capture(params, config, batch, (Site.MLP_KEY,), stop=stop)[Site.MLP_KEY]
    keys = jnp.where(batch.mask[..., None], keys.astype(jnp.float32), 0.0)
    return jnp.einsum("lbtf,lbtg->lfg", keys, keys, precision=jax.lax.Precision.HIGHEST)


def accumulate(
    params: forward.Params,
    config: ModelConfig,
    batches: Iterable[TokenBatch],
    *,
    stop: int | None = None,
) -> dict[int, SecondMoment]:
    """Second moments of all layers below `stop`, in one pass.

    Args:
      params, config: the model.
      batches: of a few thousand tokens each and of one shape, so that they share a program.
      stop: layers to run; all by default.

    Returns:
      By layer, over every real token of every batch.

    Raises:
      ValueError: no batches.
    """
    stop = config.num_layers if stop is None else stop
    total = np.zeros((stop, config.mlp_width, config.mlp_width))
    count = 0
    for batch in batches:
        total += np.asarray(_batch_sums(params, config, batch, stop), np.float64)
        count += int(np.sum(batch.mask))
    if not count:
        raise ValueError("no tokens: give at least one batch.")
    model = fingerprint(params, config)
    return {layer: SecondMoment(total[layer] / count, count, model) for layer in range(stop)}


def save(path: str | pathlib.Path, moments: Mapping[int, SecondMoment]) -> None:
    """Writes moments of one model to an .npz, upper triangles in float32, whole or not at all."""
    path = pathlib.Path(path)
    arrays = {}
    for layer, moment in moments.items():
        upper = np.triu_indices(moment.mean.shape[0])
        arrays[f"layer_{layer}"] = moment.mean[upper].astype(np.float32)
        arrays[f"count_{layer}"] = np.int64(moment.count)
        arrays[f"fingerprint_{layer}"] = np.str_(moment.fingerprint)
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)


def load(path: str | pathlib.Path) -> dict[int, SecondMoment]:
    """Reads what `save` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is damaged or holds no layers.
    """
    arrays = _read_npz(pathlib.Path(path))
    layers = sorted(int(name[6:]) for name in arrays if name.startswith("layer_"))
    if not layers:
        raise ValueError(
            f"{path} holds {sorted(arrays)}, no layers: a file of the original needs load_reference."
        )
    return {
        layer: SecondMoment(
            _unpack(arrays[f"layer_{layer}"]),
            int(arrays[f"count_{layer}"]),
            str(arrays[f"fingerprint_{layer}"]),
        )
        for layer in layers
    }


def load_reference(path: str | pathlib.Path) -> SecondMoment:
    """Reads a statistics file of the original (its .npz holds the SUM of k kᵀ, and the token count).

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is damaged or lacks the original's keys.
    """
    arrays = _read_npz(pathlib.Path(path))
    if "mom2.mom2" not in arrays or "mom2.count" not in arrays:
        raise ValueError(
            f"{path} holds {sorted(arrays)}, not the original's 'mom2.mom2' and 'mom2.count'."
        )
    count = int(arrays["mom2.count"])
    return SecondMoment(arrays["mom2.mom2"].astype(np.float64) / count, count)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"no second moments at {path}: give the path of an .npz file.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            # The original's files hold a class name too, which is not needed and may be a pickle.
            return {name: arrays[name] for name in arrays if not name.endswith("constructor")}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no .npz file: copy it again.") from error


def _unpack(triangle: np.ndarray) -> np.ndarray:
    width = int(np.sqrt(2 * triangle.size))
    matrix = np.zeros((width, width))
    matrix[np.triu_indices(width)] = triangle
    return matrix + np.triu(matrix, 1).T


def load_shipped(name: str) -> dict[int, SecondMoment]:
    """Second moments of all layers of a model that comes with the package, over its own corpus.

    Raises:
      ValueError: no statistics come with `name`.

    Example:
      >>> sorted(load_shipped("factworld-gpt2"))[:2]
      [0, 1]
    """
    if name not in SHIPPED:
        raise ValueError(
            f"no second moments come with model {name!r} (only with {', '.join(SHIPPED)}): collect them with "
            "rome_jax.covariance.accumulate, or edit with mom2_adjustment=False."
        )
    file = f"assets/second_moments_{SHIPPED[name]}.npz"
    with importlib.resources.as_file(
        importlib.resources.files("rome_jax.factworld") / file
    ) as path:
        return load(path)
