"""The files that hold a fitted model: safetensors and JSON, never pickle."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.saved import from_dict
from nftk_jax.model.calibration import Calibration
from nftk_jax.preprocessing.scaling import InputScaling
from nftk_jax.preprocessing.table import TablePreparation
from nftk_jax.preprocessing.targets import describe_labels, restore_labels
from nftk_jax.settings import InputsName, check_choice

#: Version 2 added `unit_norm`; version 3 any kernel, sample weights and the promise about inputs. Keys that came
#: later, `table` among them, may be absent.
SCHEMA = "nftk_jax.model/3"
READABLE = ("nftk_jax.model/1", "nftk_jax.model/2", SCHEMA)

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


class ModelError(ValueError):
    """A saved model cannot be used; one line says why and what to do."""


def write_fields(fields: Mapping[str, Any], directory: str | pathlib.Path) -> None:
    """Write the fields of an `NFTKModel` by name, see `NFTKModel.save`."""
    scaling, weight, classes, calibration = (
        fields[name] for name in ("input_scaling", "weight", "classes", "calibration")
    )
    arrays = {**fields, "input_shift": scaling.shift, "input_scale": scaling.scale}
    tensors = {name: np.ascontiguousarray(arrays[name]) for name in _TENSORS}
    if weight is not None:
        tensors["weight"] = np.asarray(weight, np.float64)
    if fields["present"] is not None:
        tensors["present"] = np.ascontiguousarray(fields["present"], bool)
    if fields["variance_scale"] is not None:
        tensors["variance_scale"] = np.asarray(fields["variance_scale"], np.float64)
    header = {
        "schema": SCHEMA,
        "kernel": fields["kernel"].to_dict(),
        "kernel_labels": [str(label) for label in fields["kernel"].labels],
        "classes": None if classes is None else describe_labels(classes),
        "calibration": None if calibration is None else calibration.to_lists(),
        "unit_norm": scaling.unit_norm,
        "inputs": fields["inputs"],
        "landmarks": fields["landmarks"],
        "table": None if fields["table"] is None else fields["table"].to_dict(),
    }
    text, directory = json.dumps(header, indent=1) + "\n", pathlib.Path(os.path.expanduser(directory))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.safetensors").write_bytes(safetensors.numpy.save(tensors))
    (directory / "model.json").write_text(text, encoding="utf-8")


def read_fields(directory: str | pathlib.Path, kernel: Kernel | None) -> dict[str, Any]:
    """Read the fields of an `NFTKModel` by name, see `load_model`."""
    directory = pathlib.Path(os.path.expanduser(directory))
    if directory.is_file():
        raise ModelError(f"{directory} is a file; give the directory that holds it, {directory.parent}")
    try:
        header = json.loads((directory / "model.json").read_text(encoding="utf-8"))
        tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    except FileNotFoundError as error:
        missing = pathlib.Path(error.filename or "model.safetensors").name
        raise ModelError(
            f"no model in {directory}: {missing} is missing; give the output directory of nftk_jax.fit"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ModelError(f"the model in {directory} is damaged ({cause}); fit it again") from None
    if not isinstance(header, dict) or header.get("schema") not in READABLE:
        found = header.get("schema") if isinstance(header, dict) else type(header).__name__
        raise ModelError(
            f"the model in {directory} has schema {found!r}, expected one of {', '.join(READABLE)}; fit it again, or "
            "read it with the version that wrote it"
        )
    try:
        return _assemble(header, tensors, kernel)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the model in {directory} does not fit together ({error}); fit it again") from None


def _restore_kernel(header: dict[str, Any], given: Kernel | None) -> Kernel:
    """The kernel that the header describes, or the one that was given for a kernel that no file can hold."""
    described = header.get("kernel")
    if "architecture" in header:  # schemas 1 and 2: an MLP, or a number of functions
        old = header["architecture"]
        described = None if "n_kernels" in old else {"type": "MLP", **old}
        labels = [f"kernel {number}" for number in range(1, old.get("n_kernels", 0) + 1)]
    else:
        labels = header["kernel_labels"]
    if described is not None:
        if given is not None and given.to_dict() == described:
            return given  # it may hold Gram matrices
        if given is not None:
            raise ModelError(f"the model holds its kernel {described}; got kernel={given!r}: leave it out")
        return from_dict(described)
    if given is None or [str(label) for label in given.labels] != labels:
        raise ModelError(
            f"the model was fitted with {len(labels)} kernels that no file holds ({', '.join(labels[:5])}"
            f"{', ...' if len(labels) > 5 else ''}); got kernel={given!r}: give load_model the kernel of the fit"
        )
    return given


def _assemble(header: dict[str, Any], tensors: dict[str, np.ndarray], given: Kernel | None) -> dict[str, Any]:
    kernel = _restore_kernel(header, given)
    n, features = tensors["x_train"].shape
    n_classes = tensors["dual_coef"].shape[1]
    expected = {
        "dual_coef": (n, n_classes),
        "omega": (n_classes, kernel.n_kernels),
        "scale": (kernel.n_kernels,),
        "ridge": (n_classes,),
        "input_shift": (features,),
        "input_scale": (features,),
        "target_mean": (n_classes,),
        "target_scale": (n_classes,),
    }
    optional = {"weight": (n,), "present": (n, n_classes), "variance_scale": (n_classes,)}
    expected |= {name: shape for name, shape in optional.items() if name in tensors}
    present = tensors.get("present")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} has shape {tensors[name].shape}, expected {shape}")
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} holds NaN or infinity")
    fields = {name: tensors[name] for name in _TENSORS if not name.startswith("input_")}
    scaling = InputScaling(tensors["input_shift"], tensors["input_scale"], header.get("unit_norm", False) is True)
    inputs = header.get("inputs", "auto")
    check_choice("inputs", inputs, InputsName)
    return fields | {
        "kernel": kernel,
        "input_scaling": scaling,
        "classes": restore_labels(header["classes"], n_classes),
        "calibration": _restore_calibration(header.get("calibration"), n_classes),
        "weight": tensors.get("weight"),
        "variance_scale": tensors.get("variance_scale"),
        "inputs": inputs,
        "landmarks": header.get("landmarks", False) is True,
        "present": None if present is None else present.astype(bool),
        "table": _restore_table(header.get("table"), features),
    }


def _restore_table(described: dict[str, Any] | None, features: int) -> TablePreparation | None:
    if described is None:
        return None
    table = TablePreparation.from_dict(described)
    if len(table.features) != features:
        raise ValueError(f"the table makes {len(table.features)} features, the kernel takes {features}")
    return table


def _restore_calibration(described: dict[str, Any] | None, n_classes: int) -> Calibration | None:
    if described is None:
        return None
    calibration = Calibration(**{name: np.array(part, float) for name, part in described.items()})
    if calibration.matrix.shape != (n_classes, n_classes) or calibration.offset.shape != (n_classes,):
        raise ValueError(f"the calibration has shape {calibration.matrix.shape} for {n_classes} classes")
    if not (np.isfinite(calibration.matrix).all() and np.isfinite(calibration.offset).all()):
        raise ValueError("the calibration holds NaN or infinity")
    return calibration
