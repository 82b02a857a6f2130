"""What an architecture accepts, and how a refusal names the field."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from nftk_jax import combined_ntk, depth_ntks
from nftk_jax.kernels.activations import parse_activation
from nftk_jax.kernels.mlp import MLP, kernel_route
from nftk_jax.kernels.precision import enable_x64


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("relu", ("relu", ())),
        ("leaky_relu", ("leaky_relu", (0.01,))),
        (" erf( 2 ) ", ("erf", (2.0, 1.0, 0.0))),
        ("polynomial(0, 1, .5)", ("polynomial", (0.0, 1.0, 0.5))),
    ],
)
def test_activations_parse_with_their_defaults(text, parsed):
    assert parse_activation(text) == parsed


@pytest.mark.parametrize(
    "text", ["tanh", "relu(1)", "abrelu(1)", "erf(a)", "polynomial", "monomial(7)", "erf(inf)", "hermite(1.5)", 3]
)
def test_unknown_activations_and_parameters_are_refused(text):
    with pytest.raises(ValueError, match=r"activation|polynomial|takes"):
        parse_activation(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [("depth", 0), ("depth", 2.0), ("depth", True), ("w_std", 0.0), ("b_std", -1.0), ("readout_bias", float("inf"))],
)
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        MLP(**{"depth": 2, field: value})


def test_the_series_over_all_inputs_needs_a_homogeneous_activation_and_no_hidden_biases(rng):
    x = rng.normal(size=(4, 3)).astype(np.float32)
    route = lambda mlp: kernel_route(mlp, jnp.asarray(x))[0]  # noqa: E731
    assert route(MLP(3)) == "angle"
    assert route(MLP(3, "leaky_relu(0.3)")) == "angle"
    assert route(MLP(3, readout_bias=0.1)) == "angle"  # a constant beside the series
    assert route(MLP(3, b_std=0.1)) == "recursion"
    assert route(MLP(3, "erf")) == "recursion"


@pytest.mark.parametrize("dtype", ["float16", ">f4", ">f8", "longdouble", ">i4", "bool"])
@pytest.mark.parametrize("x64", [False, True])
def test_inputs_of_any_real_type_have_the_kernels_of_the_same_numbers(dtype, x64, rng):
    x = np.round(rng.normal(size=(6, 3)), 1).astype(dtype)
    plain = x.astype(np.float64 if x64 and dtype not in ("float16", ">f4") else np.float32)
    with enable_x64(x64):
        for kernels in (depth_ntks, lambda mlp, x: combined_ntk(mlp, np.eye(2), x)):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "depth_ntks returns float32")
                found, expected = kernels(MLP(depth=2), x), kernels(MLP(depth=2), plain)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def test_float64_inputs_give_float64_or_one_warning(rng):
    x = rng.normal(size=(4, 3))
    with enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = depth_ntks(MLP(depth=2), x)
        assert exact.dtype == depth_ntks(MLP(depth=2), x.astype(np.float32)).dtype == np.float64
    with enable_x64(False):
        with pytest.warns(UserWarning, match="depth_ntks returns float32 for float64 inputs") as caught:
            found = depth_ntks(MLP(depth=2), x, x)
        assert (len(caught), caught[0].filename, found.dtype) == (1, __file__, np.float32)
        np.testing.assert_allclose(found, exact, rtol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert depth_ntks(MLP(depth=2), x.astype(np.float32)).dtype == np.float32
