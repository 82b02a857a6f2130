"""Tiles cover what they must, whatever the size."""

import numpy as np
import pytest

from nftk_jax.kernels.cover import triangle_tiles


@pytest.mark.parametrize("n", [1, 2, 3, 37, 128, 257, 600])
@pytest.mark.parametrize(("height", "width"), [(3, 5), (16, 40), (256, 4096)])
def test_every_pair_of_the_triangle_lies_in_a_tile_and_no_tile_beside_the_diagonal_touches_it(n, height, width):
    seen = np.zeros((n, n), int)
    *beside, last = triangle_tiles(n, height, height, width)
    for rows, columns, starts in beside:
        for i, j in starts:
            assert i + rows <= j <= n - columns
            seen[i : i + rows, j : j + columns] += 1
    rows, columns, starts = last
    assert rows == columns
    for i, j in starts:
        assert i == j
        assert i + rows <= n
        seen[i : i + rows, j : j + columns] += 1
    assert (seen[np.triu_indices(n)] > 0).all()
