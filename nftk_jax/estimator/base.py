"""What the two estimators share: from data and parameters to a model, and what any model can be asked."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, overload

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from nftk_jax.kernels.groups import group_kernel, read_groups
from nftk_jax.learn import Learned, TrainingRows, learn
from nftk_jax.memory import give_back
from nftk_jax.mkl.result import DescentResult
from nftk_jax.model import NFTKModel
from nftk_jax.parameters import Parameters
from nftk_jax.parts import Found, Origin
from nftk_jax.preprocessing.reading import ONE_FIT, read, read_splits, read_weight, weigh_classes
from nftk_jax.preprocessing.sampling import number_runs, restrict_splits
from nftk_jax.preprocessing.stack import KernelStack
from nftk_jax.progress import report_stages
from nftk_jax.settings import shown


class NFTKEstimator(Parameters):
    """What the two estimators share."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.pairwise = self._takes_kernels
        return tags

    def _learn(self, data: TrainingRows, x: Any) -> None:
        kernel, settings = self._settings(x)
        groups = {}
        if self.groups is not None:
            groups = read_groups(self.groups, data.x.shape[1], getattr(self, "feature_names_in_", None))
            kernel = group_kernel(kernel, groups)
        with (
            report_stages(verbose=self.verbose) as report,
            learn(data, kernel, settings, condition=False, report=report) as learned,
        ):
            descent = learned.found.descent
            if descent is not None and not descent.converged.all():
                warnings.warn(
                    f"search of Omega: {descent.message}; the weights are better than those that it began "
                    "with, but no minimum: another `ridge`, `objective` or `basis`, or more `max_iterations`, may find "
                    "one",
                    ConvergenceWarning,
                    stacklevel=3,
                )
            model = dataclasses.replace(learned.model, origin=self._origin(learned, groups))
        give_back()
        self.model_: NFTKModel = model
        self.omega_: np.ndarray = model.omega
        self.kernel_omega_: np.ndarray = model.kernel_omega
        self.kernel_labels_ = model.kernel.labels
        self.groups_: dict[str, tuple[int, ...]] = groups
        self.scale_: np.ndarray = model.scale
        self.ridge_: np.ndarray = model.ridge
        self.dual_coef_: np.ndarray = model.dual_coef
        self.n_iter_: np.ndarray = np.broadcast_to(
            0 if descent is None else descent.iterations, len(model.omega)
        ).copy()
        self.search_results_: dict[str, np.ndarray] = {} if descent is None else _record(learned.found, descent)

    def _origin(self, learned: Learned, groups: dict[str, tuple[int, ...]]) -> Origin | None:
        """What `nftk_jax.assess` needs of the fit; None with landmarks, which do without the training rows."""
        if learned.model.landmarks:
            return None
        searches = {name: arrays for name, arrays in learned.journal.items() if name.startswith("search")}
        rows = {field.name: getattr(learned.data, field.name) for field in dataclasses.fields(learned.data)}
        del rows["x"]  # the model's; a joblib file would hold it twice
        call = f"{' '.join(repr(self).split())}.fit(x, y)"
        return Origin(rows, learned.settings, searches, learned.seconds, groups, call, self.class_weight)

    def _training_rows(
        self, x: Any, y: np.ndarray, sample_weight: Any, groups: Any, *, classifier: bool
    ) -> dict[str, Any]:
        """The rows of positive weight and the splits of `cv` restricted to them, as fields of `TrainingRows`."""
        x = np.arange(len(x))[:, None] if isinstance(x, KernelStack) else x
        splits = runs = None
        if self.cv is not None:
            splits = read_splits(self.cv, x, y, groups, classifier=classifier)
        elif groups is not None:
            runs = number_runs(groups, len(x), "groups")
        if self.class_weight is not None and not classifier:
            raise ValueError(
                f"class_weight must be None for regression; got {shown(self.class_weight)}: give `fit` a sample_weight"
            )
        weight = None if sample_weight is None else read_weight(sample_weight, x)
        if self.class_weight is not None:
            weight = read_weight(weigh_classes(self.class_weight, y, weight), x)
        if weight is None:
            return {"x": x, "y": y, "splits": splits, "runs": runs}
        rows = np.flatnonzero(weight)
        if splits is not None:
            splits = restrict_splits(splits, rows, len(x))
        runs = None if runs is None else number_runs(runs[rows], len(rows), "groups")
        return {"x": x[rows], "y": y[rows], "weight": weight[rows], "splits": splits, "runs": runs}

    def __sklearn_clone__(self) -> Any:
        if isinstance(self.cv, Iterator):
            raise ValueError(f"{ONE_FIT} and cannot be cloned; give `cv` a list of its pairs")
        return super().__sklearn_clone__()

    def _inputs(self, x: Any) -> Any:
        """New inputs, shape (m, p), or the kernels between new rows and the training rows."""
        check_is_fitted(self)
        return read(self, x, reset=False)

    def _scores(self, x: Any, *, split: bool = False) -> np.ndarray:
        inputs = self._inputs(x)  # first: it refuses an estimator that is not fitted
        return self.model_.decision_function(inputs, split=split)

    def contributions(self, x: Any, y: Any, sample_weight: Any = None) -> np.ndarray:
        """Each kernel's share of R^2, shape (n_outputs, n_kernels), see `NFTKModel.contributions`."""
        inputs = self._inputs(x)
        if sample_weight is not None:
            sample_weight = read_weight(sample_weight, inputs)
        return self.model_.contributions(inputs, np.asarray(y), sample_weight)

    @property
    def loo_predictions_(self) -> np.ndarray:
        """Each training row's scores from the model without that row, shape (n, n_outputs).

        They are scores of ``model_.decision_function`` for the training rows of positive weight, in their order,
        computed on access. See `NFTKModel.loo_predictions`.
        """
        check_is_fitted(self)
        return self.model_.loo_predictions()

    @overload
    def influence(self, x: Any, *, top: None = None, rows: Any = None) -> np.ndarray: ...

    @overload
    def influence(self, x: Any, *, top: int, rows: None = None) -> tuple[np.ndarray, np.ndarray]: ...

    def influence(
        self, x: Any, *, top: int | None = None, rows: Any = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """How much the scores of ``model_.decision_function`` would change without some training rows, exactly.

        Omega, ridge, scaling and centring stay fixed, and nothing is refitted. See `NFTKModel.influence`.

        Args:
          x: inputs, shape (m, n_features).
          top: return only this many training rows, those with the largest changes, per row of `x` and output. None
            returns all.
          rows: positions of training rows, or a mask of them, that are removed together. Positions count the rows of
            positive weight.

        Returns:
          Changes, shape (m, n, n_outputs). With `top`, positions of training rows and their changes, both of shape
          (m, top, n_outputs). With `rows`, the changes without all of these rows, shape (m, n_outputs).

        Raises:
          ValueError: `top` or `rows` are out of range, or the model keeps only the landmarks of `solver="nystroem"`.
          MemoryError: the result or the kernel of all training rows exceeds the memory.
        """
        inputs = self._inputs(x)
        return self.model_.influence(inputs, top=top, rows=rows)


def _record(found: Found, descent: DescentResult) -> dict[str, np.ndarray]:
    """How the search went, by names, see `PARAMETERS`."""
    return {
        "seconds": descent.seconds,
        "objective": descent.value_history,
        "projected_gradient": descent.projected_gradient_history,
        "converged": descent.converged,
        "start_ridge": found.start_ridge,
    }
