# %% [markdown]
# # Regression that knows how unsure it is
#
# The data are scikit-learn's diabetes data: ten measurements of 442 patients, and how far the disease had progressed a
# year later. The learned kernel is also the covariance of a Gaussian process, so every prediction has a standard
# deviation.

# %%
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import train_test_split

from nftk_jax import NFTKRegressor

x, x_test, y, y_test = train_test_split(*load_diabetes(return_X_y=True), test_size=0.5, random_state=0)

# %%
model = NFTKRegressor(depth=3).fit(x, y)
print("weights of the depths:", model.omega_[0].round(2), " ridge:", model.ridge_.round(3))
print(
    f"R^2: {model.score(x_test, y_test):.3f}; linear ridge regression: {RidgeCV().fit(x, y).score(x_test, y_test):.3f}"
)

# %% [markdown]
# `return_std` returns the standard deviation of the function. A new patient's target also has noise, whose deviation is
# `noise_std`. Both are scaled so that the training targets are most likely. `predict_interval` assumes less. Its
# intervals (jackknife+) come from the models that leave out one patient at a time. They are exact and need no refit.

# %%
SHARES = np.linspace(0.05, 0.95, 19)
mean, function_std = model.predict(x_test, return_std=True)
std = np.hypot(function_std, model.model_.noise_std)
quantiles = scipy.stats.norm.ppf((1 + SHARES) / 2)
by_process = np.mean(np.abs(y_test - mean)[:, None] <= std[:, None] * quantiles, axis=0)
intervals = np.array([model.predict_interval(x_test, share) for share in SHARES])
by_jackknife = np.mean((intervals[..., 0] <= y_test) & (y_test <= intervals[..., 1]), axis=1)
print(
    f"intervals for 95 % of the targets hold {100 * by_process[-1]:.0f} % (Gaussian process), "
    f"{100 * by_jackknife[-1]:.0f} % (jackknife+)"
)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(1.5, 1))
order = np.argsort(mean)
place = np.arange(len(order))
left.plot(place, y_test[order], ".", color="#6b6b6b", label="target")
left.plot(place, mean[order], color="#0072b2", label="prediction")
low, high = intervals[-1, order].T
left.fill_between(place, low, high, alpha=0.2, color="#0072b2", label="95 % interval, jackknife+")
left.set(title="Unseen patients", xlabel="patients, in the order of their predictions", ylabel="progression")
left.legend(frameon=False)
right.plot([0, 1], [0, 1], color="#d9d9d9")
right.plot(SHARES, by_process, "o-", color="#d55e00", markersize=4, label="Gaussian process")
right.plot(SHARES, by_jackknife, "o-", color="#0072b2", markersize=4, label="jackknife+")
right.legend(frameon=False)
right.set(title="Are they right?", xlabel="share that should be covered", ylabel="share covered")
plt.show()
