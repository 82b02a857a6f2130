"""NFTKClassifier and NFTKRegressor: scikit-learn estimators around `learn`."""

from nftk_jax.estimator.classifier import NFTKClassifier
from nftk_jax.estimator.regressor import NFTKRegressor

__all__ = ["NFTKClassifier", "NFTKRegressor"]
