"""The fitted model: predictions, their parts by kernel, standard deviations and influences."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, overload

import numpy as np
import scipy.special

from nftk_jax.kernels.family import stack_products
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.kernels.rows import Rows
from nftk_jax.model.calibration import Calibration
from nftk_jax.model.files import read_fields, write_fields
from nftk_jax.model.left_out import influences, joint_influence, largest_influences, left_out_scores
from nftk_jax.model.posterior import posterior_covariance, posterior_std
from nftk_jax.model.shares import predict_by_kernel, split_r2
from nftk_jax.model.summary import render_summary, summarise
from nftk_jax.model.systems import Factors, System, factored_systems, likely_scale
from nftk_jax.preprocessing.arrays import check_real
from nftk_jax.preprocessing.scaling import InputScaling, check_finite
from nftk_jax.preprocessing.stack import KernelStack
from nftk_jax.preprocessing.table import TablePreparation
from nftk_jax.preprocessing.targets import decode_scores
from nftk_jax.settings import InputsName, KindName


@dataclasses.dataclass(frozen=True)
class NFTKModel:
    """A fitted infinite-width NFT-K: one combined kernel per class, and ridge regression on it (paper eqs. 14-15).

    Attributes:
      kernel: L kernels.
      omega: weights of the kernels scaled to unit mean diagonal, shape (C, L), float64.
      scale: mean diagonal of K^(l) on the training rows, shape (L,), float64.
      ridge: absolute ridge per class, in units of the scaled kernels' mean diagonal, shape (C,), float64.
      x_train: training inputs as given, shape (n, p); after Nystroem's method only the landmarks.
      dual_coef: shape (n, C), float32 or float64. Predictions are computed in this dtype.
      target_mean, target_scale: the scores are f * scale + mean, shapes (C,).
      input_scaling: how inputs are scaled before the kernel.
      classes: labels in the order of the classes, or None for regression.
      calibration: maps scores to probabilities, fitted on held-out rows; None for regression.
      weight: sample weights of the training rows, shape (n,); None is 1 everywhere.
      inputs: the promise about the scaled inputs, see `Kernel.bind`.
      landmarks: whether `x_train` holds the landmarks of Nystroem's method.
      present: where targets were not missing (NaN) in training, shape (n, C), bool; None is everywhere.
      variance_scale: `prior_variance`, shape (C,), float64, as it was learned; None with landmarks, and in old files.
      table: turns the columns of a table into inputs; None if the model was fitted on arrays.
      origin: what an estimator learned the model from (`nftk_jax.parts.Origin`), for `nftk_jax.assess`. Not saved.
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
    variance_scale: np.ndarray | None = None
    table: TablePreparation | None = None
    origin: Any = dataclasses.field(default=None, compare=False)

    def __repr__(self) -> str:
        return summarise(self)

    def _repr_html_(self) -> str:
        return render_summary(self)

    @property
    def kernel_omega(self) -> np.ndarray:
        """omega / scale, the weights of the unscaled kernels, shape (C, L), which `combined_kernel` takes."""
        return self.omega / self.scale

    def scaled(self, x: np.ndarray, dtype: Any = None) -> np.ndarray:
        """Inputs as the kernel sees them, shape (m, p), in `dtype`; None is the dtype of `dual_coef`.

        Raises:
          ValueError: `x` is no real matrix with as many columns as in training, or not finite before or after scaling.
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
        """The kernels of unit mean diagonal on the training rows, in `dtype`; None is the dtype of `dual_coef`."""
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
        """Scores f_c(x) (paper eq. 14): fits of one-hot labels, or predicted targets; in memory for one tile of rows.

        Args:
          x: inputs, shape (m, p), unscaled, as in training. For precomputed kernels they are row numbers, or a
            `KernelStack` (m, n) between new rows and all n rows of the fit.
          split: return the part of each kernel. The parts and `target_mean` add up to the scores.
          report: called with the rows done and their total.

        Returns:
          Scores, shape (m, C), float64. With `split` their parts, shape (L, m, C), which need memory of that size.

        Raises:
          ValueError: the inputs have the wrong shape, are not finite, or are so far from the training inputs that the
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
        """Convert scores from units of the encoded targets to units of the targets, in place.

        Args:
          scores: shape (m, C), or (m, k C) of k models.
          outputs: the outputs that the C columns belong to; None is all.
        """
        mean, scale = self.target_mean, self.target_scale
        if outputs is not None:
            mean, scale = mean[outputs], scale[outputs]
        times = scores.shape[1] // len(mean)
        return decode_scores(scores, np.tile(mean, times), np.tile(scale, times))

    def predict(self, x: np.ndarray | KernelStack) -> np.ndarray:
        """Labels, shape (m,), for classes; targets, shape (m, C), for regression. `x` is as in `decision_function`."""
        return self.labels(self.decision_function(x))

    def labels(self, scores: np.ndarray) -> np.ndarray:
        """The labels with the largest probabilities, shape (m,), for classes; the scores themselves for regression.

        If the calibration is one temperature, these are the labels with the largest scores.
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
        """Logarithms of the probabilities, up to a constant per row, shape (m, C).

        Raises:
          ValueError: the model is one for regression.
        """
        if self.calibration is None:
            raise ValueError("only a model for classes, calibrated when it was fitted, has probabilities")
        return scores @ self.calibration.matrix + self.calibration.offset

    def contributions(self, x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> np.ndarray:
        """Each kernel's share of R^2 on some rows by the product measure, see `shares`.

        For classes this is the R^2 of the scores against one-hot labels.

        Args:
          x: inputs, shape (m, p), unscaled, m >= 2.
          y: labels, shape (m,), or targets, shape (m, C), or (m,) for one target. Rows in which a target is NaN are
            left out for this target.
          sample_weight: shape (m,), >= 0; None is 1 everywhere.

        Returns:
          Shares, shape (C, L), float64; a row adds up to R^2 of that class or target.

        Raises:
          ValueError: as `decision_function`; `y` holds unknown labels or has the wrong shape; or a target has fewer
            than two rows with weight.
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
        """Labels of n rows as one-hot rows, or targets unchanged: shape (n, C), float64. Raises ValueError.

        NaN is a missing target.
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
        """Standard deviation of f_c(x) under a Gaussian-process prior, given the training targets, see `posterior`.

        It includes the uncertainty of the targets' mean. It does not include the noise of a new target, `noise_std`.

        The prior covariance k_c is the learned kernel ("ntk"), whose posterior mean is exactly the prediction, or the
        NNGP kernel with the same weights ("nngp"), the spread of the same networks at random initialisation when only
        the readouts are trained. In docs/error-rates.md the first covers the function in 86 to 95 % of new rows, at a
        nominal 95, and the second in 36 to 77 %. Differences cancel at small ridges, so everything is computed in
        float64. Factors of the training kernels stay in memory for further calls, up to 1 GiB. They are not pickled.

        Args:
          x: inputs, shape (m, p), unscaled.
          covariance: "ntk" or "nngp".

        Returns:
          Shape (m, C), float64, in units of the targets.

        Raises:
          ValueError: as `decision_function`; or `covariance` is neither of the two, or the model keeps only landmarks.
          MemoryError: the kernel of all training rows exceeds the memory.
        """
        return posterior_std(self, x, covariance)

    def posterior_covariance(self, x: np.ndarray, *, covariance: KindName = "ntk") -> np.ndarray:
        """Covariances of f_c(x) and f_c(x') for any two rows, see `posterior`; their diagonals are squared deviations.

        The arguments are those of `posterior_std`.

        Returns:
          Shape (m, m, C), float64, in squared units of the targets.

        Raises:
          ValueError: as `posterior_std`.
          MemoryError: the result or the kernel of all training rows exceeds the memory.
        """
        return posterior_covariance(self, x, covariance)

    @functools.cached_property
    def prior_variance(self) -> np.ndarray:
        """The most likely s_c of targets with covariance s_c (K_c + lambda_c W^(-1)), shape (C,): `likely_scale`."""
        if self.variance_scale is not None:
            return self.variance_scale
        targets = left_out_scores(self)[0]  # of a model of an older file
        return likely_scale(targets, self.dual_coef, self.weight)

    @property
    def noise_std(self) -> np.ndarray:
        """Standard deviation of the noise of a target of weight one, in its units, shape (C,), as the ridge implies."""
        return np.sqrt(self.prior_variance * self.ridge) * self.target_scale

    def loo_predictions(self) -> np.ndarray:
        """Scores of each training row from the model without that row, shape (n, C), float64, see `left_out`.

        They are in units of `decision_function`, at fixed Omega, ridge, scaling and centring. A row of weight 2 is left
        out as a whole. If a target is missing in a row, its score there is that of the whole model.

        Raises:
          ValueError: the model keeps only landmarks.
          MemoryError: the kernel of all training rows exceeds the memory.
        """
        return self.unscaled(left_out_scores(self)[1])

    @overload
    def influence(self, x: Any, *, top: None = None, rows: Any = None) -> np.ndarray: ...

    @overload
    def influence(self, x: Any, *, top: int, rows: None = None) -> tuple[np.ndarray, np.ndarray]: ...

    def influence(
        self, x: Any, *, top: int | None = None, rows: Any = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """How much the scores f_c(x) would change without some training rows, exactly, see `left_out`.

        Omega, ridge, scaling and centring stay fixed. The result equals that of a solve on the other rows.

        Args:
          x: inputs, as in `decision_function`.
          top: return only this many training rows, those with the largest changes, per row of `x` and output. It needs
            memory for one tile of changes. None returns all.
          rows: positions of training rows, or a mask of them, shape (n,), that are removed together.

        Returns:
          Changes, shape (m, n, C), float64, in units of `decision_function`. With `top` a pair, the positions among
          the training rows and their changes, in falling size, both of shape (m, top, C). With `rows` shape (m, C).

        Raises:
          ValueError: as `decision_function`; or `top` or `rows` are out of range, or the model keeps only landmarks.
          MemoryError: the result or the kernel of all training rows exceeds the memory.
        """
        if rows is not None:
            if top is not None:
                raise ValueError("`rows` are removed together, which has no largest ones; leave out `top` or `rows`")
            return joint_influence(self, x, rows)
        return influences(self, x) if top is None else largest_influences(self, x, top)

    def queries(self, x: np.ndarray | KernelStack) -> np.ndarray | KernelStack:
        """New rows as `systems` take them: scaled inputs in float64, or a `KernelStack` unchanged."""
        return x if isinstance(x, KernelStack) else self.scaled(x, np.float64)

    @functools.cached_property
    def factors(self) -> Factors:
        """Those that `factored_systems` keeps."""
        return Factors()

    def systems(self, covariance: KindName = "ntk") -> Iterator[System]:
        """The distinct systems that the model solves, factored, see `factored_systems`. Use them inside `enable_x64`.

        Raises:
          ValueError: the model keeps only landmarks.
        """
        if self.landmarks:
            raise ValueError(
                "standard deviations and left-out predictions need all training rows, and this model keeps the "
                "landmarks of Nystroem's method; fit it with `solver='cholesky'` or `solver='cg'`"
            )
        return factored_systems(self, covariance)

    def __getstate__(self) -> dict[str, Any]:
        """The fields, without the factors: the content of a pickle."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def save(self, directory: str | pathlib.Path) -> None:
        """Write model.safetensors and model.json into a directory, which is created if it is absent.

        A kernel's functions and Gram matrices are not written. Pass that kernel to `load_model`. Without its Gram
        matrices, the loaded model predicts only from a `KernelStack`.

        Raises:
          OSError: the directory cannot be written.
        """
        write_fields(vars(self), directory)


def load_model(directory: str | pathlib.Path, *, kernel: Kernel | None = None) -> NFTKModel:
    """Read a model that `NFTKModel.save` or `python -m nftk_jax.fit` wrote.

    Args:
      directory: holds model.safetensors and model.json.
      kernel: the model's kernel, if no file can hold it (functions, Gram matrices, a class of your own).

    Returns:
      The model; it predicts the same bits as the one that was saved.

    Raises:
      ModelError: files are missing, damaged, of another schema, or do not fit together or with `kernel`.
    """
    return NFTKModel(**read_fields(directory, kernel))
