# %% [markdown]
# # A table in groups of columns
#
# The data are scikit-learn's diabetes data again: 442 patients, and how far the disease had progressed a year later.
# The ten columns fall into groups: age and sex, body mass, blood pressure, and six values from a blood sample. How much
# does each group contribute to the prediction?

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import ShuffleSplit

from nftk_jax import ContributionDisplay, NFTKRegressor, OmegaDisplay

data = load_diabetes()
x, y = data.data, data.target
GROUPS = {
    "age and sex": ["age", "sex"],
    "body mass": ["bmi"],
    "blood pressure": ["bp"],
    "lipids": ["s1", "s2", "s3", "s4", "s5"],
    "glucose": ["s6"],
}
groups = [next(group for group, names in GROUPS.items() if name in names) for name in data.feature_names]
splits = list(ShuffleSplit(5, test_size=0.5, random_state=0).split(x))

# %% [markdown]
# `groups` names the group of every column. Half of the patients are held out, in five random splits, because shares of
# such a small table differ between patients.

# %%
shares, models = [], []
for train, test in splits:
    models.append(NFTKRegressor(depths=[1], groups=groups).fit(x[train], y[train]))
    shares.append(models[-1].contributions(x[test], y[test])[0])
shares = np.array(shares)
for name, values in zip(GROUPS, shares.T, strict=True):
    print(f"{name:15} {values.mean():5.2f} of R^2, between {values.min():.2f} and {values.max():.2f}")
r2 = shares.sum(axis=1)
print(f"all             {r2.mean():5.2f}, between {r2.min():.2f} and {r2.max():.2f}")

# %% [markdown]
# A share shows what the model takes from a group, and not what would be lost without it, because other groups may hold
# the same information. A share is not a weight either. Weights describe how the kernels are mixed, and shares what each
# of them explains. In all five splits the weights stay equal, because no test rejects that. Yet age and sex explain
# nothing, and body mass a lot.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", width_ratios=(1, 1.2))
names = [f"split {number}" for number in range(1, len(splits) + 1)]
labels = models[0].kernel_labels_
OmegaDisplay(np.concatenate([m.omega_ for m in models]), labels=labels, output_names=names, noun="").plot(ax=left)
left.set_title("Weights")
ContributionDisplay(shares, names=list(GROUPS), output_names=names, noun="").plot(ax=right)
right.set_title("Shares of R² on held-out patients")
plt.show()
