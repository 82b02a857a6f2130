"""The activations with a closed-form kernel, by name."""

from __future__ import annotations

import ast
import math
import re

#: Every activation with a closed-form kernel in neural_tangents, by name, with the default of each parameter that may
#: be given in brackets: ``"leaky_relu(0.1)"``. A parameter without a default (None) must be given.
ACTIVATIONS: dict[str, tuple[float | None, ...]] = {
    "relu": (),
    "leaky_relu": (0.01,),
    "abrelu": (None, None),
    "abs": (),
    "identity": (),
    "sign": (),
    "erf": (1.0, 1.0, 0.0),
    "sigmoid_like": (),
    "gelu": (),
    "sin": (1.0, 1.0, 0.0),
    "cos": (1.0, 1.0, 0.0),
    "rbf": (1.0,),
    "gabor": (),
    "exp": (1.0, 1.0),
    "gaussian": (1.0, -1.0),
    "exp_normalized": (1.0, -1.0),
    "monomial": (None,),
    "rectified_monomial": (None,),
    "hermite": (None,),
    "polynomial": (),
}

#: phi(c u) = c phi(u) for every c > 0: without biases the NTK is then |x||x'| times a function of the angle.
HOMOGENEOUS = frozenset({"relu", "leaky_relu", "abrelu", "abs", "identity"})

# other names of piecewise linear activations, which have the fast and exact route
_LINEAR = {"rectified_monomial": "relu", "monomial": "identity", "hermite": "identity"}
_INTEGER_DEGREE = {"monomial": range(0, 6), "rectified_monomial": range(0, 4), "hermite": range(0, 9)}


def parse_activation(activation: str) -> tuple[str, tuple[float, ...]]:
    """Split ``"name(a, b)"`` into the name and its parameters, defaults filled in.

    Args:
      activation: a name of `ACTIVATIONS`, with its parameters in brackets where it takes any.

    Returns:
      The name, and one float for every parameter. Monomials of degree 1 go by the name of the activation that they are.

    Raises:
      ValueError: the name is not known, or the parameters are not the ones that it takes.

    >>> parse_activation("leaky_relu(0.2)")
    ('leaky_relu', (0.2,))
    """
    match = re.fullmatch(r"\s*([a-z_]+)\s*(?:\((.*)\))?\s*", activation) if isinstance(activation, str) else None
    name, text = match.groups() if match else (activation, None)
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    try:
        given = tuple(float(v) for v in ast.literal_eval(f"({text},)")) if text and text.strip() else ()
    except (ValueError, SyntaxError, TypeError):
        raise ValueError(f"the parameters of activation {name} must be numbers; got {activation!r}") from None
    defaults = ACTIVATIONS[name]
    if name == "polynomial":
        if not given:
            raise ValueError("polynomial needs its coefficients, constant first, such as polynomial(0, 1, 0.5)")
    elif len(given) > len(defaults) or None in defaults[len(given) :]:
        required = sum(value is None for value in defaults)
        raise ValueError(
            f"activation {name} takes {required} to {len(defaults)} parameters in brackets, got {len(given)}"
        )
    parameters = given + tuple(value for value in defaults[len(given) :] if value is not None)
    if not all(math.isfinite(value) for value in parameters):
        raise ValueError(f"the parameters of activation {name} must be finite; got {activation!r}")
    if name == "rbf" and parameters[0] < 0:
        raise ValueError(f"the parameter of activation rbf must be at least 0; got {parameters[0]:g}")
    if name in _INTEGER_DEGREE and parameters[0] not in _INTEGER_DEGREE[name]:
        degrees = _INTEGER_DEGREE[name]
        raise ValueError(f"{name} takes a whole degree from {degrees[0]} to {degrees[-1]}; got {parameters[0]:g}")
    if name in _LINEAR and parameters[0] == 1:
        return _LINEAR[name], ()
    return name, parameters


def is_step(activation: str) -> bool:
    """Whether the activation jumps at 0: its kernel has an infinite slope at angle 0 from depth 2 on."""
    return parse_activation(activation) in (("sign", ()), ("rectified_monomial", (0.0,)))
