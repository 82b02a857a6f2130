"""Kernels made of others: families side by side, a family on some columns of the inputs, some kernels of a family."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from nftk_jax.kernels.kernel import Columns, Kernel, KernelLabel, Part
from nftk_jax.kernels.series import KernelSeries
from nftk_jax.settings import InputsName, ScalingName


@dataclasses.dataclass(frozen=True)
class KernelSum(Kernel):
    """Several families of kernels side by side, each with its own columns of Omega."""

    kernels: tuple[Kernel, ...]

    @property
    def word(self) -> str:
        words, labels = {kernel.word for kernel in self.kernels}, self.labels
        word = words.pop()
        one_group = len({label.group for label in labels}) == 1
        return word if not words and one_group and all(label.name.startswith(word) for label in labels) else "kernel"

    @property
    def may_be_indefinite(self) -> bool:
        return any(kernel.may_be_indefinite for kernel in self.kernels)

    @property
    def takes_row_numbers(self) -> bool:
        return any(kernel.takes_row_numbers for kernel in self.kernels)

    @property
    def labels(self) -> tuple[KernelLabel, ...]:
        labels: dict[str, KernelLabel] = {}
        given = [label for kernel in self.kernels for label in kernel.labels]
        details = {label.kind: {other.detail for other in given if other.kind == label.kind} for label in given}
        for label in given:
            name, number = str(dataclasses.replace(label, group="")), 1
            if label.detail and len(details[label.kind]) > 1:
                name = f"{label.detail} {name}"
                label = dataclasses.replace(label, name=name, detail="")
            while str(label) in labels:
                number += 1
                label = dataclasses.replace(label, name=f"{name} ({number})")
            labels[str(label)] = label
        return tuple(labels.values())

    @property
    def n_kernels(self) -> int:
        return sum(kernel.n_kernels for kernel in self.kernels)

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for kernel in self.kernels for part in kernel.parts)

    def evaluate(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        return jnp.concatenate([kernel.evaluate(x1, x2) for kernel in self.kernels])

    def check(self, x: Any) -> None:
        for kernel in self.kernels:
            kernel.check(x)

    def diagonals(self, x: Any) -> np.ndarray:
        return np.concatenate([kernel.diagonals(x) for kernel in self.kernels])

    def fitted(self, x: np.ndarray) -> Kernel:
        return KernelSum(tuple(kernel.fitted(x) for kernel in self.kernels))

    def scaling_for(self, scaling: ScalingName, unit_norm: bool) -> ScalingName:
        wanted: set[ScalingName] = {kernel.scaling_for(scaling, unit_norm) for kernel in self.kernels}
        if len(wanted) > 1:
            raise ValueError(
                f"the joined kernels want different scalings of the inputs, {', '.join(sorted(wanted))}; "
                "give one by `scaling`"
            )
        return wanted.pop()

    def singles(self) -> np.ndarray:
        return np.asarray(scipy.linalg.block_diag(*(kernel.singles() for kernel in self.kernels)))

    def nngp(self) -> Kernel:
        return KernelSum(tuple(kernel.nngp() for kernel in self.kernels))

    def to_dict(self) -> dict[str, Any] | None:
        members = [kernel.to_dict() for kernel in self.kernels]
        return None if None in members else {"type": "sum", "kernels": members}


@dataclasses.dataclass(frozen=True)
class _OfFamily(Kernel):
    """What is made of one family of kernels and has most of its properties."""

    kernel: Kernel

    @property
    def word(self) -> str:
        return self.kernel.word

    @property
    def may_be_indefinite(self) -> bool:
        return self.kernel.may_be_indefinite

    @property
    def takes_row_numbers(self) -> bool:
        return self.kernel.takes_row_numbers

    @property
    def is_homogeneous(self) -> bool:
        return self.kernel.is_homogeneous

    def scaling_for(self, scaling: ScalingName, unit_norm: bool) -> ScalingName:
        return self.kernel.scaling_for(scaling, unit_norm)

    def nngp(self) -> Kernel:
        return dataclasses.replace(self, kernel=self.kernel.nngp())


@dataclasses.dataclass(frozen=True)
class KernelOnColumns(_OfFamily):
    """A family of kernels that sees some columns of the inputs alone; see `Kernel.on`."""

    columns: Columns
    group: str = ""

    def __hash__(self) -> int:  # slices have no hash before Python 3.12
        return hash((self.kernel, str(self.columns), self.group))

    @property
    def labels(self) -> tuple[KernelLabel, ...]:
        if not self.group:
            return self.kernel.labels
        inner = lambda label: f"{self.group}: {label.group}" if label.group else self.group  # noqa: E731
        return tuple(dataclasses.replace(label, group=inner(label)) for label in self.kernel.labels)

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(Part(part.kernel, (self.columns, *part.columns)) for part in self.kernel.parts)

    @property
    def n_kernels(self) -> int:
        return self.kernel.n_kernels

    def _select(self, x: Any) -> Any:
        return Part(self.kernel, (self.columns,)).select(x)

    def evaluate(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        return self.kernel.evaluate(self._select(x1), self._select(x2))

    def check(self, x: Any) -> None:
        super().check(x)
        features = x.shape[1]
        numbers = range(features)[self.columns] if isinstance(self.columns, slice) else self.columns
        if not len(numbers) or not all(-features <= number < features for number in numbers):
            what = self.group or "a kernel"
            raise ValueError(
                f"the columns of {what} must be some of the {features} columns of the inputs; got {self.columns}"
            )
        self.kernel.check(self._select(x))

    def diagonals(self, x: Any) -> np.ndarray:
        x = np.asarray(x)
        self.check(x)
        return self.kernel.diagonals(self._select(x))

    def fitted(self, x: np.ndarray) -> Kernel:
        self.check(x)
        some = self._select(x)
        if self.group and len(some) > 1 and (some == some[0]).all():
            raise ValueError(
                f"the group {self.group!r} is constant on the training rows, so that its kernels tell none of them "
                "apart; leave it out"
            )
        return dataclasses.replace(self, kernel=self.kernel.fitted(some))

    def singles(self) -> np.ndarray:
        return self.kernel.singles()

    def to_dict(self) -> dict[str, Any] | None:
        kernel, columns = self.kernel.to_dict(), self.columns
        if kernel is None:
            return None
        plain = [columns.start, columns.stop, columns.step] if isinstance(columns, slice) else list(columns)
        kind = "slice" if isinstance(columns, slice) else "numbers"
        return {"type": "columns", "kernel": kernel, kind: plain, "group": self.group}


@dataclasses.dataclass(frozen=True)
class KernelSubset(_OfFamily):
    """Some kernels of a family; see `Kernel.only`.

    Args:
      kernel: the family.
      chosen: positions of the kernels in it, from 0, rising.
    """

    chosen: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        return self.kernel.symmetric

    @property
    def labels(self) -> tuple[KernelLabel, ...]:
        labels = self.kernel.labels
        return tuple(labels[position] for position in self.chosen)

    @property
    def n_kernels(self) -> int:
        return len(self.chosen)

    @property
    def parts(self) -> tuple[Part, ...]:
        found, first = [], 0
        for part in self.kernel.parts:
            own = [place - first for place in self.chosen if first <= place < first + part.kernel.n_kernels]
            first += part.kernel.n_kernels
            if own:
                found.append(Part(part.kernel.only(own), part.columns))
        return tuple(found)

    def evaluate(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        return self.kernel.evaluate(x1, x2)[self._rows]

    def check(self, x: Any) -> None:
        self.kernel.check(x)

    def fitted(self, x: np.ndarray) -> Kernel:
        return dataclasses.replace(self, kernel=self.kernel.fitted(x))

    def diagonals(self, x: Any) -> np.ndarray:
        return self.kernel.diagonals(x)[self._rows]

    def traced_diagonals(self, budget: int, x: jax.Array) -> jax.Array:
        return self.kernel.traced_diagonals(budget, x)[self._rows]

    def combined(self, budget: int, omega: jax.Array, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """With weights of zero for the kernels that are left out."""
        weights = jnp.zeros((len(omega), self.kernel.n_kernels), omega.dtype).at[:, self._rows].set(omega)
        return self.kernel.combined(budget, weights, x1, x2)

    def series(self, x1: jax.Array, x2: jax.Array | None, inputs: InputsName) -> KernelSeries | None:
        found = self.kernel.series(x1, x2, inputs)
        if found is None:
            return None
        bias = None if found.bias is None else found.bias[self._rows]
        return found._replace(coefficients=found.coefficients[self._rows], at_zero=found.at_zero[self._rows], bias=bias)

    def widened(self, x: np.ndarray, size: int) -> np.ndarray:
        return self.kernel.widened(x, size)

    def to_dict(self) -> dict[str, Any] | None:
        kernel = self.kernel.to_dict()
        return None if kernel is None else {"type": "subset", "kernel": kernel, "chosen": list(self.chosen)}

    @property
    def _rows(self) -> np.ndarray:
        return np.array(self.chosen)
