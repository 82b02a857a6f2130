# %% [markdown]
# # Regression that knows how unsure it is
#
# Scikit-learn's diabetes data: ten measurements of 442 patients, and how far the disease had come a year later. The
# learned kernel is also the covariance of a Gaussian process, so every prediction has a standard deviation.

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
# `return_std` gives the deviation of the function. A new patient's target also has the noise that the ridge stands for.


# %%
def predict(model, x):
    mean, function_std = model.predict(x, return_std=True)
    return mean, np.hypot(function_std, np.sqrt(model.ridge_[0]) * model.model_.target_scale[0])


mean, std = predict(model, x_test)

# %% [markdown]
# The ridge was chosen for the smallest error. That fixes the noise as a share of the signal, not the size of both:
# multiplying the covariance and the noise by one number changes no prediction. A third of the training rows, held out
# from a fit with the same ridge, tells what the number is.

# %%
kept, held = train_test_split(np.arange(len(x)), test_size=1 / 3, random_state=0)
guess, deviation = predict(NFTKRegressor(depth=3, ridge=model.ridge_[0]).fit(x[kept], y[kept]), x[held])
factor = np.sqrt(np.mean(((y[held] - guess) / deviation) ** 2))
print(f"deviations are multiplied by {factor:.2f}")


def coverage(std):
    quantiles = scipy.stats.norm.ppf((1 + SHARES) / 2)
    return np.mean(np.abs(y_test - mean)[:, None] <= std[:, None] * quantiles, axis=0)


SHARES = np.linspace(0.05, 0.95, 19)
before, covered = coverage(std), coverage(factor * std)
print(f"intervals for 95 % of the targets hold {100 * before[-1]:.0f} % as they are, {100 * covered[-1]:.0f} % scaled")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(1.5, 1))
order = np.argsort(mean)
place = np.arange(len(order))
left.plot(place, y_test[order], ".", color="#6b6b6b", label="target")
left.plot(place, mean[order], color="#0072b2", label="prediction")
band = (mean + 2 * factor * side * std for side in (-1, 1))
left.fill_between(place, *(edge[order] for edge in band), alpha=0.2, color="#0072b2", label="+- 2 deviations, scaled")
left.set(title="Unseen patients", xlabel="patients, in the order of their predictions", ylabel="progression")
left.legend(frameon=False)
right.plot([0, 1], [0, 1], color="#d9d9d9")
right.plot(SHARES, before, "o-", color="#d55e00", markersize=4, label="as they are")
right.plot(SHARES, covered, "o-", color="#0072b2", markersize=4, label="scaled")
right.legend(frameon=False)
right.set(title="Are the deviations right?", xlabel="share that should be covered", ylabel="share covered")
plt.show()
