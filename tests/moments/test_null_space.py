"""Null spaces: the projections that AlphaEdit's authors store, read, checked, and refused where C is needed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from rome_jax.edit.config import MethodName, ROMEConfig
from rome_jax.edit.method import METHODS
from rome_jax.edit.methods.alphaedit import AlphaEditConfig
from rome_jax.edit.resources import Resources, read_second_moments
from rome_jax.edit.sequential import make_editor
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.files.safetensors_io import CheckpointError
from rome_jax.moments import checks, decompositions, sources
from rome_jax.moments.null_space import NullSpace, read_null_spaces
from rome_jax.moments.second_moment import SecondMoment
from tests.moments.examples import positive_definite, relative_error, tiny_model

WIDTH = 40
needs_torch = pytest.mark.needs("torch")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def projection(rank: int, seed: int = 0) -> np.ndarray:
    """P of the `rank` smallest eigenvalues of a random C, in float32 as the authors compute it."""
    _, vectors = np.linalg.eigh(positive_definite(WIDTH, seed))
    basis = vectors[:, :rank].astype(np.float32)
    return basis @ basis.T


def stored(path, content, **options):
    """Writes a file as the authors do."""
    import torch

    if isinstance(content, np.ndarray):
        content = torch.from_numpy(content)
    torch.save(content, path, **options)
    return path


def test_a_projection_gives_the_null_space_of_its_second_moment():
    moment = SecondMoment(positive_definite(WIDTH), 100)
    threshold = float(moment.eigen[0][15:17].mean())
    expected = moment.null_space(threshold)
    space = NullSpace.of_projection(projection(16), 3)
    found = space.null_space(threshold=1e-9)  # which is not used
    assert found.shape == expected.shape and found.dtype == np.float64
    assert relative_error(found @ found.T, expected @ expected.T) <= 1e-6
    assert (space.layer, space.width) == (3, WIDTH)
    assert str(space) == "null space of the caller, unverified"


@pytest.mark.parametrize("rank", [1, 16, 20, 33, 40])
def test_the_basis_spans_the_range_of_a_projection_of_any_rank(rank):
    expected = projection(rank)
    space = NullSpace.of_projection(expected)
    assert space.basis.shape == (WIDTH, rank)
    assert np.abs(space.basis.T @ space.basis - np.eye(rank)).max() <= 1e-12
    assert np.abs(space.basis @ space.basis.T - expected).max() <= 1e-6
    rest = space.null_space_complement(threshold=1e-9)
    assert rest.shape == (WIDTH, WIDTH - rank)
    assert np.abs(np.eye(WIDTH) - rest @ rest.T - expected).max() <= 1e-6


def test_the_decomposition_of_a_wide_projection_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(decompositions, "SMALLEST", WIDTH)
    first = NullSpace.of_projection(projection(5))
    monkeypatch.setattr(decompositions, "_decompose", None)  # it is not called again
    np.testing.assert_array_equal(NullSpace.of_projection(projection(5)).basis, first.basis)


@pytest.mark.parametrize("rest", [np.eye(4)[:, :3], np.eye(4)[:, 1:], np.full((4, 2), np.nan)])
def test_a_complement_completes_the_basis(rest):
    assert NullSpace(np.eye(4)[:, :2], complement=np.eye(4)[:, 2:]).width == 4
    with pytest.raises(ValueError, match=r"complement of shape .* leave it out"):
        NullSpace(np.eye(4)[:, :2], complement=rest[:, :2])


def changed(index, value):
    matrix = projection(16)
    matrix[index] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (projection(16)[:, :30], r"P has the shape \(40, 30\): give a square matrix"),
        (np.zeros((0, 0), np.float32), r"P has the shape \(0, 0\)"),
        (projection(16).astype(int), "P has the type int64: give it in float32"),
        (changed((2, 3), np.nan), "P holds NaN or infinity: compute it again"),
        (changed((2, 3), np.inf), "P holds NaN or infinity"),
        (changed((2, 3), 7), "not a projection .it differs from its transpose by [67]"),
        (projection(16) + 2e-3 * projection(1, seed=1), "not a projection .it has the eigenvalue"),
        (-projection(3), "it has the eigenvalue -1, neither 0 nor 1"),
        (100 * projection(16), "it has the eigenvalue 100, neither 0 nor 1"),
        (2 * projection(16), "it has the eigenvalue 2, neither 0 nor 1"),
        (positive_definite(WIDTH), "not a projection .it has the eigenvalue"),  # C itself
        (projection(0), "P is 0, so that no edit is possible: .* higher nullspace_threshold"),
    ],
)
def test_what_is_not_a_projection_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        NullSpace.of_projection(matrix, name="P")


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (np.ones(3), r"shape \(3,\): give a matrix"),
        (np.eye(3)[:2], r"shape \(2, 3\): give a matrix"),
        (np.zeros((3, 0)), r"shape \(3, 0\): give a matrix"),
        (2 * np.eye(3), "columns that are not orthonormal"),
        (np.full((3, 2), np.sqrt(1 / 3)), "columns that are not orthonormal"),
        (np.full((3, 3), np.nan), "columns that are not orthonormal"),
        ([["a"]], "has the type <U1: give a matrix of numbers"),
    ],
)
def test_a_basis_has_orthonormal_columns(basis, message):
    with pytest.raises(ValueError, match=message):
        NullSpace(basis)


def test_before_an_edit_the_width_and_the_layer_are_checked(model):
    fitting = {0: NullSpace(np.eye(WIDTH)), 2: NullSpace(np.eye(WIDTH), 2)}
    checks.check(fitting, model, null_spaces=True)
    with pytest.raises(
        ValueError, match=r"second_moments\[0\] is a NullSpace, which only AlphaEdit"
    ):
        checks.check(fitting, model)
    for space, message in (
        (NullSpace(np.eye(3)), "has width 3, and the model has 40: give the null space of this"),
        (NullSpace(np.eye(WIDTH), 2), "belongs to layer 2, not to layer 0: give the null space of"),
    ):
        with pytest.raises(ValueError, match=rf"second_moments\[0\] {message}"):
            checks.check({0: space}, model, null_spaces=True)


@needs_torch
@pytest.mark.parametrize("zipped", [True, False])
def test_the_authors_file_is_read(tmp_path, model, zipped):
    projections = np.stack([projection(16), projection(9, seed=1)])
    options = {"_use_new_zipfile_serialization": zipped}
    path = stored(tmp_path / "null_space_project.pt", projections, **options)
    config = AlphaEditConfig((2, 0))
    spaces = read_second_moments(str(path), model, config)
    assert list(spaces) == [0, 2] and [spaces[n].basis.shape[1] for n in (0, 2)] == [16, 9]
    for space, expected in zip(spaces.values(), projections, strict=True):
        assert relative_error(space.basis @ space.basis.T, expected) <= 1e-6
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    described = f"null space of null_space_project.pt (SHA-256 {sha256}), unverified"
    assert checks.describe_matches(spaces) == {"0": described, "2": described}
    assert Resources(spaces).second_moments is spaces


@needs_torch
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (projection(16), r"holds a tensor \[40, 40\], not one tensor \[layers, F, F\]"),
        ({"P": np.stack([projection(16)])}, r"holds P \[1, 40, 40\], not one tensor"),
        ([], "holds no tensor, not one tensor"),
        (
            np.stack([projection(16)] * 3),
            r"holds 3 projections, but the edited layers are \(0, 2\)",
        ),
        (np.ones((2, 5, 7), np.float32), r"projections \[5, 7\], and the MLP of tiny has width 40"),
        (np.stack([projection(16), 3 * projection(16)]), "layer 2, is not a projection"),
        (np.stack([projection(16), changed((1, 1), np.nan)]), "layer 2, holds NaN or infinity"),
        (np.stack([projection(0), projection(16)]), "layer 0, is 0, so that no edit is possible"),
        (np.zeros((2, 40, 40), np.int64), "layer 0, has the type int64: give it in float32"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, model, content, message):
    import torch

    if isinstance(content, dict):
        content = {name: torch.from_numpy(array) for name, array in content.items()}
    path = stored(tmp_path / "P.pt", content)
    with pytest.raises(ValueError, match=rf"second_moments=.*P\.pt,? .*{message}"):
        read_null_spaces(path, (0, 2), model)


@needs_torch
@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_truncated_file_is_an_error(tmp_path, model, size):
    path = stored(tmp_path / "P.pt", np.stack([projection(16)]))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"P\.pt is absent or damaged"):
        read_null_spaces(path, [0], model)


def test_a_file_that_is_absent_or_a_folder_is_an_error(tmp_path, model):
    (tmp_path / "folder.pt").mkdir()
    for name in ("folder.pt", "absent.pt"):
        with pytest.raises(FileNotFoundError, match=rf"{name} is not a file: give the null_space"):
            read_null_spaces(tmp_path / name, [0], model)
    with pytest.raises(ValueError, match="layers=6"):
        read_null_spaces(tmp_path / "absent.pt", [6], model)


@pytest.mark.parametrize("config", [ROMEConfig(0), MEMITConfig((0,))])
def test_other_methods_refuse_the_file(model, config):
    with pytest.raises(
        ValueError,
        match=rf"^second_moments=P\.pt holds AlphaEdit's projections and no second moments, which "
        rf"{type(config).__name__.removesuffix('Config')} needs: give .*--alg_name=AlphaEdit\.$",
    ):
        read_second_moments("P.pt", model, config)
    with pytest.raises(ValueError, match="no second moments, which this function needs"):
        sources.read("P.pt", [0], model)


@pytest.mark.parametrize("method", [MethodName.ROME, MethodName.MEMIT])
def test_an_editor_of_another_method_refuses_null_spaces(shipped_model, method):
    model = shipped_model("factworld-gpt2")
    spaces = {layer: NullSpace(np.eye(512)[:, :300]) for layer in (0, 1, 2)}
    narrow = {layer: NullSpace(np.eye(3)) for layer in (0, 1, 2)}
    editor = make_editor(method, METHODS[method].for_model(model.name))
    with pytest.raises(
        ValueError, match=r"second_moments\[0\] is a NullSpace, which only AlphaEdit"
    ):
        editor.init(model, Resources(spaces), templates=["{}"])
    editor = make_editor(MethodName.ALPHAEDIT, AlphaEditConfig.for_model(model.name))
    assert (
        editor.init(model, Resources(spaces), templates=["{}"]).penalties[0].basis.shape[1] == 300
    )
    with pytest.raises(ValueError, match=r"second_moments\[0\] has width 3, and the model has 512"):
        editor.init(model, Resources(narrow), templates=["{}"])
