"""The flags that say which kernels Omega weighs, besides those of the MLP on all features, and what they name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nftk_jax.commands.command_line import CommandError
from nftk_jax.commands.files import reason
from nftk_jax.settings import MemberName, shown

if TYPE_CHECKING:
    from nftk_jax.datasets import Dataset
    from nftk_jax.kernels.groups import Groups

_KINDS = "FILE.json, patches:RxC, rows:N, columns:N, columns or none"


@dataclasses.dataclass(frozen=True)
class KernelFlags:
    """Which kernels Omega weighs."""

    depths: str | None = None
    """Combine only these depths, such as 1,3,5, instead of all up to --depth."""
    groups: str | None = None
    """Give every group of features its own kernels. For images: patches:RxC, rows:N or columns:N. For a table: columns,
    one group per column. For all: FILE.json, an object with a list of column numbers or names for every group, or
    "rest" or "all". Default: the array groups of FILE.npz, if there is one; none ignores it."""
    members: Annotated[tuple[MemberName, ...], tyro.conf.arg(name="with")] = ()
    """Further kernels, on all features or on every group. rbf, laplace and matern come in three widths."""

    @property
    def depth_numbers(self) -> list[int] | None:
        """The depths as numbers; None for all."""
        return None if self.depths is None else [int(depth) for depth in self.depths.split(",")]

    def check(self) -> None:
        """Refuse what can be refused before any data are read.

        Raises:
          CommandError: `depths` are no whole numbers with commas between them, or `groups` names no kind of groups, or
            a file that cannot be used.
        """
        if self.depths is not None and not re.fullmatch(r"[0-9]+(,[0-9]+)*", self.depths):
            raise CommandError(f"--depths must be whole numbers with commas, such as 1,3,5; got {shown(self.depths)}")
        if self.groups in (None, "none", "columns") or re.match(r"(patches|rows|columns):", self.groups):
            return
        if not self.groups.lower().endswith(".json"):
            raise CommandError(f"--groups must be {_KINDS}; got {shown(self.groups)}")
        _read_file(self.groups)

    def read_groups(self, dataset: Dataset) -> Groups:
        """The column numbers of every group; empty without groups.

        Raises:
          CommandError, ValueError: these are no groups of the data set's features.

        Warns:
          UserWarning: groups of an image or a table are constant on the training rows, and left out.
        """
        from nftk_jax.kernels.groups import image_groups, read_groups, without_constant

        if self.groups == "none" or self.groups is dataset.feature_groups is None:
            return {}
        columns = None if dataset.table is None else dataset.table.column_of_feature
        if self.groups is None:
            return read_groups(dataset.feature_groups, dataset.n_features)
        if self.groups.lower().endswith(".json"):
            return read_groups(_read_file(self.groups), dataset.n_features, columns)
        if self.groups == "columns" and columns is not None:
            return without_constant(read_groups(columns, dataset.n_features), dataset.x_train)
        if self.groups == "columns":
            raise CommandError(
                f"--groups columns needs a table, and {dataset.name} is none; bands of an image are columns:N"
            )
        if dataset.image_shape is None:
            raise CommandError(
                f"--groups {self.groups} needs images, and a row of {dataset.name} has {dataset.n_features} features "
                "without a shape; give --groups FILE.json"
            )
        return image_groups(self.groups, dataset.image_shape, dataset.x_train)


def digest(groups: Groups | list[int]) -> str:
    """What tells groups of features, or of rows, from others: a run with other ones does not take up a checkpoint."""
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest()[:16]


def _read_file(path: str) -> dict[str, Any]:
    """A file of groups, an object in JSON."""
    what = 'expected an object such as {"pixels": [0, 1, 2], "others": "rest"}'
    try:
        text = pathlib.Path(path).expanduser().read_text(encoding="utf-8")
        found = json.loads(text, object_pairs_hook=_without_twins)
    except OSError as error:
        raise CommandError(f"--groups {path} cannot be read ({reason(error)}); name a file that can") from None
    except (ValueError, RecursionError) as error:
        raise CommandError(f"--groups {path} is no usable JSON ({error}); {what}") from None
    if not isinstance(found, dict):
        raise CommandError(f"--groups {path} holds {shown(found)}; {what}")
    return found


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} occurs twice")
    return dict(pairs)
