"""The multilayer perceptron whose kernels are computed: depth, activation and the scales of its weights and biases."""

from __future__ import annotations

import ast
import dataclasses
import math
import numbers
import re
from typing import Any, Literal, get_args

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

#: Families of kernels that are combined, see `MLP`.
BasisName = Literal["depths", "increments", "layers"]

#: phi(c u) = c phi(u) for every c > 0: without biases the NTK is then |x||x'| times a function of the angle.
HOMOGENEOUS = frozenset({"relu", "leaky_relu", "abrelu", "abs", "identity"})

_INTEGER_DEGREE = {"monomial": range(0, 6), "rectified_monomial": range(0, 4), "hermite": range(0, 9)}


def parse_activation(activation: str) -> tuple[str, tuple[float, ...]]:
    """Split ``"name(a, b)"`` into the name and its parameters, defaults filled in.

    Args:
      activation: a name of `ACTIVATIONS`, with its parameters in brackets where it takes any.

    Returns:
      The name, and one float for every parameter.

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
    if name in _INTEGER_DEGREE and parameters[0] not in _INTEGER_DEGREE[name]:
        degrees = _INTEGER_DEGREE[name]
        raise ValueError(f"{name} takes a whole degree from {degrees[0]} to {degrees[-1]}; got {parameters[0]:g}")
    return name, parameters


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number >= `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}; got {value!r}")


def check_number(name: str, value: Any, *, zero: bool = False, instead: str = "") -> None:
    """Raise ValueError unless `value` is a finite number > 0, or >= 0 where `zero` says so.

    `instead` names for the message what the caller takes in place of a number.
    """
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
        other = f", or {instead}" if instead else ""
        raise ValueError(f"{name} must be a finite number {'>=' if zero else '>'} 0{other}; got {value!r}")


@dataclasses.dataclass(frozen=True)
class MLP:
    r"""A fully connected network of `depth` hidden layers in the NTK parametrisation (derivation eqs. 1-4).

    .. math:: g^{(l+1)} = \frac{w_{std}}{\sqrt{n_l}} W h^{(l)} + b_{std}\, b, \qquad h^{(l)} = \phi(g^{(l)})

    Every dense layer, the readout included, has the weight scale `w_std`; the readout's bias has its own scale, and
    none by default (the paper's eq. 4).

    It also names the family of kernels that Omega weighs:

    - "depths": :math:`\Theta^{(1)}, \ldots, \Theta^{(L)}`, one network of each depth;
    - "increments": :math:`\Theta^{(1)}, \Theta^{(2)} - \Theta^{(1)}, \ldots, \Theta^{(L)} - \Theta^{(L-1)}`, what each
      further layer adds. They span what the depths span. Not every increment is positive semi-definite;
    - "layers": what the parameters of each dense layer, the readout last, contribute to :math:`\Theta^{(L)}`, which is
      their sum: L + 1 kernels of one network.

    Args:
      depth: number of hidden layers L >= 1.
      activation: a name of `ACTIVATIONS`, with parameters in brackets where it takes any: ``"leaky_relu(0.1)"``.
      w_std: standard deviation of the weights before the width's scaling, > 0.
      b_std: standard deviation of the hidden layers' biases, >= 0.
      readout_bias: standard deviation of the readout's bias, >= 0.
      basis: "depths", "increments" or "layers".

    Raises:
      ValueError: a field is outside its range; the message names it.
    """

    depth: int
    activation: str = "relu"
    w_std: float = math.sqrt(2.0)
    b_std: float = 0.0
    readout_bias: float = 0.0
    basis: BasisName = "depths"

    def __post_init__(self) -> None:
        check_count("depth", self.depth)
        parse_activation(self.activation)
        check_number("w_std", self.w_std)
        for name in ("b_std", "readout_bias"):
            check_number(name, getattr(self, name), zero=True)
        object.__setattr__(self, "depth", int(self.depth))  # numpy's numbers, of a grid search, would not be saved
        for name in ("w_std", "b_std", "readout_bias"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.basis not in get_args(BasisName):
            raise ValueError(f"basis must be one of {', '.join(get_args(BasisName))}; got {self.basis!r}")

    @property
    def n_kernels(self) -> int:
        """Number of kernels in the family: L, or L + 1 for "layers"."""
        return self.depth + (self.basis == "layers")

    @property
    def is_homogeneous(self) -> bool:
        """Whether Theta^(l)(x, x') = |x||x'| f_l(angle): no biases, and phi(c u) = c phi(u) for c > 0."""
        return parse_activation(self.activation)[0] in HOMOGENEOUS and self.b_std == 0 and self.readout_bias == 0
