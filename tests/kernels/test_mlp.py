"""What an architecture accepts, and how a refusal names the field."""

import pytest

from nftk_jax.kernels.mlp import MLP, parse_activation


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


def test_homogeneity_needs_the_activation_and_no_biases():
    assert MLP(3).is_homogeneous
    assert MLP(3, "leaky_relu(0.3)").is_homogeneous
    assert not MLP(3, b_std=0.1).is_homogeneous
    assert not MLP(3, readout_bias=0.1).is_homogeneous
    assert not MLP(3, "erf").is_homogeneous
