"""One layer's second moment C = E[k kᵀ], where it comes from, and the whitening solve u = C⁻¹ k.

C is uncentered and taken over all positions of a corpus (paper, equation 2 and appendix E.2). The paper calls it a
covariance, the original's files a second moment ("mom2"). It is badly conditioned: it is factored once, in float64.

Axes: F MLP width.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import scipy.linalg


@dataclasses.dataclass(frozen=True)
class MomentProvenance:
    """What a second moment was collected on; an empty or zero field is not known.

    Attributes:
      model: its name.
      fingerprint: SHA-256 of its weights and shape; see `rome_jax.models.fingerprint`.
      dtype: of its weights. Sums and products do not depend on it: they run in float32 and float64.
      layer: whose down-projection the keys enter.
      corpus: its name.
      revision: which version of the corpus: a commit, or a hash of the files.
      limit: how much of it was asked for, such as "100000 articles"; see `rome_jax.moments.collect.Limit`.
      articles: that were read, empty ones not counted.
      rows: of `sequence_length` positions, into which the articles were packed.
      sequence_length: tokens after which an article is cut.
      version: of rome_jax.
    """

    model: str = ""
    fingerprint: str = ""
    dtype: str = ""
    layer: int = 0
    corpus: str = ""
    revision: str = ""
    limit: str = ""
    articles: int = 0
    rows: int = 0
    sequence_length: int = 0
    version: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class SecondMoment:
    """C of one layer.

    Attributes:
      mean: float64 [F, F], symmetric.
      count: tokens behind it.
      provenance: where it comes from.
    """

    mean: np.ndarray
    count: int
    provenance: MomentProvenance = MomentProvenance()

    def __post_init__(self):
        if self.mean.ndim != 2 or self.mean.shape[0] != self.mean.shape[1]:
            raise ValueError(f"mean has shape {self.mean.shape}; a second moment is square.")

    @property
    def fingerprint(self) -> str:
        """Of the model it was collected on; empty if that is not known."""
        return self.provenance.fingerprint

    @property
    def fill_rate(self) -> float:
        """Share of the packed rows' positions that held a token; NaN if that is not known."""
        positions = self.provenance.rows * self.provenance.sequence_length
        return self.count / positions if positions else float("nan")

    @functools.cached_property
    def _cholesky(self) -> tuple[np.ndarray, bool]:
        try:
            return scipy.linalg.cho_factor(self.mean.astype(np.float64), lower=True)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"the second moment of {self.count} tokens and width {self.mean.shape[0]} is not positive "
                "definite: collect more tokens than its width, or edit without it (mom2_adjustment=False)."
            ) from None

    @property
    def factor(self) -> np.ndarray:
        """L of C = L Lᵀ, float32 [F, F], lower triangular: computed in float64 and rounded.

        Programs of your own take it as an array; see `rome_jax.edit.methods.rome.edit`.

        Raises:
          ValueError: If C is not positive definite.

        Example:
          >>> SecondMoment(np.diag([1.0, 4.0]), count=10).factor.tolist()
          [[1.0, 0.0], [0.0, 2.0]]
        """
        return np.tril(self._cholesky[0]).astype(np.float32)

    def solve(self, keys: jax.typing.ArrayLike) -> np.ndarray:
        """C⁻¹ k for keys [..., F], by Cholesky in float64; float32 [..., F].

        Raises:
          ValueError: C is not positive definite, the width differs, or a key is not finite.

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
        if not np.isfinite(keys).all():
            raise ValueError(
                "keys hold NaN or infinity: the model's weights are damaged or overflow."
            )
        flat = keys.reshape(-1, keys.shape[-1])
        factor, _ = self._cholesky
        if (
            len(flat) == 1
        ):  # matrix-vector routines read the factor twice as fast as those for matrices
            half = scipy.linalg.blas.dtrsv(factor, flat[0], lower=1)
            solved = scipy.linalg.blas.dtrsv(factor, half, lower=1, trans=1)
        else:
            # The factor is finite: looking at all of it again would take longer than the solve.
            solved = scipy.linalg.cho_solve(self._cholesky, flat.T, check_finite=False).T
        return solved.reshape(keys.shape).astype(np.float32)

    def condition_number(self) -> float:
        """LAPACK's estimate of ‖C‖₁ ‖C⁻¹‖₁ from the Cholesky factor, which `solve` needs anyway.

        Raises:
          ValueError: C is not positive definite.

        Example:
          >>> round(SecondMoment(np.diag([1.0, 4.0]), count=10).condition_number(), 6)
          4.0
        """
        factor, _ = self._cholesky
        norm = np.abs(self.mean).sum(axis=0).max()
        reciprocal, _ = scipy.linalg.lapack.dpocon(factor, norm, uplo="L")
        return 1 / reciprocal if reciprocal else float("inf")
