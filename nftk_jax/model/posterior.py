r"""The Gaussian process whose posterior mean a model's scores are: its standard deviations, covariances and draws.

With :math:`A = K + \lambda W^{-1}`, k(x) = k(X, x), u(x) = 1 - 1' A^{-1} k(x) and m the weights of the targets' mean,
a score is c(x)'y with :math:`c = A^{-1} k + u m`. Under the prior covariance k, its error has the covariance

.. math:: s_c \tau_c^2 \left(k(x, x') - k(x)' A^{-1} k(x') + u(x) u(x') \, m' A m\right) .

W holds the sample weights and X the rows in which the target was not missing; :math:`\tau_c` is the target's scale and
s_c its `prior_variance`. The last term comes from centring: the mean of the targets, with weights m = w / sum(w), is
not exactly the mean of the process. Differences cancel at small ridges, so that everything is computed in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from nftk_jax.kernels.precision import enable_x64
from nftk_jax.memory import GIB, available_memory
from nftk_jax.preprocessing.scaling import check_finite
from nftk_jax.settings import KindName, check_choice, check_count

if TYPE_CHECKING:
    from nftk_jax.model.fitted import NFTKModel


@enable_x64()
def posterior_std(model: NFTKModel, x: np.ndarray, kind: KindName) -> np.ndarray:
    """Standard deviations of the scores, shape (m, C), see `NFTKModel.posterior_std`."""
    check_choice("covariance", kind, KindName)
    z, kernel = model.scaled(x, np.float64), model.kernel if kind == "ntk" else model.kernel.nngp()
    variance = np.empty((len(z), len(model.omega)))
    diagonals = kernel.diagonals(z) / model.scale[:, None]
    check_finite(x, diagonals.T)
    for system in model.systems(kind):
        variance[:, system.outputs] = (system.omega[0] @ diagonals + system.changed_variance(z))[:, None]
    check_finite(x, variance)
    return np.sqrt(np.maximum(variance, 0.0) * model.prior_variance) * model.target_scale


@enable_x64()
def posterior_covariance(model: NFTKModel, x: np.ndarray, kind: KindName) -> np.ndarray:
    """Covariances of the scores of any two rows, shape (m, m, C), see `NFTKModel.posterior_covariance`."""
    check_choice("covariance", kind, KindName)
    m, outputs = len(x), len(model.omega)
    needed, free = 8 * m * ((outputs + 4) * m + 2 * len(model.x_train)), available_memory()
    if needed > free:
        raise MemoryError(
            f"covariances of {outputs} scores of {m} rows need {needed / GIB:.2g} GiB, and {free / GIB:.2g} are free: "
            "use fewer rows at a time, or `return_std=True`, which needs memory for one value per row"
        )
    z, kernel = model.scaled(x, np.float64), model.kernel if kind == "ntk" else model.kernel.nngp()
    covariance, bound = np.empty((m, m, outputs)), kernel.bind(z, scale=model.scale)
    for system in model.systems(kind):
        found = np.asarray(bound.gram(system.omega)[0]) + system.changed_covariance(z)
        check_finite(x, found)
        covariance[:, :, system.outputs] = found[:, :, None]
    covariance *= model.prior_variance * model.target_scale**2
    return covariance


def draw_posterior(
    model: NFTKModel, x: np.ndarray, n_draws: int, rng: np.random.RandomState, kind: KindName
) -> np.ndarray:
    """Draws of the scores of some rows together, shape (m, C, n_draws).

    A covariance has no Cholesky factor where rows repeat, so that its eigenvectors take the place of one.
    """
    check_count("n_samples", n_draws)
    covariance, draws = posterior_covariance(model, x, kind), []
    for one in np.moveaxis(covariance, 2, 0):
        values, vectors = scipy.linalg.eigh(one)
        draws.append(vectors @ (np.sqrt(np.maximum(values, 0.0))[:, None] * rng.standard_normal((len(x), n_draws))))
    return model.decision_function(x)[:, :, None] + np.stack(draws, axis=1)
