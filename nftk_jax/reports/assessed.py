"""What the fit command writes about a model, for a fitted estimator: metrics, a summary and the report."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from nftk_jax.assessment.fitted import assess_fitted, pose_test
from nftk_jax.estimator import NFTKClassifier, NFTKRegressor
from nftk_jax.model import NFTKModel
from nftk_jax.preprocessing.reading import read
from nftk_jax.progress import as_text, report_stages
from nftk_jax.reports.environment import environment, peak_memory_bytes, version
from nftk_jax.reports.fit_figures import save_figures
from nftk_jax.reports.html import render_report
from nftk_jax.reports.tables import summary
from nftk_jax.settings import BaselinesName, check_choice, check_count, flatten


class Assessment(dict[str, Any]):
    """How good a fitted model is, as the dictionary that `python -m nftk_jax.fit` writes to metrics.json.

    Its values are plain: ``json.dumps(assessment)`` works. docs/outputs.md describes every entry. Printed, it is the
    summary that the command prints.
    """

    def __repr__(self) -> str:
        return as_text(summary(self))

    def report(self, path: str | pathlib.Path) -> pathlib.Path:
        """Write the command's report: one HTML page that holds its figures and opens in any browser.

        Args:
          path: of the page, which is replaced if it exists. Its folder must exist.

        Returns:
          The path.

        Raises:
          OSError: the page cannot be written.
        """
        path = pathlib.Path(os.path.expanduser(path))
        with tempfile.TemporaryDirectory() as folder:
            figures = save_figures(self, pathlib.Path(folder))
            page = render_report(self, figures, omega_csv="model.omega_, model.kernel_omega_")
        path.write_text(page, encoding="utf-8")
        return path


def assess(
    model: NFTKClassifier | NFTKRegressor | NFTKModel,
    x_test: Any,
    y_test: Any,
    *,
    baselines: BaselinesName = "auto",
    resamples: int = 0,
    name: str = "",
    verbose: bool = False,
) -> Assessment:
    """Judge a fitted estimator on test rows, as `python -m nftk_jax.fit` does.

    The result holds the test score with its interval, the baselines with paired intervals, the tests of Omega, the
    verdict, what each kernel contributes, and the certificate of the solve. The training rows and the result of the
    search are those that the estimator keeps. The kernels are evaluated and solved again, but nothing is searched again
    for the model itself. Memory and time are those of the command.

    Args:
      model: a fitted estimator, or its `model_`. A pipeline's last step takes inputs that the steps before have
        transformed.
      x_test: inputs of rows that the fit has not seen, shape (m, p), m >= 2.
      y_test: their labels, shape (m,), or targets, shape (m,) or (m, C), NaN where a target is missing. The columns of
        a DataFrame name the targets in the report.
      baselines: "auto" for all of them, above 20,000 training rows on the search rows; "all", always on all training
        rows; "quick" for those that cost little; or "none".
      resamples: learn Omega again on this many random splits, for its spread and for an interval of the method. 0, or
        at least 2.
      name: of the data, for the titles of summary and report; none by default.
      verbose: show the progress on standard error.

    Returns:
      The metrics, which print as a summary and write the report: `Assessment`.

    Raises:
      ValueError: the test rows do not fit the model, an argument is out of range, or the model does not hold its
        training rows: it was read from files, fitted with `solver="nystroem"` or with `kernel="precomputed"`.
      MemoryError: the assessment needs more memory than is free.

    >>> found = assess(model, x_test, y_test)                # doctest: +SKIP
    >>> print(found)                                         # doctest: +SKIP
    >>> found.report("report.html")                          # doctest: +SKIP
    """
    check_choice("baselines", baselines, BaselinesName)
    check_count("resamples", resamples, least=0)
    if resamples == 1:
        raise ValueError("resamples must be 0 or at least 2, since one has no spread; got 1")
    if isinstance(model, NFTKModel):
        fitted, inputs = model, x_test
    else:
        check_is_fitted(model)
        fitted, inputs = model.model_, read(model, x_test, reset=False)
    dataset = pose_test(name, fitted, inputs, y_test)
    with report_stages(verbose=verbose) as report:
        found = assess_fitted(fitted, dataset, resamples=resamples, baselines=baselines, report=report)
    origin = fitted.origin
    found["timings"]["total_s"] = sum(found["timings"].values())
    return Assessment(
        {
            "schema": "nftk_jax.fit/1",
            "version": version(),
            "command": f"assess({origin.call}, x_test, y_test)",
            "config": {name: _plain(value) for name, value in flatten(origin.settings).items()}
            | {"class_weight": _plain(origin.class_weight) or "none", "kernel": repr(fitted.kernel)},
            "environment": environment(),
            **found,
            "groups": {name: list(columns) for name, columns in origin.groups.items()},
            "peak_memory_bytes": peak_memory_bytes(),
        }
    )


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
