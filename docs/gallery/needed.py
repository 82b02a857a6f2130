# %% [markdown]
# # Is this weight needed?
#
# A learned weight above zero does not show that its kernel is needed, and a weight of zero does not show that it is
# not. In this example four groups of sensors explain a target. The target depends on the wrist and on the heart. The
# sensors at the ankle measure nearly the same as those at the wrist. Sweat has nothing to do with the target.

# %%
import matplotlib.pyplot as plt
import numpy as np

from nftk_jax import InferenceDisplay, NFTKRegressor, infer

GROUPS = ["wrist"] * 4 + ["ankle"] * 4 + ["heart"] * 4 + ["sweat"] * 4
direction = np.array([1, -1, 1, 1])


def draw(n, seed):
    rng = np.random.default_rng(seed)
    motion, heart, sweat = rng.normal(size=(3, n, 4))
    wrist, ankle = (motion + 0.1 * rng.normal(size=(n, 4)) for _ in range(2))
    y = np.tanh(wrist @ direction) + np.tanh(heart @ direction) + 0.5 * rng.normal(size=n)
    return np.column_stack([wrist, ankle, heart, sweat]), y


def fit(n, seed):
    x, y = draw(n, seed)
    return NFTKRegressor(depths=[2], groups=GROUPS, b_std=0.0, uniform_level=1).fit(x, y), x, y


# %% [markdown]
# First look only at the weights that the search learns on six training sets of 60 rows. (`uniform_level=1` keeps them
# even if no test rejects equal weights.) Wrist and ankle swap places, and sweat gets some weight now and then.

# %%
names = list(dict.fromkeys(GROUPS))
print("        " + "".join(f"{name:>8}" for name in names))
for seed in range(6):
    print(f"set {seed + 1}:  " + "".join(f"{weight:8.2f}" for weight in fit(60, seed)[0].omega_[0]))

# %% [markdown]
# `infer` tests which kernels are needed. On 60 rows it finds that wrist and ankle cannot be told apart, and tests them
# together: at least one of them is needed, and so few rows cannot tell which.

# %%
small = infer(*fit(60, 0))
print(small)

# %% [markdown]
# On 400 rows they can be told apart. The wrist is needed, and the ankle is not shown to be.

# %%
large = infer(*fit(400, 0))
print(large)

# %%
figure, axes = plt.subplots(2, 1, figsize=(7, 4.6), layout="constrained", height_ratios=(3, 4))
for ax, table in zip(axes, (small, large), strict=True):
    InferenceDisplay.from_table(table, ax=ax)
    ax.set_title(f"{table.n_rows} rows")
plt.show()

# %% [markdown]
# "Not shown" does not mean "absent": the interval of the ankle still contains weights up to its upper end. How often is
# "needed" wrong? The next cell draws 100 further training sets of 60 rows, and counts how often each cluster is called
# needed. For sweat this is an error, which should happen in at most 5 % of the sets. One model serves all sets, because
# the tests use its kernels and not its weights.

# %%
model, *_ = fit(60, 0)
tables = [infer(model, *draw(60, 1000 + seed), intervals=False) for seed in range(100)]
tables = [table for table in tables if table.clusters == small.clusters]
found = np.mean([table.cluster_needed[0] for table in tables], axis=0)
print(f"in {len(tables)} of 100 sets the clusters are these:")
for name, share in zip(small.cluster_names, found, strict=True):
    print(f"{name:36} called needed in {100 * share:.0f} % of them")
