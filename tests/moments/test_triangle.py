"""Packed upper triangles."""

import numpy as np
import pytest

from rome_jax.moments.triangle import pack_triangle, unpack_triangle
from tests.moments.examples import positive_definite


@pytest.mark.parametrize("width", [1, 2, 3, 10])
def test_a_triangle_is_the_upper_half_row_by_row(width):
    matrix = positive_definite(width)
    matrix = np.triu(matrix) + np.triu(matrix, 1).T
    triangle = pack_triangle(matrix, np.float64)
    np.testing.assert_array_equal(triangle, matrix[np.triu_indices(width)])
    np.testing.assert_array_equal(unpack_triangle(triangle), matrix)


def test_a_size_that_no_triangle_has_is_an_error():
    with pytest.raises(ValueError, match=r"shape \(2,\) is not a packed triangle"):
        unpack_triangle(np.ones(2))
