"""Which kernels of a sum are evaluated together: those that depend on angles and lengths, of all groups of features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from nftk_jax.kernels.series import Form, KernelSeries
from nftk_jax.kernels.stacks import Stack
from nftk_jax.preprocessing.padding import PADDED_ROWS, padded_features

if TYPE_CHECKING:
    from nftk_jax.kernels.kernel import Kernel, Part
    from nftk_jax.settings import InputsName


class Together(NamedTuple):
    """Several parts as one kernel of whole inputs: what is asked of a kernel whose series is known."""

    parts: tuple[Part, ...]

    @property
    def n_kernels(self) -> int:
        return sum(part.kernel.n_kernels for part in self.parts)

    def diagonals(self, x: Any) -> np.ndarray:
        x = np.asarray(x)
        return np.concatenate([part.kernel.diagonals(part.select(x)) for part in self.parts])

    def traced_diagonals(self, budget: int, x: jax.Array) -> jax.Array:
        return jnp.concatenate([part.kernel.traced_diagonals(budget, part.select(x)) for part in self.parts])


class Work(NamedTuple):
    """What is evaluated in one go.

    Attributes:
      kernel: a `Kernel` of the inputs that `select` gives, or `Together`.
      select: of whole inputs, shape (n, p).
      columns: its columns of Omega, shape (L',).
      classes: the rows of Omega that it serves, shape (C',).
      series: of the kernel on these inputs, None for the kernel's own formula.
    """

    kernel: Any
    select: Any
    columns: np.ndarray
    classes: np.ndarray
    series: KernelSeries | None


def divide(kernel: Kernel, x1: Any, x2: Any | None, inputs: InputsName, weighted: np.ndarray) -> list[Work]:
    """Divide sums of kernels into what is evaluated in one go.

    A class that weighs kernels of several parts with a series has those evaluated together. A part that is the only
    such one of a class, or has no series, is evaluated by itself.

    Args:
      kernel: L kernels.
      x1: inputs, shape (n1, p).
      x2: inputs, shape (n2, p), or None for those of `x1`.
      inputs: see `Kernel.bind`.
      weighted: which kernels every class gives weight, shape (C, L).
    """
    ends = np.cumsum([part.kernel.n_kernels for part in kernel.parts])
    places = np.split(np.arange(ends[-1]), ends[:-1])
    support = np.stack([weighted[:, columns].any(axis=1) for columns in places])
    alone, shared = support.copy(), np.zeros(len(weighted), bool)
    profiles: list[KernelSeries | None] = [None] * len(places)
    if (support.sum(axis=0) > 1).any():
        profiles = [_series(part, x1, x2, inputs, together=True) for part in kernel.parts]
        fusible = np.array([profile is not None for profile in profiles])
        shared = support[fusible].sum(axis=0) > 1
        alone[fusible] &= ~shared
    work = []
    for part, columns, classes in zip(kernel.parts, places, alone, strict=True):
        if classes.any():
            series = _series(part, x1, x2, inputs, together=False)
            work.append(Work(part.kernel, part.select, columns, np.flatnonzero(classes), series))
    if shared.any():
        members = [number for number, profile in enumerate(profiles) if profile is not None]
        parts = tuple(kernel.parts[number] for number in members)
        series = _stack(parts, [profiles[number] for number in members], x1.shape[1], len(x1 if x2 is None else x2))
        columns = np.concatenate([places[number] for number in members])
        work.append(Work(Together(parts), lambda x: x, columns, np.flatnonzero(shared), series))
    return work


class _Selected:
    """What a part sees of concrete inputs, cut out when its values are wanted: for most series the shape will do."""

    def __init__(self, part: Part, x: Any) -> None:
        self._part, self._x, self.dtype = part, x, x.dtype
        self.shape = (len(x), part.select(np.arange(x.shape[1])[None]).shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return np.asarray(self._part.select(np.asarray(self._x)), dtype)

    def __len__(self) -> int:
        return self.shape[0]


def _series(part: Part, x1: Any, x2: Any | None, inputs: InputsName, *, together: bool) -> KernelSeries | None:
    def see(x: Any) -> Any:
        return _Selected(part, x) if part.columns and not isinstance(x, Tracer) else part.select(x)

    find = part.kernel.profile if together else part.kernel.series
    found = find(see(x1), None if x2 is None else see(x2), part.promise(inputs))
    if together and found is not None and isinstance(found.coefficients, Tracer):
        return None  # a sphere whose radius is known inside a compiled function alone
    return found


def _stack(parts: Sequence[Part], profiles: Sequence[Any], features: int, rows: int) -> KernelSeries:
    """One series for all parts: groups with the same columns share their cosines, groups of one shape a stack."""
    geometries: dict[tuple[int, ...], list[tuple[KernelSeries, np.ndarray]]] = defaultdict(list)
    place = 0
    for part, series in zip(parts, profiles, strict=True):
        chosen = np.arange(place, place + len(series.coefficients))
        place += len(chosen)
        geometries[tuple(part.select(np.arange(features)[None])[0].tolist())].append((series, chosen))
    stacks: dict[Any, list[Any]] = defaultdict(list)
    for columns, terms in geometries.items():
        terms.sort(key=lambda term: (str(term[0].form), term[0].radial))
        forms: tuple[tuple[Form, bool], ...] = tuple((series.form, series.radial) for series, _ in terms)
        stacks[forms, _width(len(columns), rows)].append((columns, terms))
    layout, blocks, zeros, stretch = [], [], [], []
    for (forms, width), groups in stacks.items():
        sizes = []
        for term in range(len(forms)):
            own = [terms[term] for _, terms in groups]
            sizes.append(max(series.coefficients.shape[1] for series, _ in own))
            for series, chosen in own:
                block = np.zeros((place, sizes[-1]))
                block[chosen, : series.coefficients.shape[1]] = series.coefficients
                blocks.append(block)
                zeros.append(np.zeros(place))
                zeros[-1][chosen] = series.at_zero
                stretch.append(1.0 if series.stretch is None else series.stretch)
        width = width if rows <= PADDED_ROWS else max(len(columns) for columns, _ in groups)
        layout.append(Stack(forms, tuple(sizes), tuple(columns for columns, _ in groups), width))
    biases = [np.zeros(len(series.coefficients)) if series.bias is None else series.bias for series in profiles]
    bias = np.concatenate(biases)
    return KernelSeries(
        tuple(layout),
        False,
        np.concatenate(blocks, axis=1),
        np.stack(zeros, axis=1),
        bias if bias.any() else None,
        np.asarray(stretch),
    )


def _width(columns: int, rows: int) -> int:
    """Columns that groups of about one size are rounded up to, so that they share a stack."""
    if columns == 1:
        return 1
    if rows <= PADDED_ROWS:
        return padded_features(columns)
    step = 8 if columns <= 128 else 64
    return -(-columns // step) * step
