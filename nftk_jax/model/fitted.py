"""The fitted model: what a prediction, its parts and its standard deviation need."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from nftk_jax.kernels.family import stack_products
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import Rows
from nftk_jax.model.calibration import Calibration
from nftk_jax.model.files import read_fields, write_fields
from nftk_jax.model.shares import predict_by_kernel, split_r2
from nftk_jax.preprocessing.arrays import check_real
from nftk_jax.preprocessing.padding import pad_rows, padded_size
from nftk_jax.preprocessing.scaling import InputScaling, check_finite
from nftk_jax.preprocessing.stack import KernelStack
from nftk_jax.preprocessing.targets import decode_scores
from nftk_jax.settings import InputsName, KindName, check_choice
from nftk_jax.solvers.cholesky import factor_ridge

_STD_ROWS = 64  # of new inputs, whose standard deviations are computed at a time


@dataclasses.dataclass(frozen=True)
class NFTKModel:
    """An infinite-width NFT-K: one kernel per class, and the ridge regression on it (paper eqs. 14-15).

    Attributes:
      kernel: L kernels.
      omega: weights of the kernels scaled to unit mean diagonal, shape (C, L), float64.
      scale: mean diagonal of K^(l) on the training rows, shape (L,), float64.
      ridge: absolute ridge of every class, in units of the scaled kernels' mean diagonal, shape (C,), float64.
      x_train: training inputs as given, shape (n, p); the landmarks' alone after Nystroem's method.
      dual_coef: shape (n, C), float32 or float64: the dtype that predictions are computed in.
      target_mean, target_scale: f -> f * scale + mean gives the scores, shapes (C,).
      input_scaling: what is done to inputs before the kernel.
      classes: labels in the order of the classes, or None for regression.
      calibration: from scores to probabilities, fitted on held-out rows; None for regression.
      weight: sample weights of the training rows, shape (n,); None is 1 everywhere.
      inputs: what was promised of the scaled inputs, see `Kernel.bind`.
      landmarks: whether `x_train` holds the landmarks of Nystroem's method.
      present: where targets were not missing (NaN) in training, shape (n, C), bool; None is everywhere.
    """

    kernel: Kernel
    omega: np.ndarray
    scale: np.ndarray
    ridge: np.ndarray
    x_train: np.ndarray
    dual_coef: np.ndarray
    target_mean: np.ndarray
    target_scale: np.ndarray
    input_scaling: InputScaling
    classes: np.ndarray | None
    calibration: Calibration | None = None
    weight: np.ndarray | None = None
    inputs: InputsName = "auto"
    landmarks: bool = False
    present: np.ndarray | None = None

    @property
    def kernel_omega(self) -> np.ndarray:
        """omega / scale, the weights of the unscaled kernels, shape (C, L): what `combined_kernel` takes."""
        return self.omega / self.scale

    def scaled(self, x: np.ndarray, dtype: Any = None) -> np.ndarray:
        """Inputs as the kernel sees them, shape (m, p), in `dtype`; None is that of `dual_coef`.

        Raises:
          ValueError: `x` is no real matrix with the training inputs' number of columns, or not finite before or after.
        """
        self._check(x)
        z = self.input_scaling.apply(x, self.dual_coef.dtype if dtype is None else dtype)
        check_finite(x, z)
        return z

    def _check(self, x: np.ndarray | KernelStack) -> None:
        """Raise ValueError unless `x` has the type and the shape of inputs."""
        if isinstance(x, KernelStack):
            raise ValueError(
                "a KernelStack gives scores alone: standard deviations also need the kernels of new rows with "
                "themselves; fit row numbers with `kernel=KernelFamily.precomputed(K)`, K of all rows"
            )
        features = self.x_train.shape[1]
        if x.ndim != 2 or x.shape[1] != features:
            or_stack = ", or be KernelStack(K) for precomputed kernels" if features == 1 else ""
            raise ValueError(f"inputs must have shape (n, {features}), as in training{or_stack}; got {x.shape}")
        check_real("inputs", x)

    def bind(self, *, dtype: Any = None) -> Rows:
        """The kernels of unit mean diagonal on the training rows, in `dtype`; None is that of `dual_coef`."""
        z = self.scaled(self.x_train).astype(self.dual_coef.dtype if dtype is None else dtype, copy=False)
        inputs = self.inputs if z.dtype == self.dual_coef.dtype else "auto"  # rounded rows are no sphere in float64
        return self.kernel.bind(z, scale=self.scale, inputs=inputs)

    def decision_function(
        self,
        x: np.ndarray | KernelStack,
        *,
        split: bool = False,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> np.ndarray:
        """Scores f_c(x) (paper eq. 14): one-hot regression for classes, the targets themselves for regression.

        Beside inputs and scores, memory for one tile of rows is taken.

        Args:
          x: inputs, shape (m, p), as they were given in training (unscaled); of precomputed kernels row numbers, or a
            `KernelStack` (m, n) between new rows and all n rows of the fit.
          split: return what every kernel adds to the scores; these parts and `target_mean` add up to the scores.
          report: called with the rows done and their total.

        Returns:
          Scores, shape (m, C), float64; with `split` their parts, shape (L, m, C), which need memory of that size.

        Raises:
          ValueError: the inputs' shape is wrong, they are not finite, or so far from the training inputs that the
            kernel overflows.
        """
        if isinstance(x, KernelStack):
            products = stack_products(self.kernel, x, self.kernel_omega, self.x_train, self.dual_coef)
            return products * self.target_scale if split else self.unscaled(products.sum(axis=0))
        self._check(x)
        if x.size and not np.isfinite([x.min(), x.max()]).all():
            raise ValueError("inputs must be finite; got NaN or infinity")
        with enable_x64(self.dual_coef.dtype == np.float64):
            if split:
                rows, scaled = self.bind(), self.scaled
                parts = predict_by_kernel(rows, self.omega, self.dual_coef, x, scaled=scaled, report=report)
                check_finite(x, parts.sum(axis=0))
                return parts * self.target_scale
            scores = self.bind().predict(self.omega, self.dual_coef, x, scaled=self.scaled, report=report)
        check_finite(x, scores)
        return self.unscaled(scores)

    def unscaled(self, scores: np.ndarray, outputs: np.ndarray | None = None) -> np.ndarray:
        """Scores in units of the targets, from those of the encoded ones, in place.

        Args:
          scores: shape (m, C), or (m, k C) of k models.
          outputs: those that the C columns are of; None is all.
        """
        mean, scale = self.target_mean, self.target_scale
        if outputs is not None:
            mean, scale = mean[outputs], scale[outputs]
        times = scores.shape[1] // len(mean)
        return decode_scores(scores, np.tile(mean, times), np.tile(scale, times))

    def predict(self, x: np.ndarray | KernelStack) -> np.ndarray:
        """Labels, shape (m,), for classes; targets, shape (m, C), for regression. Arguments as `decision_function`."""
        return self.labels(self.decision_function(x))

    def labels(self, scores: np.ndarray) -> np.ndarray:
        """The labels of the largest probabilities, shape (m,), for classes; the scores themselves for regression.

        Under one temperature these are the labels of the largest scores.
        """
        if self.classes is None:
            return scores
        return self.classes[np.argmax(scores if self.calibration is None else self.logits(scores), axis=1)]

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, the softmax of `logits`, shape (m, C).

        Raises:
          ValueError: the model is one for regression.
        """
        return scipy.special.softmax(self.logits(scores), axis=1)

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """Logarithms of the probabilities up to a constant of the row, shape (m, C).

        Raises:
          ValueError: the model is one for regression.
        """
        if self.calibration is None:
            raise ValueError("only a model for classes, calibrated when it was fitted, has probabilities")
        return scores @ self.calibration.matrix + self.calibration.offset

    def contributions(self, x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> np.ndarray:
        """Every kernel's share of R^2 on some rows by the product measure, see `shares`.

        For classes R^2 is that of the scores against one-hot labels.

        Args:
          x: inputs, shape (m, p), unscaled, m >= 2.
          y: labels, shape (m,), or targets, shape (m, C), or (m,) for one target. A target that is NaN in a row is left
            out there.
          sample_weight: shape (m,), >= 0; None is 1 everywhere.

        Returns:
          Shares, shape (C, L), float64; a row adds up to R^2 of that class or target.

        Raises:
          ValueError: as `decision_function`; `y` holds other labels or does not fit; fewer than two rows of a target
            have weight.
        """
        targets = self.encode(y, len(x))
        there = ~np.isnan(targets)
        if sample_weight is not None:
            there &= np.asarray(sample_weight)[:, None] > 0
        rows = int(there.sum(axis=0).min())
        if rows < 2:
            raise ValueError(f"shares of R2 need at least two rows with weight; got {rows}")
        parts = self.decision_function(x, split=True)
        return split_r2(parts, targets, self.omega, self.target_mean, sample_weight).share

    def encode(self, y: np.ndarray, n: int) -> np.ndarray:
        """Labels of n rows as one-hot rows, or targets as they are: shape (n, C), float64. Raises ValueError.

        Targets may be NaN, which is missing.
        """
        y, shape = np.asarray(y), (n, len(self.omega))
        if self.classes is None:
            check_real("y", y)
            if y.shape != shape and (shape[1] > 1 or y.shape != (n,)):
                raise ValueError(f"y must have shape {shape}, one row for every row of the inputs; got {y.shape}")
            y = np.asarray(y, np.float64).reshape(shape)
            if np.isinf(y).any():
                raise ValueError("y must be finite, or NaN where a target is missing; got infinity")
            return y
        if y.shape != (n,):
            raise ValueError(f"y must have shape {(n,)}, one label for every row of the inputs; got {y.shape}")
        one_hot = y[:, None] == self.classes
        known = one_hot.any(axis=1)
        if not known.all():
            raise ValueError(
                f"y must hold labels of the training rows, {self.classes.tolist()[:5]}; got "
                f"{y[~known].tolist()[0]!r}: leave such rows out"
            )
        return one_hot.astype(np.float64)

    def posterior_std(self, x: np.ndarray, *, covariance: KindName = "ntk") -> np.ndarray:
        r"""Standard deviation of f_c(x) under a Gaussian-process prior, given the training targets.

        .. math:: \sigma_c^2(x) = s_c^2 \left(k_c(x, x) - k_c(x, X) (k_c(X, X) + \lambda_c W^{-1})^{-1} k_c(X, x)\right)

        with s_c the scale of the target, noise of variance :math:`s_c^2 \lambda_c` on every training target, and W the
        sample weights; the noise of a new target is not included. The prior covariance is :math:`s_c^2 k_c`, with k_c
        the learned kernel ("ntk", whose posterior mean is exactly the prediction) or the NNGP kernel with the same
        weights ("nngp": the spread of the same networks at random initialisation, of which only the readouts'
        posterior is taken; smaller than the NTK). The difference cancels at small ridges, so that it is computed in
        float64 whatever the model's own precision. X are the rows in which the target was not missing.

        Args:
          x: inputs, shape (m, p), unscaled.
          covariance: "ntk" or "nngp".

        Returns:
          Shape (m, C), float64, in units of the targets.

        Raises:
          ValueError: as `decision_function`; or `covariance` is neither of the two, or the model knows landmarks alone.
        """
        check_choice("covariance", covariance, KindName)
        if self.landmarks:
            raise ValueError(
                "standard deviations need all training rows, and this model keeps the landmarks of "
                "Nystroem's method; fit it with `solver='cholesky'` or `solver='cg'`"
            )
        z = self.scaled(x, np.float64)
        variance = np.empty((len(z), len(self.omega)))
        kernel = self.kernel if covariance == "ntk" else self.kernel.nngp()
        with enable_x64():
            inputs = self.inputs if self.dual_coef.dtype == np.float64 else "auto"
            rows = kernel.bind(self.scaled(self.x_train, np.float64), scale=self.scale, inputs=inputs)
            diagonals = kernel.diagonals(z) / self.scale[:, None]
            check_finite(x, diagonals.T)
            for members, own, weight in self._systems(rows):
                omega, ridge = self.omega[members[:1]], float(self.ridge[members[0]])
                gram = own.padded_gram(omega)[0]
                lower = jnp.asarray(factor_ridge(gram, ridge=ridge, jitter=True, weight=weight).lower)
                for start in range(0, len(z), _STD_ROWS):
                    tile = z[start : start + _STD_ROWS]
                    cross = own.padded_cross(omega, pad_rows(tile, _STD_ROWS))[0]  # one shape for any number of rows
                    explained = np.asarray(_explained(lower, cross))[: len(tile)]
                    left = omega[0] @ diagonals[:, start : start + len(tile)] - explained
                    variance[start : start + len(tile), members] = left[:, None]
        check_finite(x, variance)
        return np.sqrt(np.maximum(variance, 0.0)) * self.target_scale

    def _systems(self, rows: Rows) -> Iterator[tuple[np.ndarray, Rows, np.ndarray | None]]:
        """The distinct systems that were solved: outputs of one Omega, ridge and rows; these rows; padded weights."""
        present = np.ones((rows.n, len(self.omega)), bool) if self.present is None else self.present
        keys = np.column_stack([self.omega, self.ridge, np.packbits(present, axis=0).T])
        group = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        for number in range(group.max() + 1):
            members = np.flatnonzero(group == number)
            there = present[:, members[0]]
            own = rows if there.all() else rows.take(np.flatnonzero(there))
            weight = None if self.weight is None else self.weight[there]
            yield members, own, None if weight is None else pad_rows(weight, padded_size(own.n), weight.max())

    def save(self, directory: str | pathlib.Path) -> None:
        """Write model.safetensors and model.json into a directory, which is made if it is not there.

        Functions of a kernel are not written: `load_model` takes that kernel. Neither are Gram matrices: without that
        kernel the model that is read predicts from a `KernelStack` alone.

        Raises:
          OSError: the directory cannot be written.
        """
        write_fields(vars(self), directory)


@jax.jit
def _explained(lower: jax.Array, cross: jax.Array) -> jax.Array:
    """k(x, X) A^(-1) k(X, x) of every row from the lower factor of A."""
    return jnp.sum(jax.scipy.linalg.solve_triangular(lower, cross.T, lower=True) ** 2, axis=0)


def load_model(directory: str | pathlib.Path, *, kernel: Kernel | None = None) -> NFTKModel:
    """Read a model that `NFTKModel.save` or `python -m nftk_jax.fit` wrote.

    Args:
      directory: holds model.safetensors and model.json.
      kernel: of a model whose kernel no file can hold (functions, Gram matrices, a class of one's own).

    Returns:
      The model; it predicts the same bits as the one that was saved.

    Raises:
      ModelError: files are missing, damaged, of another schema, or do not fit together or with `kernel`.
    """
    return NFTKModel(**read_fields(directory, kernel))
