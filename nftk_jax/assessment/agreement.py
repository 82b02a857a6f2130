r"""Whether two Omegas agree: the finite network's and the infinite one's, in one unit.

A kernel weight is the square of a network weight: the tangent kernel of f = sum_l omega_l f^(l) at fixed Omega is
sum_l omega_l^2 Theta^(l), cross terms vanishing with the width. As Omega of the infinite network weighs kernels scaled
to unit mean diagonal, so must the finite one's: omega_l^2 times the mean diagonal of the tangent kernel of f^(l).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.finite.networks import NetworkSettings, Params
from nftk_jax.finite.tangent import empirical_ntk

_DRAWS = 999


def depth_scales(network: NetworkSettings, params: Params, x: np.ndarray) -> np.ndarray:
    """Mean diagonal, over rows and outputs, of the tangent kernel of every f^(l), shape (L,).

    Args:
      network: an NFT-K MLP.
      params: of one network.
      x: inputs, shape (n, p), dtype of the parameters.
    """
    scales = []
    for one_hot in np.eye(network.mlp.depth):
        omega = jax.tree.map(lambda old, row=one_hot: jnp.broadcast_to(row, old.shape).astype(old.dtype), params.omega)
        tiles = [x[i : i + 16] for i in range(0, len(x), 16)]  # only the diagonal is wanted
        diagonal = [
            np.einsum("cii->ci", empirical_ntk(network, params._replace(omega=omega), tile)).mean(axis=0)
            for tile in tiles
        ]
        scales.append(float(np.concatenate(diagonal).mean()))
    return np.array(scales)


def as_kernel_weights(omega: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Weights of kernels of unit mean diagonal from network weights: omega_l^2 scale_l.

    Args:
      omega: of a network, shape (..., C, L).
      scale: mean diagonal of the kernels of every depth, shape (L,).
    """
    return omega**2 * scale


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of two Omegas over classes and depths.

    Attributes:
      correlation: of the unit rows; None where one of them is constant.
      interval: 95 % percentile bootstrap over classes.
      permuted_classes: the central 95 % of the correlation when the classes of one Omega are permuted: what agreement
        on depths that all classes share gives by itself.
    """

    correlation: float | None
    interval: tuple[float, float] | None
    permuted_classes: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "rank_correlation": self.correlation,
            "interval": None if self.interval is None else list(self.interval),
            "permuted_classes": None if self.permuted_classes is None else list(self.permuted_classes),
        }


def compare_omegas(ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator) -> Agreement:
    """How alike the rows of two Omegas are, each row scaled to unit length.

    Args:
      ours, theirs: non-negative kernel weights of kernels of unit mean diagonal, shape (C, L).
      rng: draws the bootstrap and the permutations.
    """
    a, b = normalise_rows(ours), normalise_rows(theirs)
    value = _spearman(a, b)
    if value is None:
        return Agreement(None, None, None)
    n_classes = len(a)
    draws = (rng.integers(n_classes, size=n_classes) for _ in range(_DRAWS))
    resampled = [v for rows in draws if (v := _spearman(a[rows], b[rows])) is not None]
    permuted = [v for _ in range(_DRAWS) if (v := _spearman(a, b[rng.permutation(n_classes)])) is not None]
    return Agreement(value, _central(resampled), _central(permuted))


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    ranks = [stats.rankdata(omega.ravel()) for omega in (a, b)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _central(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
