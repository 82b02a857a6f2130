"""Divergence of a recorded training: losses that the choice of the batches does not explain."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nftk_jax.finite.training import DIVERGED, DivergenceError
from nftk_jax.path_kernels.gradients import Array, Network

Loss = Callable[[Array, Array], Array]

#: Rows whose losses are taken at once.
_ROWS = 1024


class Watch:
    """What the losses of a training are compared with: its scale, a mean loss over all samples.

    The scale is the larger of the losses at the start and of outputs of zero. It does not depend on the first batch,
    and is no accident of a start at very small losses.
    """

    def __init__(
        self, network: Network, loss: Loss, data: tuple[Array, Array], start: list[Array], remedy: str
    ) -> None:
        """Find the scale.

        Args:
          network: gives f.
          loss: of one sample, (output, target) -> scalar.
          data: inputs (n, ...) and targets (n, n_outputs).
          start: the parameters before the first step.
          remedy: ends the message of an error.

        Raises:
          DivergenceError: the loss is not finite at the start.
        """
        self._network, self._loss, self._data, self._remedy = network, loss, data, remedy
        first, zeros = self._means(start)
        if not np.isfinite(first):
            raise DivergenceError(f"the loss is {first:.3g} before the first step: start with smaller parameters")
        self._scale = max(abs(first), abs(zeros)) if np.isfinite(zeros) else abs(first)

    def _means(self, params: list[Array]) -> tuple[float, float]:
        """The mean losses over all samples, of the network's outputs and of outputs of zero."""
        x, y = self._data
        first = zeros = 0.0
        for begin in range(0, len(x), _ROWS):
            part = slice(begin, begin + _ROWS)
            sums = _sum_losses(self._network, self._loss, params, x[part], y[part])
            first, zeros = first + float(sums[0]), zeros + float(sums[1])
        return first / len(x), zeros / len(x)

    def check_batches(self, losses: np.ndarray, size: int) -> None:
        """Compare the losses of the batches so far, the mean over the batch before every step.

        As long as nothing moves, the losses of an epoch add up to at most those of all samples, whatever the order. So
        sums over an epoch are compared: one sample with a large loss in a small batch is no divergence.

        Args:
          losses: shape (steps so far,), float64.
          size: samples of a batch.

        Raises:
          DivergenceError: one is not finite, or those of one epoch add up to more than a hundred times the scale of all
            samples together.
        """
        n, finite = len(self._data[0]), np.isfinite(losses)
        total = np.cumsum(np.append(0.0, np.where(finite, losses, 0.0)))
        before = np.maximum(np.arange(1, len(total)) - -(-n // size), 0)
        bad = ~finite | (size * (total[1:] - total[before]) > DIVERGED * n * self._scale)
        if bad.any():
            step = int(np.argmax(bad))
            self._refuse(losses[step], f"before step {step + 1}")

    def check_end(self, params: list[Array], steps: int) -> None:
        """Compare the mean loss of all samples after the last step.

        Raises:
          DivergenceError: it is not finite, or more than a hundred times the scale.
        """
        after = self._means(params)[0]
        if not after <= DIVERGED * self._scale:
            self._refuse(after, f"after step {steps}")

    def _refuse(self, loss: float, when: str) -> None:
        raise DivergenceError(
            f"training diverged: the loss was {self._scale:.3g} for untrained or zero outputs and {loss:.3g} {when}; "
            f"{self._remedy}"
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sum_losses(network: Network, loss: Loss, params: list[Array], x: Array, y: Array) -> tuple[Array, Array]:
    """Of some rows, the network's outputs and outputs of zero."""
    outputs = network.output(params, x)
    return jax.vmap(loss)(outputs, y).sum(), jax.vmap(loss)(jnp.zeros_like(outputs), y).sum()
