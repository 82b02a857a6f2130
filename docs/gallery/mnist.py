# %% [markdown]
# # Which depths does each digit use?
#
# This page learns weights of ten depths from 1,500 of the bundled MNIST images. Every digit gets its own weights. Do
# they mean anything?

# %%
import matplotlib.pyplot as plt
import numpy as np

from nftk_jax import MLP, NFTKClassifier, combined_ntk
from nftk_jax.datasets import load_dataset

data = load_dataset("mnist-small", n_train=1500, n_test=2000)
settings = {"depth": 10, "b_std": 0.0, "scaling": "images", "random_state": 0}

# %%
models = {
    "learned Omega": NFTKClassifier(**settings),
    "equal weights": NFTKClassifier(**settings, weights="uniform"),
    "depths 1 and 2": NFTKClassifier(**settings | {"depth": 2}, weights="uniform"),
}
for name, model in models.items():
    model.fit(data.x_train, data.y_train)
    print(f"{name:15} {100 * np.mean(model.predict(data.x_test) == data.y_test):.2f} %")

# %% [markdown]
# The alignment of two kernels is the cosine between their matrices of entries, after centring. Neighbouring depths are
# nearly the same kernel, so weight can move between them without changing the model. That is why a heatmap of Omega
# alone proves little.

# %%
omega = models["learned Omega"].omega_
rows = models["learned Omega"].model_.scaled(data.x_train[:500])
kernels = np.asarray(combined_ntk(MLP(10), np.eye(10), rows), np.float64)
kernels -= kernels.mean(axis=1, keepdims=True)
kernels -= kernels.mean(axis=2, keepdims=True)
flat = kernels.reshape(10, -1)
flat /= np.linalg.norm(flat, axis=1, keepdims=True)
alignment = flat @ flat.T
print(f"alignment of depths 1 and 2: {alignment[0, 1]:.4f}, of 9 and 10: {alignment[8, 9]:.4f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
image = left.imshow(omega, cmap="Blues", vmin=0, vmax=1, aspect="auto")
left.set(title="learned Omega", xlabel="depth", ylabel="digit", yticks=range(10))
left.set_xticks(range(10), range(1, 11))
figure.colorbar(image, ax=left)
image = right.imshow(alignment, cmap="Greys", vmin=alignment.min(), vmax=1)
right.set(title="alignment of the depths' kernels", xlabel="depth", ylabel="depth")
right.set_xticks(range(10), range(1, 11))
right.set_yticks(range(10), range(1, 11))
figure.colorbar(image, ax=right)
plt.show()
