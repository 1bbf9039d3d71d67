"""Null spaces of the keys, as AlphaEdit's authors store them: a file null_space_project.pt with a projection per layer.

Their code computes P = Q Qᵀ of each edited layer, where the columns of Q are the eigenvectors of C with an eigenvalue
below a threshold, and saves one tensor [layers, F, F]. The file holds neither C nor the model or the layers that it
belongs to, so only its shape can be checked. Reading it needs torch, from the extra `convert`.

Axes: F MLP width, r rank of P.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from rome_jax.files.checked import NonNegativeInt, check_fields
from rome_jax.files.places import check_path
from rome_jax.models.config import ModelConfig
from rome_jax.models.convert_torch import read_tensors
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import decompositions

SUFFIX = ".pt"  # of the authors' files; no file of second moments has it
_TOLERANCE = 1e-3  # of a projection's entries and eigenvalues, and of the basis; the authors compute P in float32
_ROWS = 1024  # rows of P that are compared at once
_REMEDY = "give the null_space_project.pt of AlphaEdit's authors' code"


@dataclasses.dataclass(frozen=True, eq=False)
class NullSpace:
    """The null space of one layer's keys: the directions that AlphaEdit may change. It takes the place of C.

    Attributes:
      basis: float64 [F, r] Q, with orthonormal columns.
      layer: Index of the layer; None if it is unknown.
      file: Name of the file that it comes from; empty if there is none.
      sha256: Checksum of that file.
      complement: float64 [F, F - r] orthonormal columns that span the rest; None if they are unknown.

    Raises:
      ValueError: If `basis` is not a matrix of numbers with orthonormal columns, of which there is at least one, or
        `complement` does not complete it.

    Example:
      >>> NullSpace(np.eye(3)[:, :2], layer=5).width
      3
    """

    basis: np.ndarray
    layer: NonNegativeInt | None = None
    file: str = ""
    sha256: str = ""
    complement: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_fields(self, ["layer", "file", "sha256"])
        basis = np.asarray(self.basis)
        if basis.dtype.kind not in "fiu":
            raise ValueError(f"basis has the type {basis.dtype}: give a matrix of numbers.")
        object.__setattr__(self, "basis", basis.astype(np.float64, copy=False))
        if basis.ndim != 2 or not 1 <= basis.shape[1] <= basis.shape[0]:
            raise ValueError(
                f"basis has the shape {basis.shape}: give a matrix [F, r] with at least one column and at most F."
            )
        if not _is_orthonormal(self.basis):
            raise ValueError(
                f"basis of shape {basis.shape} has columns that are not orthonormal: give eigenvectors of C, or the "
                "whole projection with NullSpace.of_projection."
            )
        if self.complement is not None:
            rest = np.asarray(self.complement, np.float64)
            object.__setattr__(self, "complement", rest)
            if not _is_complement(self.basis, rest):
                raise ValueError(
                    f"complement of shape {rest.shape} does not complete the basis {list(basis.shape)} to an "
                    "orthonormal basis of all directions: leave it out."
                )

    @classmethod
    def of_projection(
        cls,
        projection: np.ndarray,
        layer: int | None = None,
        *,
        file: str = "",
        sha256: str = "",
        name: str = "projection",
    ) -> Self:
        """Finds the basis of a projection: its eigenvectors with the eigenvalue 1.

        The decompositions of wide projections are kept in the cache directory; see `rome_jax.moments.decompositions`.

        Args:
          projection: [F, F] P = Q Qᵀ in float32 or float64.
          layer: Index of the layer, if it is known.
          file: Name of the file that it comes from.
          sha256: Checksum of that file.
          name: What the projection is called in errors.

        Raises:
          ValueError: If P is not a square matrix of finite numbers, is not symmetric, has an eigenvalue other than 0
            and 1, each within 0.001, or is 0.

        Example:
          >>> np.abs(NullSpace.of_projection(np.diag([1.0, 0.0])).basis).tolist()
          [[1.0], [0.0]]
        """
        matrix = np.asarray(projection)
        if matrix.ndim != 2 or not matrix.size or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"{name} has the shape {matrix.shape}: give a square matrix [F, F].")
        if matrix.dtype.kind != "f":
            raise ValueError(f"{name} has the type {matrix.dtype}: give it in float32 or float64.")
        # A sum is finite if all numbers are, unless they overflow, and then the matrix is no projection.
        if not np.isfinite(matrix.sum(dtype=np.float64)):
            raise ValueError(f"{name} holds NaN or infinity: compute it again.")
        if (asymmetry := _asymmetry(matrix)) > _TOLERANCE:
            raise ValueError(
                f"{name} is not a projection (it differs from its transpose by {asymmetry:.3g}): {_REMEDY}."
            )
        values, vectors = decompositions.eigen(matrix)
        distance = np.minimum(np.abs(values), np.abs(values - 1))
        if distance.max() > _TOLERANCE:
            raise ValueError(
                f"{name} is not a projection (it has the eigenvalue {values[distance.argmax()]:.4g}, neither 0 nor 1): "
                f"{_REMEDY}."
            )
        rank = int((values > 0.5).sum())  # they ascend
        if rank == 0:
            raise ValueError(
                f"{name} is 0, so that no edit is possible: compute it again with a higher nullspace_threshold."
            )
        rest, basis = np.split(vectors, [len(values) - rank], axis=1)
        return cls(basis, layer, file, sha256, rest)

    @property
    def width(self) -> int:
        """F, the MLP width."""
        return self.basis.shape[0]

    def null_space(self, threshold: float) -> np.ndarray:
        """Returns the basis, in the manner of `SecondMoment.null_space`.

        Args:
          threshold: Not used: who computed the projection has chosen the directions.

        Returns:
          float64 [F, r] with orthonormal columns.

        Example:
          >>> NullSpace(np.eye(3)[:, :2]).null_space(threshold=0.02).shape
          (3, 2)
        """
        return self.basis

    def null_space_complement(self, threshold: float) -> np.ndarray | None:
        """Returns the complement, in the manner of `SecondMoment.null_space_complement`.

        Args:
          threshold: Not used.

        Example:
          >>> NullSpace.of_projection(np.diag([1.0, 0.0])).null_space_complement(threshold=0.02).shape
          (2, 1)
        """
        return self.complement

    def check(self, layer: int, config: ModelConfig, what: str) -> None:
        """Refuses the null space of another layer or of a model of another width.

        Args:
          layer: Index of the layer to edit.
          config: Config of the model to edit.
          what: What the null space is called in errors, such as "second_moments[5]".

        Raises:
          ValueError: If the layer or the width differs.

        Example:
          >>> NullSpace(np.eye(3)).check(0, model.config, "second_moments[0]")
          Traceback (most recent call last):
          ValueError: second_moments[0] has width 3, and the model has 512: give the null space of this model's keys.
        """
        if self.width != config.mlp_width:
            raise ValueError(
                f"{what} has width {self.width}, and the model has {config.mlp_width}: give the null space of this "
                "model's keys."
            )
        if self.layer not in (None, layer):
            raise ValueError(
                f"{what} belongs to layer {self.layer}, not to layer {layer}: give the null space of that layer."
            )

    def __str__(self) -> str:
        """Describes where it comes from, as it is recorded with results."""
        checksum = f" (SHA-256 {self.sha256})" if self.sha256 else ""
        return f"null space of {self.file or 'the caller'}{checksum}, unverified"


def is_null_space_file(source: str | Path | None) -> bool:
    """Returns whether a source of second moments is a file of projections, by its name.

    Example:
      >>> is_null_space_file("null_space_project.pt"), is_null_space_file("stats/mine")
      (True, False)
    """
    return source is not None and Path(source).suffix == SUFFIX


def refusal(source: str | Path, method: str) -> str:
    """Returns the message for a file of projections where second moments are needed.

    Args:
      source: The file.
      method: Name of the method that needs them.
    """
    return (
        f"second_moments={source} holds AlphaEdit's projections and no second moments, which {method} needs: give "
        "second moments (eval.layer_stats collects them), or edit with --alg_name=AlphaEdit."
    )


def read_null_spaces(
    path: str | Path, layers: Iterable[int], model: LanguageModel
) -> dict[int, NullSpace]:
    """Reads null_space_project.pt of AlphaEdit's authors' code; this needs torch, from the extra `convert`.

    The file is memory-mapped, and one layer at a time is copied.

    Args:
      path: The file, with one float32 tensor [layers, F, F].
      layers: The edited layers. The projections belong to them in ascending order.
      model: The model to be edited. The file does not say which model it belongs to; only its width is checked.

    Returns:
      The null space of each layer.

    Raises:
      FileNotFoundError: If there is no such file.
      CheckpointError: If the file is damaged.
      MissingPackageError: If torch is not installed.
      ValueError: If the file holds something else, projections of another number of layers or another width, or a
        matrix that is not a projection.

    Example:
      >>> spaces = read_null_spaces("null_space_project.pt", (13, 14, 15, 16, 17), model)  # doctest: +SKIP
      >>> delta = alphaedit.compute_joint_delta(model, requests, config, second_moments=spaces)  # doctest: +SKIP
    """
    layers = sorted(set(model.config.check_layers(layers)))
    path = Path(check_path(path, "second_moments")).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"second_moments={path} is not a file: {_REMEDY}.")
    tensors = read_tensors(path)
    projections = tensors.get("", np.zeros(0))  # a tensor that is not in a dictionary has no name
    what = f"second_moments={path}"
    if len(tensors) != 1 or projections.ndim != 3:
        found = ", ".join(
            f"{name or 'a tensor'} {list(one.shape)}" for name, one in tensors.items()
        )
        raise ValueError(
            f"{what} holds {found or 'no tensor'}, not one tensor [layers, F, F]: {_REMEDY}."
        )
    if len(projections) != len(layers):
        raise ValueError(
            f"{what} holds {len(projections)} projections, but the edited layers are {tuple(layers)}: give the file "
            "that was computed for these layers, or set --config.layers."
        )
    if projections.shape[1:] != (model.config.mlp_width,) * 2:
        raise ValueError(
            f"{what} holds projections {list(projections.shape[1:])}, and the MLP of {model.name} has width "
            f"{model.config.mlp_width}: give the file that was computed for this model."
        )
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        layer: NullSpace.of_projection(
            projection, layer, file=path.name, sha256=sha256, name=f"{what}, layer {layer},"
        )
        for layer, projection in zip(layers, projections, strict=True)
    }


def _asymmetry(matrix: np.ndarray) -> float:
    """Returns max |P − Pᵀ|, from a few rows at a time."""
    blocks = (slice(start, start + _ROWS) for start in range(0, len(matrix), _ROWS))
    return max(
        (float(np.abs(matrix[rows] - matrix[:, rows].T).max()) for rows in blocks), default=0.0
    )


def _is_orthonormal(basis: np.ndarray) -> bool:
    """Returns whether Qᵀ Q = I, from the norms of the columns and from Qᵀ Q x of one random x."""
    norms = np.einsum("fr,fr->r", basis, basis)
    probe = np.random.default_rng(0).standard_normal(basis.shape[1])
    error = np.linalg.norm(basis.T @ (basis @ probe) - probe) / np.linalg.norm(probe)
    return bool(np.abs(norms - 1).max() <= _TOLERANCE and error <= _TOLERANCE)


def _is_complement(basis: np.ndarray, rest: np.ndarray) -> bool:
    """Returns whether Q Qᵀ + U Uᵀ = I, from a random x."""
    width, rank = basis.shape
    if rest.shape != (width, width - rank):
        return False
    probe = np.random.default_rng(0).standard_normal(width)
    error = np.linalg.norm(basis @ (basis.T @ probe) + rest @ (rest.T @ probe) - probe)
    return bool(error <= _TOLERANCE * np.linalg.norm(probe))
