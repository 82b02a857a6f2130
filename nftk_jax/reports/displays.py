"""Pictures of a fitted model in scikit-learn's style: Omega, the similarity of its kernels, and their contributions.

The figures of the reports use the same classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.kernels.kernel import KernelLabel
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.mkl.similarity import centred_alignment
from nftk_jax.model import NFTKModel
from nftk_jax.preprocessing.targets import name_outputs
from nftk_jax.reports import bars, figures, heatmaps
from nftk_jax.reports.columns import columns_of
from nftk_jax.reports.formats import clean, fixed, weight

#: More outputs than this are drawn as a heatmap, not as bars.
MOST_BARS = 20


class _HeatmapDisplay:
    """A heatmap. `draw` makes `image_`, its cells and their names."""

    image_: Any

    def draw(self, ax: figures.Axes, *, cmap: str | None = None) -> None:
        raise NotImplementedError

    @staticmethod
    def _text(value: float) -> str:
        """The text of a cell."""
        return weight(value, 2)

    def plot(
        self,
        *,
        ax: figures.Axes | None = None,
        cmap: str | None = None,
        include_values: bool = True,
        colorbar: bool = True,
    ) -> Self:
        """Draw the heatmap. Values are written into the cells if they fit."""
        self.draw(figures.axes_of(ax), cmap=cmap)
        heatmaps.complete(self.image_, bar=colorbar, write=self._text if include_values else None)
        return self


class OmegaDisplay(_HeatmapDisplay):
    """Omega as a heatmap: one row per class or target, one column per kernel, with the kernels of a group side by side.

    Args:
      omega: weights, shape (C, L), >= 0. A cell that is exactly zero stays white.
      labels: L labels of the kernels.
      output_names: C names.
      noun: the noun for a row.
      needed: cells to frame, shape (C, L) bool, such as `InferenceTable.needed`; None frames none.

    Attributes:
      ax_, figure_, image_: the axes, their figure and the heatmap, after plotting.
    """

    def __init__(
        self,
        omega: np.ndarray,
        *,
        labels: Sequence[KernelLabel],
        output_names: Sequence[str],
        noun: str = "class",
        needed: np.ndarray | None = None,
    ) -> None:
        self.omega = omega
        self.labels = labels
        self.output_names = output_names
        self.noun = noun
        self.needed = needed

    @classmethod
    def from_estimator(
        cls, model: Any, *, normalise: bool = False, ax: figures.Axes | None = None, **options: Any
    ) -> OmegaDisplay:
        """Draw the weights of a fitted model.

        Args:
          model: a fitted NFTKClassifier or NFTKRegressor, or an NFTKModel.
          normalise: scale every row to unit length, as the report does.
          ax: where to draw; None makes a figure.
          options: for `plot`.

        Raises:
          NotFittedError: the estimator is not fitted.
        """
        found = _model_of(model)
        omega = normalise_rows(found.omega) if normalise else found.omega
        outputs = name_outputs(found.classes, len(omega))
        display = cls(omega, labels=found.kernel.labels, output_names=outputs, noun=_noun(found))
        return display.plot(ax=ax, **options)

    def draw(self, ax: figures.Axes, *, cmap: str | None = None, highest: float | None = None) -> None:
        """Draw only the cells and their names. `highest` is the weight at the end of the colours; None: the largest."""
        omega, columns = np.asarray(self.omega, np.float64), columns_of(self.labels)
        self.ax_, self.figure_ = ax, ax.figure
        self.image_ = heatmaps.heatmap(
            ax,
            omega,
            figures.printable([clean(name) for name in self.output_names]),
            figures.column_names(columns.names),
            limits=(0.0, float(np.nanmax(omega)) if highest is None else highest),
            colours=figures.colour_map(cmap),
            aspect="auto",
        )
        if self.needed is not None:
            heatmaps.frame(ax, np.asarray(self.needed, bool))
        if columns.headings:
            heatmaps.head_groups(ax, columns.headings)
        ax.set(xlabel=columns.word, ylabel=self.noun)


class AlignmentDisplay(_HeatmapDisplay):
    """The similarity of each two kernels as a heatmap: their centred alignment, which is 1 for equal kernels.

    Args:
      alignment: shape (L, L).
      labels: L labels of the kernels.

    Attributes:
      ax_, figure_, image_: the axes, their figure and the heatmap, after plotting.
    """

    def __init__(self, alignment: np.ndarray, *, labels: Sequence[KernelLabel]) -> None:
        self.alignment = alignment
        self.labels = labels

    @classmethod
    def from_estimator(
        cls, model: Any, x: Any, *, n_rows: int = 1000, ax: figures.Axes | None = None, **options: Any
    ) -> AlignmentDisplay:
        """Compare the kernels of a fitted model on rows of inputs.

        Args:
          model: a fitted NFTKClassifier or NFTKRegressor, or an NFTKModel.
          x: inputs, shape (m, p), unscaled, as in training.
          n_rows: use at most this many rows, evenly spaced.
          ax: where to draw; None makes a figure.
          options: for `plot`.

        Raises:
          NotFittedError: the estimator is not fitted.
          ValueError: `x` is no real matrix with as many columns as in training.
        """
        found = _model_of(model)
        return cls(alignment_on(found, np.asarray(x), n_rows), labels=found.kernel.labels).plot(ax=ax, **options)

    @staticmethod
    def _text(value: float) -> str:
        return thousandths(value)

    def draw(self, ax: figures.Axes, *, cmap: str | None = None) -> None:
        """Draw only the cells and their names."""
        alignment, columns = np.asarray(self.alignment, np.float64), columns_of(self.labels)
        names = figures.column_names(columns.full)
        self.ax_, self.figure_ = ax, ax.figure
        limits = min(float(np.nanmin(alignment)), 1 - 1e-3), 1.0
        colours = figures.colour_map(cmap)
        self.image_ = heatmaps.heatmap(ax, alignment, names, names, limits=limits, colours=colours, aspect="equal")
        word = "kernel" if columns.headings else columns.word
        ax.set(xlabel=word, ylabel=word)


class ContributionDisplay:
    """Contributions of kernels or groups to R2: bars that add up to R2, or a heatmap for many outputs.

    Args:
      shares: shares of R2, shape (C, K). The shares of an output add up to its R2.
      names: K names, of groups or kernels.
      output_names: C names.
      noun: the noun for an output.
      unsure: shares that mean nothing, shape (C, K) bool, which are hatched; None is none.
      together: joint shares, by name, of groups or kernels that cannot be told apart, shape (C,), drawn as thin bars.

    Attributes:
      ax_, figure_: the axes and their figure, after plotting.
    """

    def __init__(
        self,
        shares: np.ndarray,
        *,
        names: Sequence[str],
        output_names: Sequence[str],
        noun: str = "class",
        unsure: np.ndarray | None = None,
        together: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.shares = shares
        self.names = names
        self.output_names = output_names
        self.noun = noun
        self.unsure = unsure
        self.together = together

    @classmethod
    def from_estimator(
        cls, model: Any, x: Any, y: Any, *, by_group: bool = True, ax: figures.Axes | None = None, **options: Any
    ) -> ContributionDisplay:
        """Draw the contributions of a fitted model's groups or kernels. Use rows that the model was not fitted on.

        Args:
          model: a fitted NFTKClassifier or NFTKRegressor, or an NFTKModel.
          x: inputs, shape (m, p).
          y: their labels or targets.
          by_group: add up the kernels of each group. Kernels without a group stay separate.
          ax: where to draw; None makes a figure.
          options: for `plot`.

        Raises:
          NotFittedError: the estimator is not fitted.
          ValueError: see `NFTKModel.contributions`.
        """
        found = _model_of(model)
        shares, labels = np.asarray(model.contributions(x, y)), found.kernel.labels
        if by_group and len({label.group for label in labels}) > 1:
            names = list(dict.fromkeys(label.group or str(label) for label in labels))
            owner = np.array([names.index(label.group or str(label)) for label in labels])
            shares = np.stack([shares[:, owner == k].sum(axis=1) for k in range(len(names))], axis=1)
        else:
            names = [str(label) for label in labels]
        outputs = name_outputs(found.classes, len(shares), y)
        return cls(shares, names=names, output_names=outputs, noun=_noun(found)).plot(ax=ax, **options)

    def plot(
        self, *, ax: figures.Axes | None = None, most: int = 7, include_values: bool = True
    ) -> ContributionDisplay:
        """Draw one bar of length R2 per output, or for more than 20 outputs a heatmap in falling order of R2.

        Args:
          ax: where to draw; None makes a figure.
          most: this many of the largest get their own colours in bars. The others share one colour.
          include_values: write the shares if they fit.
        """
        self.draw(figures.axes_of(ax), most=most)
        if len(self.shares) > MOST_BARS:
            heatmaps.complete(self.ax_.images[0], bar=True, write=_HeatmapDisplay._text if include_values else None)
        else:
            bars.fit_bars(self.ax_, write=include_values)
        return self

    def draw(self, ax: figures.Axes, *, most: int = 7) -> None:
        """Draw only the bars or the cells, and their names."""
        self.ax_, self.figure_ = ax, ax.figure
        shares = np.asarray(self.shares, np.float64)
        unsure = np.zeros(shares.shape, bool) if self.unsure is None else np.asarray(self.unsure, bool)
        names, outputs = (
            figures.printable([clean(n) for n in ns], 32, tail=8) for ns in (self.names, self.output_names)
        )
        if len(shares) > MOST_BARS:
            bars.draw_shares_of_many(ax, shares, names, outputs, unsure)
            ax.set_xlabel(f"{self.noun}, in falling order of R²")
        else:
            together = {clean(name): np.asarray(share) for name, share in (self.together or {}).items()}
            bars.draw_shares(ax, shares, names, outputs, unsure, together, most)
            ax.set(xlabel="share of R²", ylabel=self.noun)

    def scatter(self, first: str, second: str, *, ax: figures.Axes | None = None) -> ContributionDisplay:
        """Draw the shares of two groups or kernels against each other, one point per output.

        Args:
          first: one of `names`.
          second: another of them.
          ax: where to draw; None makes a figure.

        Raises:
          ValueError: there is no such name.
        """
        missing = [name for name in (first, second) if name not in self.names]
        if missing:
            raise ValueError(f"`first` and `second` must be two of {list(self.names)}; got {missing[0]!r}")
        self.ax_ = figures.axes_of(ax)
        self.figure_ = self.ax_.figure
        columns = [list(self.names).index(name) for name in (first, second)]
        unsure = np.zeros(len(self.shares), bool)
        if self.unsure is not None:
            unsure = np.all(np.asarray(self.unsure, bool)[:, columns], axis=1)
        bars.draw_scatter(self.ax_, np.asarray(self.shares, np.float64)[:, columns], np.asarray(unsure))
        for label, name in zip(("x", "y"), figures.printable([clean(first), clean(second)], 32, tail=8), strict=True):
            axis = getattr(self.ax_, f"{label}axis")
            axis.set_label_text(f"share of {name}", parse_math=False)
        return self


def alignment_on(model: NFTKModel, x: np.ndarray, n_rows: int) -> np.ndarray:
    """Centred alignments of a model's kernels, shape (L, L), on at most `n_rows` rows of inputs (m, p)."""
    if len(x) > n_rows:
        x = x[np.linspace(0, len(x) - 1, n_rows).astype(int)]
    with enable_x64():
        rows = model.kernel.bind(model.scaled(x, np.float64))
        return centred_alignment(rows.gram(np.eye(model.kernel.n_kernels)))


def thousandths(value: float) -> str:
    """An alignment as text, such as ".998"."""
    return fixed(value, 3).removeprefix("0")


def _model_of(model: Any) -> NFTKModel:
    if isinstance(model, NFTKModel):
        return model
    check_is_fitted(model)
    return model.model_


def _noun(model: NFTKModel) -> str:
    return "output" if model.classes is None else "class"
