# %% [markdown]
# # Convolutions at three depths
#
# Infinitely wide convolutional networks of one, two and three layers have kernels, just like MLPs of different depths.
# Which depth does each digit use, and is it worth learning? The data are 600 of scikit-learn's 8 x 8 digits: 150 for
# training and 450 for testing.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit

from nftk_jax import KernelFamily, NFTKClassifier, combined_kernel
from nftk_jax.kernels.neural_tangents import stax

DEPTHS = (1, 2, 3)
x, y = load_digits(return_X_y=True)
x, y = x[:600] / 16, y[:600]


# %% [markdown]
# The kernels come from neural_tangents. There a network is a tuple of three functions, and the third one is its kernel.


# %%
def convolution(depth):
    block = [stax.Conv(1, (3, 3), padding="SAME", W_std=2**0.5, b_std=0.1), stax.Relu()]
    return stax.serial(*block * depth, stax.Flatten(), stax.Dense(1))[2]


family = KernelFamily.from_neural_tangents([convolution(depth) for depth in DEPTHS], input_shape=(8, 8, 1))

# %% [markdown]
# The three splits share their kernel entries, so each Gram matrix is evaluated only once. The inputs of the models are
# then row numbers.

# %%
grams = combined_kernel(family, np.eye(len(DEPTHS)), x)
known = KernelFamily.precomputed(grams)
rows = np.arange(len(x))[:, None]
print("Gram matrices:", grams.shape, grams.dtype)

# %% [markdown]
# In every split, three models learn from the same 150 digits: one with learned weights, one with equal weights, and an
# MLP whose depths are weighted.

# %%
MODELS = {
    "convolutions,\nlearned Omega": (NFTKClassifier(kernel=known), rows),
    "convolutions,\nequal weights": (NFTKClassifier(kernel=known, weights="uniform"), rows),
    "MLP,\nlearned Omega": (NFTKClassifier(depth=len(DEPTHS), scaling="none"), x),
}
splits = list(StratifiedShuffleSplit(3, train_size=150, random_state=0).split(x, y))
errors = np.zeros((len(MODELS), len(splits)))
omegas = []
for column, (train, test) in enumerate(splits):
    for row, (model, inputs) in enumerate(MODELS.values()):
        model.fit(inputs[train], y[train])
        errors[row, column] = 1 - model.score(inputs[test], y[test])
        if row == 0:
            omegas.append(model.omega_)
for name, share in zip(MODELS, errors, strict=True):
    print(f"{' '.join(name.split()):30}  {100 * share.mean():.1f} % errors ({100 * np.ptp(share):.1f} between splits)")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", width_ratios=(1, 1.4))
image = left.imshow(np.mean(omegas, axis=0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
left.set(title="Omega, mean of three splits", xlabel="depth", ylabel="digit", yticks=range(10))
left.set_xticks(range(len(DEPTHS)), DEPTHS)
figure.colorbar(image, ax=left)
right.plot(range(len(MODELS)), 100 * errors, "o", color="#0072b2", alpha=0.5)
right.plot(range(len(MODELS)), 100 * errors.mean(axis=1), "_", color="black", markersize=30)
right.set_xticks(range(len(MODELS)), list(MODELS))
right.set(title="450 unseen digits", ylabel="errors (%)", ylim=(0, None), xlim=(-0.5, len(MODELS) - 0.5))
plt.show()
