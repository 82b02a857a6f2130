# %% [markdown]
# # Groups that cannot be told apart
#
# Two groups of columns may hold the same information: one quantity measured by two instruments, or two embeddings of
# one text. Then no data can tell which of them the target depends on. In this example two groups are noisy copies of
# the same eight numbers, and a third group is independent of them. The target depends on the numbers and on the third
# group.

# %%
import matplotlib.pyplot as plt
import numpy as np

from nftk_jax import AlignmentDisplay, ContributionDisplay, NFTKRegressor
from nftk_jax.mkl.similarity import find_clusters

GROUPS = ["copy A"] * 8 + ["copy B"] * 8 + ["other"] * 8
rng = np.random.default_rng(0)
first, second = rng.normal(size=(2, 8)) / np.sqrt(8)


def draw(n):
    source, other = rng.normal(size=(2, n, 8))
    copies = [source + 0.05 * rng.normal(size=source.shape) for _ in range(2)]
    y = np.tanh(source @ first) + np.tanh(other @ second) + 0.3 * rng.normal(size=n)
    return np.column_stack([*copies, other]), y


x_test, y_test = draw(1000)

# %% [markdown]
# Six training sets are drawn from the same distribution, so all differences between their fits are due to chance.

# %%
models = [NFTKRegressor(depths=[1], groups=GROUPS, b_std=0.0).fit(*draw(150)) for _ in range(6)]
shares = np.array([model.contributions(x_test, y_test)[0] for model in models])
names = [label.group for label in models[0].kernel_labels_]
for name, values in zip(names, shares.T, strict=True):
    print(f"{name:15} between {values.min():.2f} and {values.max():.2f} of R^2")

# %% [markdown]
# The kernels themselves reveal the problem. The centred alignment of two equal kernels is 1, and kernels with an
# alignment of 0.99 or more form a cluster. Read the share of a cluster, and not the shares of its members.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(1, 1.4))
display = AlignmentDisplay.from_estimator(models[0], x_test, ax=left)
left.set_title("Alignment of the kernels")
clusters = find_clusters(display.alignment)
together = {" + ".join(names[k] for k in one): shares[:, one].sum(axis=1) for one in clusters if len(one) > 1}
for name, values in together.items():
    print(f"{name:15} between {values.min():.2f} and {values.max():.2f} of R^2")
sets = [f"set {number}" for number in range(1, 7)]
ContributionDisplay(shares, names=names, output_names=sets, noun="", together=together).plot(ax=right)
right.set_title("Shares of R² on unseen rows")
plt.show()
