# %% [markdown]
# # Which feature space explains which target?
#
# Recordings of a brain have many targets (voxels), and every stimulus is described by several feature spaces. Which
# space explains which voxel? In this example 100 voxels are simulated, so the answer is known. Each voxel takes most of
# its signal from one space and a third as much from another one. The rest is noise.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import ShuffleSplit

from nftk_jax import ContributionDisplay, NFTKRegressor

SPACES = {"sound": 4, "motion": 8, "objects": 16, "words": 32}  # columns
N_TRAIN, N_TEST, N_VOXELS = 200, 500, 100

rng = np.random.default_rng(0)
ends = np.cumsum(list(SPACES.values()))
columns = {name: slice(end - width, end) for (name, width), end in zip(SPACES.items(), ends, strict=True)}
x = rng.normal(size=(N_TRAIN + N_TEST, ends[-1]))

planted = np.zeros((N_VOXELS, len(SPACES)))
y = np.zeros((len(x), N_VOXELS))
for voxel in range(N_VOXELS):
    main, second = rng.choice(len(SPACES), size=2, replace=False)
    planted[voxel, main] = rng.uniform(0, 0.7)
    planted[voxel, second] = planted[voxel, main] / 3
    for space, width, share in zip(columns.values(), SPACES.values(), planted[voxel], strict=True):
        signal = np.tanh(x[:, space] @ rng.normal(size=width) / np.sqrt(width))
        y[:, voxel] += np.sqrt(share) * signal / signal.std()
    y[:, voxel] += np.sqrt(1 - planted[voxel].sum()) * rng.normal(size=len(x))
x_train, x_test, y_train, y_test = x[:N_TRAIN], x[N_TRAIN:], y[:N_TRAIN], y[N_TRAIN:]

# %% [markdown]
# Every space is a group of columns and has one kernel, the NTK of depth 2. Kernels without biases (`b_std=0`) are the
# fastest. All voxels are fitted at once, each with its own weights and ridge. The search uses one split instead of the
# default five folds, to keep the fit short.

# %%
one_split = ShuffleSplit(1, test_size=1 / 3, random_state=0)
model = NFTKRegressor(depths=[2], groups=columns, b_std=0.0, cv=one_split).fit(x_train, y_train)
shares = model.contributions(x_test, y_test)  # of R^2 on unseen rows, one column for every space
r2 = shares.sum(axis=1)
right = shares.argmax(axis=1) == planted.argmax(axis=1)
for low, high in ((-1, 0.1), (0.1, 0.3), (0.3, 1)):
    among = (r2 >= low) & (r2 < high)
    print(f"R^2 from {low:4} to {high:3}: planted space first in {right[among].sum():2} of {among.sum():2} voxels")
print(f"all voxels: {right.sum()} of {N_VOXELS}")

# %% [markdown]
# The shares of a voxel add up to its R^2 on unseen rows.

# %%
figure, (left, axis) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", width_ratios=(1.5, 1))
voxels = [str(voxel) for voxel in range(N_VOXELS)]
ContributionDisplay(shares, names=list(SPACES), output_names=voxels, noun="voxel").plot(ax=left)
left.set_title("Found")
axis.axline((0, 0), slope=1, color="#d9d9d9")
for name, truth, found in zip(SPACES, planted.T, shares.T, strict=True):
    axis.plot(truth, found, ".", label=name)
axis.set(title="Found and planted", xlabel="planted share of the variance", ylabel="share of R²")
axis.legend(frameon=False)
plt.show()
