"""The fitted model: what a prediction needs, saved as safetensors and JSON (never pickle)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import scipy.special

from nftk_jax.kernels.family import KernelFamily
from nftk_jax.kernels.gram import combined_ntk
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.preprocessing.padding import pad_rows, padded_size
from nftk_jax.preprocessing.scaling import InputScaling
from nftk_jax.settings import ScalingName

#: Version 2 added `unit_norm`; version 1 is read as without it.
SCHEMA, READABLE = "nftk_jax.model/2", ("nftk_jax.model/1", "nftk_jax.model/2")

_TENSORS = (
    "x_train",
    "dual_coef",
    "omega",
    "scale",
    "ridge",
    "input_shift",
    "input_scale",
    "target_mean",
    "target_scale",
)
_LABEL_TYPES = {"U": np.str_, "i": np.int64, "u": np.uint64, "f": np.float64, "b": np.bool_}
_TILE_BYTES = 256 * 2**20


class ModelError(ValueError):
    """A saved model cannot be used; one line says why and what to do."""


def resolve_scaling(mlp: MLP | KernelFamily, scaling: ScalingName, unit_norm: bool) -> ScalingName:
    """The scaling that goes with a family of kernels: "auto" leaves row numbers alone, and is "images" for images.

    Raises:
      ValueError: the family's inputs are row numbers, and `scaling` or `unit_norm` would change them.
    """
    if not isinstance(mlp, KernelFamily):
        return scaling
    if mlp.n_rows is None:
        return "images" if scaling == "auto" and len(mlp.input_shape or ()) > 1 else scaling
    if scaling not in ("auto", "none") or unit_norm:
        raise ValueError(
            f"the inputs of {mlp!r} are row numbers, which must not be scaled; give scaling='none' and "
            f"unit_norm=False, not {scaling!r} and {unit_norm}"
        )
    return "none"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """p = softmax(scores @ matrix + offset); shapes (C, C) and (C,). One temperature is a multiple of the identity."""

    matrix: np.ndarray
    offset: np.ndarray

    def to_lists(self) -> dict[str, list[Any]]:
        """For JSON, which keeps every bit of a float."""
        return {"matrix": self.matrix.tolist(), "offset": self.offset.tolist()}


@dataclasses.dataclass(frozen=True)
class NFTKModel:
    """An infinite-width NFT-K: one kernel a class, and the ridge regression on it (paper eqs. 14-15).

    Attributes:
      mlp: the architecture, or a family of kernels.
      omega: weights of the kernels scaled to unit mean diagonal, shape (C, L), float64.
      scale: mean diagonal of Theta^(l) on the training rows, shape (L,), float64.
      ridge: absolute ridge of every class, in units of the scaled kernels' mean diagonal, shape (C,), float64.
      x_train: training inputs as given, shape (n, p).
      dual_coef: shape (n, C), float32 or float64: the dtype that predictions are computed in.
      target_mean, target_scale: f -> f * scale + mean gives the scores, shapes (C,).
      input_scaling: what is done to inputs before the kernel.
      classes: labels in the order of the classes, or None for regression.
      calibration: from scores to probabilities, fitted on held-out rows; None for regression.
    """

    mlp: MLP | KernelFamily
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

    @property
    def kernel_omega(self) -> np.ndarray:
        """omega / scale, the weights of the unscaled kernels, shape (C, L): what `combined_ntk` takes."""
        return self.omega / self.scale

    def scaled(self, x: np.ndarray) -> np.ndarray:
        """Inputs as the kernel sees them, shape (m, p), dtype of `dual_coef`.

        Raises:
          ValueError: `x` is not a matrix with the training inputs' number of columns, or is not finite.
        """
        features = self.x_train.shape[1]
        if x.ndim != 2 or x.shape[1] != features:
            raise ValueError(f"inputs must have shape (n, {features}), as in training; got {x.shape}")
        z = self.input_scaling.apply(x, self.dual_coef.dtype)
        if not np.isfinite(z).all():
            raise ValueError("inputs must be finite; got NaN or infinity")
        return z

    def decision_function(
        self, x: np.ndarray, *, report: Callable[[int, int], None] = lambda done, total: None
    ) -> np.ndarray:
        """Scores f_c(x) (paper eq. 14): one-hot regression for classes, the targets themselves for regression.

        Beside inputs and scores, memory for one tile of rows is taken.

        Args:
          x: inputs, shape (m, p), as they were given in training (unscaled).
          report: called with the rows done and their total.

        Returns:
          Scores, shape (m, C), float64.

        Raises:
          ValueError: the inputs' shape is wrong or they are not finite.
        """
        self.scaled(x[:0])  # its shape
        if x.size and not np.isfinite([x.min(), x.max()]).all():
            raise ValueError("inputs must be finite; got NaN or infinity")
        with enable_x64(self.dual_coef.dtype == np.float64):
            size = padded_size(len(self.x_train))  # rows of zeros with dual coefficients of zero
            z_train = jnp.asarray(pad_rows(self.scaled(self.x_train), size))
            scores = predict_scores(
                lambda rows, omega: combined_ntk(self.mlp, omega, self.scaled(rows), z_train),
                x,
                self.kernel_omega,
                pad_rows(self.dual_coef, size),
                report=report,
            )
        scores *= self.target_scale
        scores += self.target_mean
        return scores

    def predict(self, x: np.ndarray) -> np.ndarray:
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

    def save(self, directory: str | pathlib.Path) -> None:
        """Write model.safetensors and model.json into a directory, which is made if it is not there.

        The functions of a family are not written: `load_model` takes them.

        Raises:
          OSError: the directory cannot be written.
        """
        tensors = {name: np.ascontiguousarray(self._tensor(name)) for name in _TENSORS}
        classes = None if self.classes is None else _describe_labels(self.classes)
        header = {
            "schema": SCHEMA,
            "architecture": _describe_kernels(self.mlp),
            "classes": classes,
            "calibration": None if self.calibration is None else self.calibration.to_lists(),
            "unit_norm": self.input_scaling.unit_norm,
        }
        text, directory = json.dumps(header, indent=1) + "\n", pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.safetensors").write_bytes(safetensors.numpy.save(tensors))
        (directory / "model.json").write_text(text)

    def _tensor(self, name: str) -> np.ndarray:
        owner = self.input_scaling if name.startswith("input_") else self
        return getattr(owner, name.removeprefix("input_"))


def predict_scores(
    kernel: Callable[[np.ndarray, np.ndarray], Any],
    x: np.ndarray,
    omega: np.ndarray,
    dual_coef: np.ndarray,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """K_c(x, X) alpha_c for every class in tiles of rows; classes with one omega share their kernel.

    Args:
      kernel: maps rows (b, p) and weights (G, L) to kernels (G, b, n).
      x: inputs, shape (m, p).
      omega: weights handed to `kernel`, shape (C, L).
      dual_coef: shape (n, C).
      report: called with the rows done and their total.

    Returns:
      Scores, shape (m, C), float64.
    """
    distinct, group = np.unique(omega, axis=0, return_inverse=True)
    members = [np.flatnonzero(group.ravel() == number) for number in range(len(distinct))]
    columns = [jnp.asarray(dual_coef[:, classes]) for classes in members]
    rows = max(1, min(padded_size(len(x)), _TILE_BYTES // (dual_coef.dtype.itemsize * len(dual_coef) * len(distinct))))
    scores = np.empty((len(x), dual_coef.shape[1]))
    for start in range(0, len(x), rows):
        tile = x[start : start + rows]
        short = rows - len(tile)  # the last tile is padded, so that one shape is compiled
        padded = np.concatenate([tile, np.repeat(tile[-1:], short, axis=0)]) if short else tile
        for k, classes, dual in zip(kernel(padded, distinct), members, columns, strict=True):
            scores[start : start + len(tile), classes] = np.asarray(k @ dual, np.float64)[: len(tile)]
        report(start + len(tile), len(x))
    return scores


def load_model(directory: str | pathlib.Path, *, family: KernelFamily | None = None) -> NFTKModel:
    """Read a model that `NFTKModel.save` or `python -m nftk_jax.fit` wrote.

    Args:
      directory: holds model.safetensors and model.json.
      family: the kernels of a model that was fitted with a family, whose functions no file holds.

    Returns:
      The model; it predicts the same bits as the one that was saved.

    Raises:
      ModelError: files are missing, damaged, of another schema, or do not fit together or with `family`.
    """
    directory = pathlib.Path(directory)
    try:
        header = json.loads((directory / "model.json").read_text())
        tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    except FileNotFoundError as error:
        raise ModelError(
            f"no model in {directory}: {error.filename or 'model.safetensors'} is missing; give the "
            "output directory of nftk_jax.fit"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise ModelError(f"the model in {directory} is damaged ({error}); fit it again") from None
    if not isinstance(header, dict) or header.get("schema") not in READABLE:
        found = header.get("schema") if isinstance(header, dict) else type(header).__name__
        raise ModelError(
            f"the model in {directory} has schema {found!r}, expected one of {', '.join(READABLE)}; fit "
            "it again, or read it with the version that wrote it"
        )
    try:
        return _assemble(header, tensors, family)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the model in {directory} does not fit together ({error}); fit it again") from None


def _describe_labels(classes: np.ndarray) -> dict[str, Any]:
    plain = np.array(classes.tolist())  # text labels may come as an array of objects
    return {"kind": plain.dtype.kind, "labels": plain.tolist()}


def _describe_kernels(mlp: MLP | KernelFamily) -> dict[str, Any]:
    return {"n_kernels": mlp.n_kernels} if isinstance(mlp, KernelFamily) else dataclasses.asdict(mlp)


def _restore_kernels(described: dict[str, Any], family: KernelFamily | None) -> MLP | KernelFamily:
    needed = described.get("n_kernels")
    if needed != (family and family.n_kernels):
        expected = "an MLP, which needs no family" if needed is None else f"a family of {needed} kernels"
        raise ModelError(
            f"the model was fitted with {expected}; got family={family!r}: give load_model the family "
            "of the fit, or none for an MLP"
        )
    return MLP(**described) if family is None else family


def _assemble(header: dict[str, Any], tensors: dict[str, np.ndarray], family: KernelFamily | None) -> NFTKModel:
    mlp = _restore_kernels(header["architecture"], family)
    n, features = tensors["x_train"].shape
    n_classes = tensors["dual_coef"].shape[1]
    expected = {
        "dual_coef": (n, n_classes),
        "omega": (n_classes, mlp.n_kernels),
        "scale": (mlp.n_kernels,),
        "ridge": (n_classes,),
        "input_shift": (features,),
        "input_scale": (features,),
        "target_mean": (n_classes,),
        "target_scale": (n_classes,),
    }
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} has shape {tensors[name].shape}, expected {shape}")
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} holds NaN or infinity")
    classes = header["classes"]
    if classes is not None:
        classes = np.array(classes["labels"], dtype=_LABEL_TYPES[classes["kind"]])
        if classes.shape != (n_classes,):
            raise ValueError(f"{len(classes)} labels for {n_classes} classes")
    calibration = None
    if header.get("calibration") is not None:
        calibration = Calibration(**{name: np.array(part, float) for name, part in header["calibration"].items()})
        if calibration.matrix.shape != (n_classes, n_classes) or calibration.offset.shape != (n_classes,):
            raise ValueError(f"the calibration has shape {calibration.matrix.shape} for {n_classes} classes")
        if not (np.isfinite(calibration.matrix).all() and np.isfinite(calibration.offset).all()):
            raise ValueError("the calibration holds NaN or infinity")
    fields = {name: tensors[name] for name in _TENSORS if not name.startswith("input_")}
    scaling = InputScaling(tensors["input_shift"], tensors["input_scale"], header.get("unit_norm", False) is True)
    return NFTKModel(mlp=mlp, input_scaling=scaling, classes=classes, calibration=calibration, **fields)
