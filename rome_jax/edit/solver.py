"""The closed form that the descendants of ROME share.

An edit of a down-projection maps N keys K to new values, which differ from the present ones by the residuals R, and
changes as little as possible of what the weights do to other keys:

    minimize tr(ΔWᵀ A ΔW) + ‖Kᵀ ΔW − Rᵀ‖² / s,  solved by  ΔW = X (Kᵀ X + s I)⁻¹ Rᵀ  with  X = A⁻¹ K

A, the penalty, stands for the keys that should keep their values, and the slack s for how far the new values may be
missed; s = 0 writes them exactly. All penalties have one form:

    A = A₀ + K_p K_pᵀ,  A₀ = λ C + ν I, or A₀ = ν I on the span of an orthonormal basis Q and infinite elsewhere

with the second moment C and the keys K_p of earlier edits. Everything is computed in whitened coordinates: A₀⁻¹ = W Wᵀ,
k̃ = Wᵀ k, and A⁻¹ = W (I + K̃_p K̃_pᵀ)⁻¹ Wᵀ, whose middle is well conditioned whatever C is. For a null space,
W = Q Qᵀ / √ν.

ROME is A = C and s = 0 for one key (Meng et al., 2022, equation 2); MEMIT is A = λ C and s = 1 (Meng et al., 2023,
equation 14); EMMET is A = λ C + ν I (Gupta et al., 2024); AlphaEdit is the basis of a null space (Fang et al., 2025).

Arrays hold keys as rows, and kernels are stored [in, out]. Axes: N keys, P past keys, F MLP width, r rank of the null
space, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from rome_jax.edit.config import SolverDevice
from rome_jax.edit.penalty import PastKeys, Penalty, multiply, solve_triangular

# Relative residual above which the system of past keys is solved again in float64, and that of the keys is refused.
TOLERANCE = 1e-6
_REFINEMENTS = 3
# Relative distance of two keys below which they count as equal, and of a key to the span of others below which it
# depends on them. Float32 states of one text differ by less.
_SAME = 1e-5


class DuplicateKeysError(ValueError):
    """The error for keys that are equal, so that no edit can give each its own value exactly.

    Attributes:
      pairs: Pairs of indices of equal keys.
    """

    def __init__(self, message: str, pairs: Sequence[tuple[int, int]]):
        super().__init__(message)
        self.pairs = tuple(pairs)


class _Freed(NamedTuple):
    """Whitened keys without what past keys explain.

    Attributes:
      keys: float64 [..., N, F] Y = (I + K̃_p K̃_pᵀ)⁻¹ K̃.
      residual: Relative residual of Y.
      device: Where it was solved.
      below: As in `Solution`.
    """

    keys: np.ndarray
    residual: float = 0.0
    device: SolverDevice = SolverDevice.HOST
    below: np.ndarray | None = None


class Solution(NamedTuple):
    """The solved closed form.

    Attributes:
      left: float64 [..., N, F] (Kᵀ X + s I)⁻¹ Xᵀ. ΔW = leftᵀ times the residuals, [N, D].
      whitened: float64 [..., N, F] K̃, rounded to float32 if there are past keys, and reduced if these are; see
        `PastKeys.add`.
      residual: Largest relative residual of the systems that were solved.
      device: Where the system of past keys was solved.
      below: float64 [N, P] L⁻¹ K̃_pᵀ K̃ with the factor L of the past keys, if the solve computed it; see
        `PastKeys.add`.
    """

    left: np.ndarray
    whitened: np.ndarray
    residual: float
    device: SolverDevice = SolverDevice.HOST
    below: np.ndarray | None = None


def associate(
    keys: np.ndarray,
    penalty: Penalty,
    slack: float = 1.0,
    past: PastKeys | None = None,
    device: SolverDevice = SolverDevice.HOST,
) -> Solution:
    """Solves the closed form for N keys.

    Args:
      keys: [..., N, F] K; several independent sets only without past keys.
      penalty: A₀.
      slack: s.
      past: K_p, whitened by `penalty`.
      device: Where to solve the system of past keys.

    Raises:
      DuplicateKeysError: If s is 0 and two keys are equal.
      ValueError: If the keys hold NaN or an infinite number, s is 0 and the keys are linearly dependent, the past keys
        have another width or lie in a null space of another rank, or the relative residual of the keys' system exceeds
        1e-6.

    Example:
      >>> found = associate(np.array([[3.0, 1.0]]), Penalty.of(None, 10.0))  # k / (10 + k·k)
      >>> found.left.round(6).tolist()
      [[0.15, 0.05]]
    """
    keys = np.asarray(keys, np.float64)
    if not np.isfinite(keys).all():
        raise ValueError("the keys of the requests are not finite: check the model's weights.")
    reduced = past is not None and past.is_reduced
    whitened = penalty.whiten(keys, reduced)
    freed = _Freed(whitened)
    if past is not None:
        _check_past(past, penalty, whitened.shape[-1])
    if past is not None and not past.is_empty:
        # Past keys are stored in float32. Equal rounding here lets these keys join them without another product.
        whitened = whitened.astype(np.float32).astype(np.float64)
        freed = _without_past(whitened, past, device)
    num_keys, width = whitened.shape[-2:]
    if num_keys > width and slack:
        left, of_left = _wide(whitened, past, slack)
    else:
        left, of_left = _narrow(keys, whitened, freed.keys, slack)
    if not of_left <= TOLERANCE:
        raise ValueError(
            f"the system of {num_keys} keys was solved with a relative residual of {of_left:.1e}, above {TOLERANCE}: "
            "edit fewer requests at once, or give the method a larger slack."
        )
    residual = max(freed.residual, of_left)
    left = penalty.unwhiten(left, reduced)
    return Solution(left, whitened, residual, freed.device, freed.below)


def _check_past(past: PastKeys, penalty: Penalty, width: int) -> None:
    """Refuses past keys that another penalty has whitened, as far as their shapes tell."""
    # Reduced past keys have the width of their null space.
    if past.rank != penalty.rank and (past.is_reduced or past.width == width):
        spans = [f"of rank {rank}" if rank else "of all keys" for rank in (past.rank, penalty.rank)]
        found = f"the span {spans[0]}, and the penalty that {spans[1]}"
    elif past.width != width:
        found = f"width {past.width}, and those of the requests {width}"
    else:
        return
    raise ValueError(
        f"past keys have {found}: give the second moments and hyperparameters of the earlier batches."
    )


def _narrow(
    keys: np.ndarray, whitened: np.ndarray, solved: np.ndarray, slack: float
) -> tuple[np.ndarray, float]:
    """Solves (K̃ᵀ Y + s I) leftᵀ = Yᵀ, a system of N equations, with Y = (I + K̃_p K̃_pᵀ)⁻¹ K̃."""
    if not slack:
        _check_distinct(keys)
    system = multiply(whitened, solved, transposed=True)
    system = (system + np.swapaxes(system, -1, -2)) / 2
    system += slack * np.eye(system.shape[-1])
    if not slack and not _independent(system):
        raise ValueError(
            "the keys of the requests are linearly dependent, so that not every request can have its own value: edit "
            "fewer requests at once, or give the method a slack (for EMMET, emmet_lambda above 0)."
        )
    left = np.full_like(solved, np.nan)
    with contextlib.suppress(np.linalg.LinAlgError, ValueError):
        left = scipy.linalg.solve(system, solved, assume_a="pos")
    return left, _relative(multiply(system, left) - solved, solved)


def _wide(whitened: np.ndarray, past: PastKeys | None, slack: float) -> tuple[np.ndarray, float]:
    """Solves (s (I + K̃_p K̃_pᵀ) + K̃ K̃ᵀ) left = K̃, a system of F equations, for more keys than that."""
    width = whitened.shape[-1]
    system = np.swapaxes(whitened, -1, -2) @ whitened
    system += slack * (np.eye(width) if past is None else past.times(np.eye(width)))
    right = np.swapaxes(whitened, -1, -2)
    left = scipy.linalg.solve(system, right, assume_a="pos")
    return np.swapaxes(left, -1, -2), _relative(system @ left - right, right)


def _without_past(whitened: np.ndarray, past: PastKeys, device: SolverDevice) -> _Freed:
    """Computes Y = (I + K̃_p K̃_pᵀ)⁻¹ K̃ as rows [N, F]."""
    if device is SolverDevice.ACCELERATOR:
        solved, residual = _on_accelerator(whitened, past)
        # A failed factorization fills its result with NaN, for which this is False.
        if residual <= TOLERANCE:
            return _Freed(solved, residual, device)
    if past.gram is not None:
        system = past.gram + np.eye(len(past.gram))
        solved = scipy.linalg.solve(system, whitened.T, assume_a="pos", overwrite_a=True).T
        missing = past.times(solved) - whitened
        return _Freed(solved, _relative(missing, whitened))
    # Woodbury: Y = K̃ − K̃_p c with (I + K̃_pᵀ K̃_p) c = K̃_pᵀ K̃, so that c = K̃_pᵀ Y.
    assert past.keys is not None and past.factor is not None
    keys = past.keys.astype(np.float64)
    below = solve_triangular(past.factor, multiply(whitened, keys, transposed=True))
    inner = solve_triangular(past.factor, below, transposed=True)
    solved = whitened - multiply(inner, keys)
    wrong = multiply(solved, keys, transposed=True) - inner
    # What is missing is K̃_p wrong. Its norm by the factor takes a quarter of the operations.
    scaled = scipy.linalg.blas.dtrmm(1.0, past.factor, wrong.T, lower=1, trans_a=1)
    missing = np.sqrt(max(np.sum(scaled**2) - np.sum(wrong**2), 0.0))
    norm = _norm(whitened)
    return _Freed(solved, float(missing) / norm if norm else 0.0, below=below)


def _on_accelerator(whitened: np.ndarray, past: PastKeys) -> tuple[np.ndarray, float]:
    """Computes Y in float32 on the device, and refines it with residuals in float64."""
    if past.gram is not None:
        keys, factor = None, _factor(jnp.asarray(past.gram, jnp.float32))
    else:
        keys, factor = jnp.asarray(past.keys), jnp.asarray(past.factor, jnp.float32)
    solved, missing = np.zeros_like(whitened), whitened
    residual = np.inf
    for _ in range(_REFINEMENTS):
        step = _solve_factored(factor, keys, jnp.asarray(missing, jnp.float32))
        solved = solved + np.asarray(step, np.float64)
        missing = whitened - past.times(solved)
        residual = _relative(missing, whitened)
        if residual <= TOLERANCE or not residual < 1:  # it converged, or never will
            break
    return solved, residual


@jax.jit
def _factor(gram: jax.Array) -> jax.Array:
    """Factors I + K̃_p K̃_pᵀ."""
    return jnp.linalg.cholesky(gram + jnp.eye(len(gram), dtype=gram.dtype))


@jax.jit
def _solve_factored(factor: jax.Array, keys: jax.Array | None, rows: jax.Array) -> jax.Array:
    """Computes (I + K̃_p K̃_pᵀ)⁻¹ y for every row y, by Woodbury's formula if keys are given."""
    with jax.default_matmul_precision("highest"):
        if keys is None:
            return jax.scipy.linalg.cho_solve((factor, True), rows.T).T
        inner = jax.scipy.linalg.cho_solve((factor, True), keys @ rows.T)
        return rows - inner.T @ keys


def _relative(residual: np.ndarray, right: np.ndarray) -> float:
    """Returns ‖residual‖ / ‖right‖; 0 if both are 0."""
    norm = _norm(right)
    return _norm(residual) / norm if norm else 0.0


def _norm(array: np.ndarray) -> float:
    """Returns ‖array‖ without numpy's BLAS; see `multiply`."""
    return float(np.sqrt(np.square(array).sum()))


def _independent(system: np.ndarray) -> bool:
    """Whether no key lies in the span of those before it, from their products [..., N, N]."""
    try:
        factor = np.linalg.cholesky(system)
    except np.linalg.LinAlgError:
        return False
    products, distances = (np.diagonal(a, axis1=-2, axis2=-1) for a in (system, factor))
    return bool((distances**2 > _SAME**2 * products).all())


def _check_distinct(keys: np.ndarray) -> None:
    """Refuses equal keys within a set of keys [..., N, F]."""
    if keys.shape[-2] < 2:
        return
    sets = keys.reshape(-1, *keys.shape[-2:])
    for own in sets:
        norms = np.linalg.norm(own, axis=1)
        pairs = [
            (first, second)
            for first in range(len(own))
            for second in first
            + 1
            + np.flatnonzero(
                np.linalg.norm(own[first + 1 :] - own[first], axis=1) <= _SAME * norms[first]
            )
        ]
        if pairs:
            listed = ", ".join(f"{first} and {second}" for first, second in pairs[:4])
            raise DuplicateKeysError(
                f"the keys of the requests {listed} are equal, so that they cannot have different values: leave one "
                "of them out, or give the method a slack.",
                [(int(first), int(second)) for first, second in pairs],
            )
