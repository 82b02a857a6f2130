"""Kernel regression on closed-form neural tangent kernels that learns, per class, how much each kernel contributes."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nftk_jax.assessment.inference import infer
    from nftk_jax.estimator import NFTKClassifier, NFTKRegressor
    from nftk_jax.kernels.combined import combined_kernel, combined_ntk
    from nftk_jax.kernels.distance import RBF, Laplace, Linear, Matern
    from nftk_jax.kernels.family import KernelFamily
    from nftk_jax.kernels.groups import image_groups
    from nftk_jax.kernels.kernel import Kernel, KernelLabel
    from nftk_jax.kernels.mlp import MLP
    from nftk_jax.kernels.neural_tangents import depth_ntks
    from nftk_jax.model import NFTKModel, load_model
    from nftk_jax.preprocessing.stack import KernelStack
    from nftk_jax.reports.assessed import Assessment, assess
    from nftk_jax.reports.displays import AlignmentDisplay, ContributionDisplay, OmegaDisplay
    from nftk_jax.reports.intervals import InferenceDisplay

    __version__: str

__all__ = [
    "MLP",
    "RBF",
    "AlignmentDisplay",
    "Assessment",
    "ContributionDisplay",
    "InferenceDisplay",
    "Kernel",
    "KernelFamily",
    "KernelLabel",
    "KernelStack",
    "Laplace",
    "Linear",
    "Matern",
    "NFTKClassifier",
    "NFTKModel",
    "NFTKRegressor",
    "OmegaDisplay",
    "assess",
    "combined_kernel",
    "combined_ntk",
    "depth_ntks",
    "image_groups",
    "infer",
    "load_model",
]

# Resolved at first use: `python -m nftk_jax.fit --help` should not wait for JAX.
_HOMES = {
    "AlignmentDisplay": "reports.displays",
    "Assessment": "reports.assessed",
    "ContributionDisplay": "reports.displays",
    "InferenceDisplay": "reports.intervals",
    "Kernel": "kernels.kernel",
    "KernelFamily": "kernels.family",
    "KernelLabel": "kernels.kernel",
    "KernelStack": "preprocessing.stack",
    "Laplace": "kernels.distance",
    "Linear": "kernels.distance",
    "MLP": "kernels.mlp",
    "Matern": "kernels.distance",
    "NFTKClassifier": "estimator",
    "NFTKModel": "model",
    "NFTKRegressor": "estimator",
    "OmegaDisplay": "reports.displays",
    "RBF": "kernels.distance",
    "assess": "reports.assessed",
    "combined_kernel": "kernels.combined",
    "combined_ntk": "kernels.combined",
    "depth_ntks": "kernels.neural_tangents",
    "image_groups": "kernels.groups",
    "infer": "assessment.inference",
    "load_model": "model",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from nftk_jax.reports.environment import version

        return version()
    if name not in _HOMES:
        raise AttributeError(f"module 'nftk_jax' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"nftk_jax.{_HOMES[name]}"), name)
    except Exception as error:
        from nftk_jax.commands import shadows

        if (line := shadows.explain(error)) is not None:
            raise ImportError(line) from error
        raise


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])


if getattr(sys, "argv", [""])[0] == "-m":  # `python -m nftk_jax.fit`, which looks in the current directory first
    from nftk_jax.commands import shadows

    shadows.watch_imports("nftk_jax")
