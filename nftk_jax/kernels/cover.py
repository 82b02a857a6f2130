"""Tiles of few shapes that cover rectangles and triangles."""

from __future__ import annotations

import numpy as np


def tile_starts(n: int, size: int) -> np.ndarray:
    """First rows of tiles of one size that cover n rows; the last overlaps its neighbour where n is no multiple."""
    return np.minimum(np.arange(0, n, size), max(n - size, 0)).astype(np.int32)


def cover(n: int, size: int) -> tuple[int, np.ndarray]:
    """The length and the starts of equal intervals, about `size` long, that cover n; they overlap by a few at most."""
    parts = max(1, round(n / size))
    return -(-n // parts), tile_starts(n, -(-n // parts))


def pairs(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Every (row, column), shape (len(rows) * len(columns), 2)."""
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def triangle_tiles(n: int, leaf: int, height: int, width: int) -> list[tuple[int, int, np.ndarray]]:
    """Tiles that cover the pairs i < j: (rows, columns, starts) for every shape, the tiles on the diagonal last.

    The triangle of n rows is a rectangle beside two triangles of one size, and so on: few shapes, each many times, and
    products as large as a cache allows. The two triangles overlap where n is odd, or where the columns of a tile would
    lie a multiple of 256 bytes apart in memory: they would then crowd a few lines of the cache, and the mirror image
    take several times as long.
    """
    out, corners, size = [], np.asarray([0]), n
    while size > 1.2 * leaf:
        half = -(-size // 2)
        half += 8 if (size - half) % 64 == 0 else 0
        rows, down = cover(half, height)
        columns, across = cover(size - half, width)
        starts = [corner + pairs(down, across + half) for corner in corners]
        out.append((rows, columns, np.concatenate(starts).astype(np.int32)))
        corners, size = np.concatenate([corners, corners + size - half]), half
    return [*out, (size, size, np.stack([corners, corners], axis=1).astype(np.int32))]
