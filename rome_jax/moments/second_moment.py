"""One layer's second moment C = E[k kᵀ], its provenance, and the whitening solve u = C⁻¹ k.

C is not centered and is averaged over all positions of a corpus (ROME paper, equation 2 and appendix E.2). The paper
calls it a covariance; the original's files call it a second moment ("mom2"). It is badly conditioned, so it is factored
once, in float64.

Axes: F MLP width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import scipy.linalg

from rome_jax.files.checked import PositiveInt, check_fields
from rome_jax.models.provenance import Match, Origin
from rome_jax.moments import decompositions


@dataclasses.dataclass(frozen=True)
class MomentProvenance:
    """The model and the corpus that a second moment was collected on. An empty or zero field is unknown.

    Attributes:
      model: Name of the model.
      fingerprint: SHA-256 of the model's weights and shape; see `rome_jax.models.fingerprint`.
      base: Base fingerprint of the model, which its edits share.
      dtype: dtype of the model's weights. Sums and products run in float32 and float64 whatever it is.
      layer: Index of the layer; the keys are the input of its down-projection.
      corpus: Name of the corpus.
      revision: Version of the corpus: a commit, or a hash of its files.
      limit: Requested part of the corpus, such as "100000 articles"; see `rome_jax.moments.limits.Limit`.
      articles: Number of articles that were read, without empty ones.
      rows: Number of rows of `sequence_length` positions that the articles were packed into.
      sequence_length: Number of tokens after which an article was cut.
      version: Version of rome_jax.
      error: How far the directions u of edits are off because the corpus is finite; see `rome_jax.moments.error_bar`.
        None if it is unknown.
      recipe: How a generated corpus was made; see `rome_jax.moments.own_texts`.
      command: Command line of the program that collected.
      begin_tokens: Tokens before each text, such as the begin-of-text token; empty for tokenizers without them.
    """

    model: str = ""
    fingerprint: str = ""
    base: str = ""
    dtype: str = ""
    layer: int = 0
    corpus: str = ""
    revision: str = ""
    limit: str = ""
    articles: int = 0
    rows: int = 0
    sequence_length: int = 0
    version: str = ""
    error: float | None = None
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    command: str = ""
    begin_tokens: list[str] = dataclasses.field(default_factory=list)

    @property
    def origin(self) -> Origin:
        """The model that the second moment was collected on, to be compared with another."""
        return Origin(self.model, self.fingerprint, self.base, self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class SecondMoment:
    """The second moment C of one layer's keys.

    Attributes:
      mean: float64 [F, F], symmetric.
      count: Number of tokens that C was averaged over.
      provenance: The model and the corpus that C was collected on.
      match: How that model relates to the model that C was read for; see `rome_jax.models.provenance`.

    Raises:
      ValueError: If `mean` is not a square matrix of finite numbers, or `count` is not a whole number of at least 1.
    """

    mean: np.ndarray
    count: PositiveInt
    provenance: MomentProvenance = MomentProvenance()
    match: Match = Match.UNVERIFIED

    def __post_init__(self):
        object.__setattr__(self, "mean", np.asarray(self.mean))
        check_fields(self, ["count"])
        if self.mean.dtype.kind not in "fiu":
            raise ValueError(f"mean has the type {self.mean.dtype}: give a matrix of numbers.")
        if self.mean.ndim != 2 or self.mean.shape[0] != self.mean.shape[1]:
            raise ValueError(
                f"the second moment has mean of shape {self.mean.shape}: give a square matrix [F, F]."
            )
        # A sum is finite if all numbers are, unless they overflow; it needs no array of the same size.
        if not np.isfinite(self.mean.sum()) and not np.isfinite(self.mean).all():
            raise ValueError("mean holds NaN or infinity: collect the second moment again.")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that C was collected on; empty if it is unknown."""
        return self.provenance.fingerprint

    @property
    def origin(self) -> Origin:
        """The model that C was collected on, to be compared with another."""
        return self.provenance.origin

    @property
    def fill_rate(self) -> float:
        """Share of the packed rows' positions that held a token; NaN if it is unknown."""
        positions = self.provenance.rows * self.provenance.sequence_length
        return self.count / positions if positions else float("nan")

    @functools.cached_property
    def cholesky(self) -> np.ndarray:
        """L of C = L Lᵀ in the lower triangle of a float64 [F, F] array in Fortran order.

        BLAS and LAPACK read that order. Some versions of scipy return the factor in C order, and each solve would then
        copy it first: 2 GB for GPT-J.

        Raises:
          ValueError: If C is not positive definite.
        """
        width = self.mean.shape[0]
        try:
            # The mean of fewer outer products than its width is singular, whatever rounding makes of it.
            if self.count < width:
                raise np.linalg.LinAlgError
            return decompositions.cholesky(self.mean)
        except (np.linalg.LinAlgError, ValueError):  # a ValueError: NaN or infinity
            raise ValueError(self._not_definite(self.provenance.layer)) from None

    def _not_definite(self, layer: int) -> str:
        """Returns the message for a C that is not positive definite."""
        return (
            f"the second moment of layer {layer} is not positive definite (it averages {self.count} tokens and its "
            f"width is {self.mean.shape[0]}): collect more tokens than its width, or edit without it "
            "(mom2_adjustment=False)."
        )

    def check_definite(self, layer: int) -> None:
        """Checks that C is positive definite; the factorization is kept for `solve`.

        Args:
          layer: Index of the layer, for the message.

        Raises:
          ValueError: If C is not positive definite.

        Example:
          >>> SecondMoment(np.eye(4), count=2).check_definite(5)
          Traceback (most recent call last):
          ValueError: the second moment of layer 5 is not positive definite (it averages 2 tokens and its width ...
        """
        if not self.is_definite:
            raise ValueError(self._not_definite(layer))

    @property
    def is_definite(self) -> bool:
        """Whether C is positive definite, so that edits can use it."""
        try:
            _ = self.cholesky
        except ValueError:
            return False
        return True

    @property
    def factor(self) -> np.ndarray:
        """L of C = L Lᵀ, float32 [F, F], lower triangular; computed in float64 and then rounded.

        A jitted program takes it as an array; see `rome_jax.edit.methods.rome.edit`.

        Raises:
          ValueError: If C is not positive definite.

        Example:
          >>> SecondMoment(np.diag([1.0, 4.0]), count=10).factor.tolist()
          [[1.0, 0.0], [0.0, 2.0]]
        """
        return np.tril(self.cholesky).astype(np.float32)

    def solve(self, keys: jax.typing.ArrayLike) -> np.ndarray:
        """Computes the whitened keys u = C⁻¹ k by Cholesky factorization in float64 (ROME paper, equation 2).

        Args:
          keys: [..., F] keys k, all finite.

        Returns:
          float32 [..., F].

        Raises:
          ValueError: If C is not positive definite, the width differs, or a key is not finite.

        Example:
          >>> SecondMoment(np.diag([1.0, 4.0]), count=10).solve(np.array([2.0, 2.0])).tolist()
          [2.0, 0.5]
        """
        keys = np.asarray(keys, np.float64)
        width = keys.shape[-1] if keys.ndim else 0
        if width != self.mean.shape[0]:
            raise ValueError(
                f"keys of width {width} and a second moment of width {self.mean.shape[0]} do not fit: give "
                "second moments that were collected on this model."
            )
        if not np.isfinite(keys).all():
            raise ValueError(
                "keys hold NaN or infinity: check the model's weights, which are damaged or overflow."
            )
        flat = keys.reshape(-1, keys.shape[-1])
        factor = self.cholesky
        if len(flat) == 1:
            # Matrix-vector routines read the factor twice as fast as matrix-matrix routines.
            half = scipy.linalg.blas.dtrsv(factor, flat[0], lower=1)
            solved = scipy.linalg.blas.dtrsv(factor, half, lower=1, trans=1)
        else:
            solved, _ = scipy.linalg.lapack.dpotrs(factor, flat.T, lower=1)
            solved = solved.T
        return solved.reshape(keys.shape).astype(np.float32)

    @functools.cached_property
    def _shifted_factors(self) -> dict[float, np.ndarray]:
        """The factors that `shifted_cholesky` has computed, by ridge."""
        return {}

    def shifted_cholesky(self, ridge: float) -> np.ndarray:
        """Returns L of C + ν I = L Lᵀ, as `cholesky` does; it is computed once per ridge.

        Args:
          ridge: ν, above 0.

        Raises:
          ValueError: If C + ν I is not positive definite.

        Example:
          >>> np.tril(SecondMoment(np.eye(2), count=10).shifted_cholesky(3.0)).tolist()
          [[2.0, 0.0], [0.0, 2.0]]
        """
        if ridge not in self._shifted_factors:
            try:
                self._shifted_factors[ridge] = decompositions.cholesky(self.mean, ridge)
            except (np.linalg.LinAlgError, ValueError):
                raise ValueError(
                    f"the second moment of layer {self.provenance.layer} plus {ridge:g} on its diagonal is not "
                    "positive definite: collect the second moment again, or raise the ridge."
                ) from None
        return self._shifted_factors[ridge]

    @functools.cached_property
    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of C in ascending order, float64 [F], and its eigenvectors as columns, float64 [F, F].

        Those of wide layers are kept in the cache directory; see `rome_jax.moments.decompositions`.

        Example:
          >>> SecondMoment(np.diag([4.0, 1.0]), count=10).eigen[0].tolist()
          [1.0, 4.0]
        """
        return decompositions.eigen(self.mean)

    def null_space(self, threshold: float) -> np.ndarray:
        """Returns an orthonormal basis of the directions that hardly any key of the corpus has.

        Args:
          threshold: Bound of the eigenvalues, which are mean squares of the keys along the directions.

        Returns:
          float64 [F, r] the eigenvectors whose eigenvalue is strictly below the threshold (Fang et al., 2025,
          "AlphaEdit", section 3.1).

        Raises:
          ValueError: If there are none.

        Example:
          >>> np.abs(SecondMoment(np.diag([4.0, 1.0]), count=10).null_space(2.0)).tolist()
          [[0.0], [1.0]]
        """
        return self.eigen[1][:, : self._null_rank(threshold)]

    def null_space_complement(self, threshold: float) -> np.ndarray:
        """Returns an orthonormal basis of all directions that are not in the null space.

        Args:
          threshold: As in `null_space`.

        Returns:
          float64 [F, F - r] the eigenvectors whose eigenvalue is not below the threshold.

        Raises:
          ValueError: If the null space is empty.

        Example:
          >>> np.abs(SecondMoment(np.diag([4.0, 1.0]), count=10).null_space_complement(2.0)).tolist()
          [[1.0], [0.0]]
        """
        return self.eigen[1][:, self._null_rank(threshold) :]

    def _null_rank(self, threshold: float) -> int:
        """Returns the number of eigenvalues strictly below a threshold, which must be above 0."""
        values = self.eigen[0]
        rank = int(np.searchsorted(values, threshold))
        if rank == 0:
            raise ValueError(
                f"nullspace_threshold={threshold:g} is not above any eigenvalue of the second moment of layer "
                f"{self.provenance.layer}, whose smallest is {values[0]:.3g}: raise the threshold."
            )
        return rank

    def condition_number(self) -> float:
        """Estimates the condition number ‖C‖₁ ‖C⁻¹‖₁ with LAPACK, from the Cholesky factor that `solve` uses.

        Returns:
          The estimate, which is a lower bound; infinity if C is singular to working precision.

        Raises:
          ValueError: If C is not positive definite.

        Example:
          >>> round(SecondMoment(np.diag([1.0, 4.0]), count=10).condition_number(), 6)
          4.0
        """
        factor = self.cholesky
        norm = np.abs(self.mean).sum(axis=0).max()
        reciprocal, _ = scipy.linalg.lapack.dpocon(factor, norm, uplo="L")
        return 1 / reciprocal if reciprocal else float("inf")
