# %% [markdown]
# # A flax network against its limit
#
# The tangent kernel of a random network approaches the analytic NTK at the rate width^(-1/2). This page measures the
# rate for a network with three hidden layers, separately for the parameters of each layer.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from nftk_jax import MLP, combined_ntk
from nftk_jax.finite.networks import NetworkSettings, initialise
from nftk_jax.finite.tangent import empirical_ntk_by_layer

mlp, widths, seeds = MLP(3), (32, 64, 128, 256, 512), range(4)
x = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)

# %% [markdown]
# The basis "layers" splits the NTK by the parameters that are trained. The kernels of the hidden layers and of the
# readout add up to the whole.

# %%
limit = np.asarray(combined_ntk(MLP(3, basis="layers"), np.eye(4), x))
print(
    "the parts add up to the NTK:", np.allclose(limit.sum(axis=0), combined_ntk(mlp, np.eye(3)[[2]], x)[0], rtol=1e-4)
)

# %%
errors = np.zeros((len(widths), len(seeds), 4))
for i, width in enumerate(widths):
    network = NetworkSettings(mlp, x.shape[1], 1, width, parametrisation="ntk")
    for seed in seeds:
        parts = empirical_ntk_by_layer(network, initialise(network, jax.random.key(seed)), x)
        for layer, part in enumerate(parts.values()):
            errors[i, seed, layer] = np.linalg.norm(part[0] - limit[layer]) / np.linalg.norm(limit[layer])
mean = errors.mean(axis=1)
names = ("hidden 1", "hidden 2", "hidden 3", "readout")
for name, column in zip(names, mean.T, strict=True):
    slope = np.polyfit(np.log(widths), np.log(column), 1)[0]
    print(f"{name:9} error at width {widths[-1]}: {column[-1]:.3f}, slope {slope:.2f}")

# %%
figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
for name, column in zip(names, mean.T, strict=True):
    axis.plot(widths, column, marker="o", markersize=4, label=name)
axis.plot(widths, mean[0].mean() * (np.array(widths) / widths[0]) ** -0.5, "k:", label="width^(-1/2)")
axis.set(xscale="log", yscale="log", xlabel="width", ylabel="relative error", title="tangent kernel from its limit")
axis.set_xticks(widths, widths)
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.legend(frameon=False)
plt.show()
