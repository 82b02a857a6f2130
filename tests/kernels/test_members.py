"""The kernels of a fit from its settings: depths, and kernels beside the network's."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax import MLP, RBF, Linear
from nftk_jax.kernels.members import network_kernel, with_members
from nftk_jax.settings import MLPSettings


def test_depths_are_those_kernels_of_a_network_of_the_largest():
    assert network_kernel(MLPSettings(depth=3)) == MLP(3)
    assert network_kernel(MLPSettings(), [3, 1]) == MLP(3).only([0, 2])
    assert network_kernel(MLPSettings(), np.array([12])) == MLP(12).only([11])
    assert network_kernel(MLPSettings(activation="erf"), [1, 2]) == MLP(2, "erf")
    assert [str(label) for label in network_kernel(MLPSettings(), [2, 5]).labels] == ["depth 2", "depth 5"]
    assert network_kernel(MLPSettings(), [2, 5]).word == "depth"


@pytest.mark.parametrize(
    ("depths", "settings", "message"),
    [
        ([0], {}, "depths must be whole numbers >= 1"),
        ([], {}, "depths must be whole numbers >= 1"),
        (3, {}, r"such as \[1, 3\]; got 3"),
        ([1.5], {}, "depths must be whole numbers"),
        ([True], {}, "depths must be whole numbers"),
        ([2, 2], {}, "depths must name every depth once"),
        ([5], {"depth": 4}, "at most the `depth` of 4; got 5"),
        ([1], {"basis": "layers"}, "`depths` goes with `basis='depths'`; got basis 'layers'"),
        ([1], {"basis": "increments"}, "got basis 'increments'"),
    ],
)
def test_unusable_depths_are_refused_in_one_line(depths, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        network_kernel(MLPSettings(**settings), depths)
    assert "\n" not in str(caught.value)


def test_members_stand_beside_the_network():
    network = MLP(2).only([1])
    names = ("rbf", "linear", "nngp", "rbf")
    kernel = with_members(network, names)
    widths = RBF(factor=0.25) + RBF() + RBF(factor=4)
    assert kernel == network + widths + Linear() + MLP(2, kind="nngp").only([1])
    assert [str(label) for label in kernel.labels] == [
        "depth 2",
        "rbf width 0.25 x auto",
        "rbf width auto",
        "rbf width 4 x auto",
        "linear",
        "nngp depth 2",
    ]
    kinds = [label.kind for label in with_members(network, ["laplace", "matern"]).labels]
    assert kinds == ["ntk", *["laplace"] * 3, *["matern"] * 3]
    assert with_members(network, ()) is network
    with pytest.raises(ValueError, match="NNGP kernel goes with an MLP of basis 'depths'"):
        with_members(MLP(2, basis="layers"), ["nngp"])


def test_the_activation_is_named_where_two_networks_differ_in_it():
    kernel = MLP(2) + MLP(1, "erf") + RBF(1.0)
    assert [str(label) for label in kernel.labels] == ["relu depth 1", "relu depth 2", "erf depth 1", "rbf width 1"]
    assert (MLP(2) + MLP(1, "erf")).word == "kernel"
    grouped = kernel.on([0], group="g") + MLP(1).on([1], group="h")
    assert [str(label) for label in grouped.labels[:3]] == ["g: relu depth 1", "g: relu depth 2", "g: erf depth 1"]
    assert (MLP(1) + MLP(1, "erf", kind="nngp")).labels[0].name == "depth 1"  # kinds tell these apart
