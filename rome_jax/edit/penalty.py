"""The penalty A of the closed form in `rome_jax.edit.solver`, and the keys of earlier edits that add to it.

    A = A₀ + K_p K_pᵀ,  A₀ = λ C + ν I, or A₀ = ν I on the span of an orthonormal basis Q and infinite elsewhere

Keys are whitened, k̃ = Wᵀ k with A₀⁻¹ = W Wᵀ; for a null space, W = Q Qᵀ / √ν.

Arrays hold keys as rows. Axes: N keys, P past keys, F MLP width, r rank of the null space.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import scipy.linalg

from rome_jax.moments.second_moment import SecondMoment


@dataclasses.dataclass(frozen=True, eq=False)
class Penalty:
    """A₀, in a form that whitens keys. `of` and `null_space` make it.

    Attributes:
      scale: float Scalar factor of A₀.
      factor: float64 [F, F] L of A₀ = scale · L Lᵀ in the lower triangle, or None.
      basis: float64 [F, r] Q of A₀ = scale · Q Qᵀ on the span of Q, or None.
      complement: float64 [F, F - r] U with Q Qᵀ = I − U Uᵀ, if it has fewer columns than Q; otherwise None.
    """

    scale: float
    factor: np.ndarray | None = None
    basis: np.ndarray | None = None
    complement: np.ndarray | None = None

    @classmethod
    def of(cls, moment: SecondMoment | None, weight: float, ridge: float = 0.0) -> Penalty:
        """Builds λ C + ν I.

        Args:
          moment: C. None uses the identity.
          weight: λ, above 0.
          ridge: ν, at least 0.

        Raises:
          ValueError: If λ C + ν I is not positive definite.

        Example:
          >>> Penalty.of(None, 3.0, 1.0).whiten(np.array([[2.0, 4.0]])).tolist()  # k / √4
          [[1.0, 2.0]]
        """
        if moment is None:
            return cls(weight + ridge)
        if not ridge:
            return cls(weight, moment.cholesky)
        return cls(weight, moment.shifted_cholesky(ridge / weight))

    @classmethod
    def null_space(
        cls, basis: np.ndarray, ridge: float, complement: np.ndarray | None = None
    ) -> Penalty:
        """Builds ν I on the span of a basis: keys outside of it keep their values exactly.

        Args:
          basis: [F, r] orthonormal columns Q, such as those of `SecondMoment.null_space`.
          ridge: ν, above 0.
          complement: [F, F - r] orthonormal columns that span the rest, if they are known. If they are fewer, they make
            whitening faster.

        Example:
          >>> penalty = Penalty.null_space(np.array([[1.0], [0.0]]), 4.0)
          >>> penalty.whiten(np.array([[2.0, 9.0]])).tolist()
          [[1.0, 0.0]]
        """
        basis = np.asarray(basis, np.float64)
        if complement is None or complement.shape[1] >= basis.shape[1]:
            return cls(ridge, basis=np.ascontiguousarray(basis))
        return cls(ridge, basis=basis, complement=np.ascontiguousarray(complement, np.float64))

    @property
    def rank(self) -> int | None:
        """r, the dimension of the span of Q; None if the penalty is finite for all keys."""
        return None if self.basis is None else self.basis.shape[1]

    def whiten(self, keys: np.ndarray, reduced: bool = False) -> np.ndarray:
        """Computes k̃ = Wᵀ k of keys: float64 [..., F]. `reduced` gives Qᵀ k̃ of a null space instead, [..., r]."""
        keys = np.asarray(keys, np.float64) / np.sqrt(self.scale)
        if self.factor is not None:
            return solve_triangular(self.factor, keys)
        if reduced and self.basis is not None:
            return multiply(keys, self._contiguous_basis)
        return self._project(keys)

    def unwhiten(self, vectors: np.ndarray, reduced: bool = False) -> np.ndarray:
        """Computes W y of vectors y: float64 [..., F]. `reduced` takes Qᵀ y of a null space instead, [..., r]."""
        vectors = vectors / np.sqrt(self.scale)
        if self.factor is not None:
            return solve_triangular(self.factor, vectors, transposed=True)
        if reduced and self.basis is not None:
            return multiply(vectors, self._contiguous_basis, transposed=True)
        return self._project(vectors)

    @functools.cached_property
    def _contiguous_basis(self) -> np.ndarray:
        """Q in one piece, without which each product would copy it; it is needed once past keys are summed up."""
        assert self.basis is not None
        return np.ascontiguousarray(self.basis)

    def _project(self, vectors: np.ndarray) -> np.ndarray:
        """Computes Q Qᵀ y; y itself without a null space."""
        if self.basis is None:
            return vectors
        rows = vectors.reshape(-1, vectors.shape[-1])
        if self.complement is not None:
            outside = multiply(multiply(rows, self.complement), self.complement, transposed=True)
            return vectors - outside.reshape(vectors.shape)
        inside = multiply(multiply(rows, self.basis), self.basis, transposed=True)
        return inside.reshape(vectors.shape)


def multiply(rows: np.ndarray, matrix: np.ndarray, transposed: bool = False) -> np.ndarray:
    """Computes rows @ matrix, or rows @ matrixᵀ, in float64 with the BLAS of scipy.

    The triangular solves use that BLAS. numpy brings another one, and the threads of both would wait for each other.

    Args:
      rows: float64 [..., N, K]; several sets of rows are left to numpy.
      matrix: float64 [..., K, M], or [..., M, K] if `transposed`. Both are copied unless they are contiguous.

    Example:
      >>> multiply(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]])).tolist()
      [[11.0]]
    """
    if rows.ndim > 2 or not rows.size or not matrix.size:
        return rows @ (np.swapaxes(matrix, -1, -2) if transposed else matrix)
    return scipy.linalg.blas.dgemm(1.0, matrix.T, rows.T, trans_a=transposed).T


def solve_triangular(factor: np.ndarray, rows: np.ndarray, transposed: bool = False) -> np.ndarray:
    """Solves L y = k, or Lᵀ y = k, for every row k of an array [..., P].

    Example:
      >>> solve_triangular(np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([[4.0, 5.0]])).tolist()
      [[2.0, 3.0]]
    """
    flat = rows.reshape(-1, rows.shape[-1]).T
    solved = scipy.linalg.solve_triangular(
        factor, flat, lower=True, trans=int(transposed), check_finite=False
    )
    return solved.T.reshape(rows.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class PastKeys:
    """The whitened keys of earlier edits, and what a solve needs of them.

    They are kept as they are until they outnumber their width; then their second moment takes less memory, and its
    system less time. Either `keys` and `factor` are set, or `gram`.

    Attributes:
      keys: float32 [P, F] k̃ of the earlier edits.
      factor: float64 [P, P] L of I + K̃_pᵀ K̃_p = L Lᵀ, lower triangular, in Fortran order, which LAPACK reads without a
        copy. It is computed if it is not given.
      gram: float64 [F, F] K̃_p K̃_pᵀ; of a null space, [r, r] Qᵀ K̃_p K̃_pᵀ Q.
      rank: r of the null space that whitened them; None if another penalty did.

    Raises:
      ValueError: If the arrays do not have these shapes.
    """

    keys: np.ndarray | None = None
    factor: np.ndarray | None = None
    gram: np.ndarray | None = None
    rank: int | None = None

    @classmethod
    def none(cls, penalty: Penalty, width: int) -> PastKeys:
        """Returns no keys of a width F, to which keys that `penalty` whitens can be added.

        Example:
          >>> PastKeys.none(Penalty.of(None, 1.0), 4).keys.shape
          (0, 4)
        """
        return cls(np.zeros((0, width), np.float32), rank=penalty.rank)

    def __post_init__(self):
        if self.keys is None:
            if self.gram is None or self.gram.shape != (len(self.gram),) * 2:
                raise ValueError("past keys are neither rows nor a square second moment: give one.")
            return
        count, factor = len(self.keys), self.factor
        if factor is None:
            keys = self.keys.astype(np.float64)
            system = multiply(keys, keys, transposed=True) + np.eye(count)
            factor = scipy.linalg.cholesky(system, lower=True)
        if self.keys.ndim != 2 or factor.shape != (count, count):
            raise ValueError(
                f"past keys {list(self.keys.shape)} and their factor {list(factor.shape)} do not belong together: give "
                "[P, F] and [P, P]."
            )
        object.__setattr__(self, "factor", np.asfortranarray(factor))

    def add(
        self,
        keys: np.ndarray,
        below: np.ndarray | None = None,
        basis: np.ndarray | None = None,
    ) -> PastKeys:
        """Adds whitened keys; neither `self` nor its arrays change.

        The factor grows by N rows, which takes O(P² N + P F N) operations.

        Args:
          keys: [N, F] k̃, which are rounded to float32. If `gram` is set, those of a null space are [N, r] Qᵀ k̃.
          below: float64 [N, P] L⁻¹ K̃_pᵀ k̃ of the rounded keys, the new rows of the factor, if a solve has computed
            them; then O(P² + F N²) operations remain.
          basis: [F, r] Q of a null space, in which keys are summed up once they outnumber their width.

        Raises:
          ValueError: If a basis is needed and missing.

        Example:
          >>> past = PastKeys(np.zeros((0, 4), np.float32)).add(np.eye(4)[:2])
          >>> past.keys.shape, past.factor.diagonal().round(3).tolist()
          ((2, 4), [1.414, 1.414])
          >>> past.add(np.eye(4)[:3]).gram.diagonal().tolist()
          [2.0, 2.0, 1.0, 0.0]
        """
        rounded = np.asarray(keys, np.float32)
        new = rounded.astype(np.float64)
        if self.gram is not None:
            return dataclasses.replace(self, gram=self.gram + new.T @ new)
        assert self.keys is not None and self.factor is not None
        joined = np.concatenate([self.keys, rounded])
        if len(joined) > joined.shape[1]:
            exact = joined.astype(np.float64)
            if self.rank is not None:
                if basis is None:
                    raise ValueError(
                        "the past keys of a null space outnumber their width: give its basis."
                    )
                exact = multiply(exact, basis)
            return PastKeys(gram=exact.T @ exact, rank=self.rank)
        if not len(self.keys):
            return PastKeys(joined, rank=self.rank)
        count = len(self.keys)
        factor = np.zeros((len(joined), len(joined)), order="F")
        factor[:count, :count] = self.factor
        if below is None:
            products = multiply(new, self.keys.astype(np.float64), transposed=True)
            below = solve_triangular(self.factor, products)
        corner = multiply(new, new, transposed=True) - multiply(below, below, transposed=True)
        factor[count:, :count] = below
        factor[count:, count:] = scipy.linalg.cholesky(corner + np.eye(len(new)), lower=True)
        return PastKeys(joined, factor, rank=self.rank)

    @property
    def is_empty(self) -> bool:
        """Whether there are no keys."""
        return self.keys is not None and not len(self.keys)

    @property
    def is_reduced(self) -> bool:
        """Whether they are summed up, in the basis of a null space if there is one."""
        return self.gram is not None

    @property
    def width(self) -> int:
        """F, the width of the keys; r if a null space reduces them."""
        array = self.keys if self.gram is None else self.gram
        assert array is not None
        return array.shape[1]

    def times(self, rows: np.ndarray) -> np.ndarray:
        """Computes (I + K̃_p K̃_pᵀ) y for every row y of an array [N, width]."""
        if self.gram is not None:
            return rows + rows @ self.gram
        assert self.keys is not None
        return rows + (rows @ self.keys.T) @ self.keys
