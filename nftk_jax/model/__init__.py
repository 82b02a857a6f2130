"""The fitted model: prediction, its parts by kernel, standard deviation, and the two files that hold it."""

from nftk_jax.model.calibration import Calibration
from nftk_jax.model.files import ModelError
from nftk_jax.model.fitted import NFTKModel, load_model

__all__ = ["Calibration", "ModelError", "NFTKModel", "load_model"]
