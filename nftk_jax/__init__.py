"""Kernel regression on closed-form neural tangent kernels, with the weight of every depth learned for every class."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nftk_jax.estimator import NFTKClassifier, NFTKRegressor
    from nftk_jax.kernels.family import KernelFamily
    from nftk_jax.kernels.gram import combined_ntk
    from nftk_jax.kernels.mlp import MLP
    from nftk_jax.kernels.neural_tangents import depth_ntks
    from nftk_jax.model import NFTKModel, load_model

__all__ = [
    "MLP",
    "KernelFamily",
    "NFTKClassifier",
    "NFTKModel",
    "NFTKRegressor",
    "combined_ntk",
    "depth_ntks",
    "load_model",
]

# Resolved at first use: `python -m nftk_jax.fit --help` should not wait for JAX.
_HOMES = {
    "KernelFamily": "kernels.family",
    "MLP": "kernels.architecture",
    "NFTKClassifier": "estimator",
    "NFTKModel": "model",
    "NFTKRegressor": "estimator",
    "combined_ntk": "kernels.gram",
    "depth_ntks": "kernels.neural_tangents",
    "load_model": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nftk_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nftk_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
