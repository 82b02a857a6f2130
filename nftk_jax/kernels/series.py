r"""The kernels of every depth as one Chebyshev series each, in the angle between two inputs.

For a fully connected network Theta^(l)(x, x') depends on |x|, |x'| and the angle t alone. Two kinds of inputs leave the
angle as the only variable:

 - homogeneous activations without hidden biases: Theta^(l) = |x||x'|/p f_l(t) + readout_bias^2, any inputs;
 - inputs on one sphere |x|^2/p = q: Theta^(l) = f_l(t; q), any activation, any bias.

The f_l are a property of the architecture (and of q): neural_tangents gives their values at the Chebyshev nodes, once,
in float64. A combined kernel sum_l omega_l f_l is then again one series, whatever the depth.

The variable is :math:`v = s\,t/(t + a) - 1` in [-1, 1] with :math:`s = 2 (\pi + a)/\pi`, or v = 2t/pi - 1 (a infinite).
Near t = 0 a ReLU layer maps the angle to t - t^2/(3 pi) + ..., so that after l layers 1/t has grown by about l/(3 pi):
deep kernels are smooth in t/(t + a), and a finite `a` halves the degree at depth 50.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

from nftk_jax.kernels import duals
from nftk_jax.kernels.activations import HOMOGENEOUS, parse_activation
from nftk_jax.kernels.angles import horner
from nftk_jax.kernels.neural_tangents import basis_kernels
from nftk_jax.kernels.precision import enable_x64

if TYPE_CHECKING:
    from nftk_jax.kernels.mlp import MLP

#: Where the tail of a series may be cut, relative to the largest value of f_l.
TOLERANCE = {"float32": 4e-7, "float64": 1e-10}

_WARPS = (math.inf, 8.0, 4.0, 2.0, 1.4, 1.0, 0.7)
_NODES = 192
_MAX_DEGREE = 160
# Horner loses what the monomial coefficients cancel: up to this growth the loss is a few units of the last place
_MAX_HORNER_GROWTH = 12.0


class Form(NamedTuple):
    """How a series is evaluated: hashable, so that a compiled function may depend on it."""

    basis: str
    warp: float = math.inf

    @property
    def is_series(self) -> bool:
        """Whether it is a series in the angle, and not "linear" or one function of a distance, `of_distance`."""
        return self.basis in ("monomial", "chebyshev")


def of_distance(basis: str, squares: jax.Array) -> jax.Array:
    """A kernel at squared distances over the squared width, elementwise.

    `basis` is "rbf", "laplace", "matern 1.5" or "matern 2.5" (Rasmussen & Williams 2006, eqs. 4.9, 4.17 and 4.18).
    """
    if basis == "rbf":
        return jnp.exp(-squares / 2)
    positive = squares > 0  # the root has no derivative at 0
    r = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
    if basis == "laplace":
        return jnp.exp(-r)
    if basis == "matern 1.5":
        return (1 + math.sqrt(3) * r) * jnp.exp(-math.sqrt(3) * r)
    if basis == "matern 2.5":
        return (1 + math.sqrt(5) * r + 5 / 3 * r**2) * jnp.exp(-math.sqrt(5) * r)
    raise ValueError(f"no function of the distance is called {basis!r}")


class KernelSeries(NamedTuple):
    """Kernels on some inputs as series in the angle t between two of them.

    K^(l)(x, x') = f_l(t) + bias_l, times |x||x'| before the bias where `radial` says so.

    Attributes:
      form: the variable and the basis of the series, a `Form`; of a sum over groups, its `stacks.Stack`s.
      radial: whether the lengths of the inputs are factors (homogeneous networks), or all inputs lie on one sphere.
      coefficients: of f_l, shape (L, size).
      at_zero: f_l(0), shape (L,).
      bias: constants, shape (L,), float64; None is zero.
      stretch: what lengths are multiplied by, 1 / width for a function of the distance; None is 1.
    """

    form: Any
    radial: bool
    coefficients: Any
    at_zero: Any
    bias: np.ndarray | None
    stretch: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class AngleSeries:
    """f_1, ..., f_L as series in the angle.

    Attributes:
      form: the variable and the basis.
      coefficients: shape (L, degree + 1), float64.
      at_zero: f_l(0), shape (L,), float64: the diagonal, exact.
    """

    form: Form
    coefficients: np.ndarray
    at_zero: np.ndarray


def _variable(form: Form, t):
    if math.isinf(form.warp):
        return t * (2 / math.pi) - 1
    return t * (2 * (math.pi + form.warp) / math.pi) / (t + form.warp) - 1


def _angle_of(warp: float, v: np.ndarray) -> np.ndarray:
    """Inverse of `_variable`."""
    if math.isinf(warp):
        return (v + 1) * (math.pi / 2)
    w = (v + 1) * (math.pi / (2 * (math.pi + warp)))
    return warp * w / (1 - w)


def _nodes(size: int) -> np.ndarray:
    """The Chebyshev nodes, from the largest down."""
    return np.cos((np.arange(size) + 0.5) * (math.pi / size))


def _sample(mlp: MLP, q, angles, dtype) -> jax.Array:
    """f_l at `angles` for inputs of |x|^2 / p = q, from neural_tangents, shape (L, len(angles))."""
    radius = jnp.sqrt(2 * jnp.asarray(q, dtype))
    x1 = radius * jnp.asarray([[1.0, 0.0]], dtype)
    x2 = radius * jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), dtype)
    return basis_kernels(mlp, x1, x2)[:, 0]  # operation by operation: one program would compile for minutes


def scalar_diagonals(mlp: MLP, radius: jax.Array) -> jax.Array:
    """Theta^(l)(x, x) for rows with |x|/sqrt(p) = radius, shape (n,), of activations that are not piecewise linear.
    Shape (L, n).
    """
    std = mlp.w_std * radius
    return duals.kernels(mlp, jnp.eye(mlp.n_kernels, dtype=std.dtype), duals.Pair(std, std, 0 * std, 2 * std**2))


def slopes(mlp: MLP) -> tuple[float, float]:
    """The slopes of a piecewise linear activation of `HOMOGENEOUS` below and above 0."""
    name, parameters = parse_activation(mlp.activation)
    return {
        "relu": lambda: (0.0, 1.0),
        "leaky_relu": lambda: (parameters[0], 1.0),
        "abrelu": lambda: (parameters[0], parameters[1]),
        "abs": lambda: (-1.0, 1.0),
        "identity": lambda: (1.0, 1.0),
    }[name]()


def piecewise_linear_diagonals(mlp: MLP, q: Any) -> Any:
    """Theta^(l)(x, x) at |x|^2 / p = q in closed form: E[phi(u)^2] = m Var(u) and E[phi'(u)^2] = m, m the slopes' mean
    square.

    `q` is a NumPy or JAX array of shape (n,); the result is one of shape (L, n), or (n_kernels, n) for the NTKs of
    another basis.
    """
    below, above = slopes(mlp)
    gain = mlp.w_std**2 * (below**2 + above**2) / 2
    sigma = mlp.w_std**2 * q + mlp.b_std**2
    bias = mlp.readout_bias**2 - mlp.b_std**2
    tangent, out, layers = sigma, [], [sigma]
    for _ in range(mlp.depth):
        sigma = gain * sigma + mlp.b_std**2
        tangent = sigma + gain * tangent
        layers = [gain * part for part in layers] + [sigma]
        out.append((tangent if mlp.kind == "ntk" else sigma) + bias)
    if mlp.basis == "layers":
        out = [*layers[:-1], layers[-1] + bias]
    elif mlp.basis == "increments":
        out = [out[0], *(after - before for before, after in itertools.pairwise(out))]
    return (np if isinstance(q, np.ndarray) else jnp).stack(out)


@functools.lru_cache(maxsize=64)
def _values(mlp: MLP, q: float) -> tuple[np.ndarray, np.ndarray]:
    """f_1, ..., f_L in float64 at the nodes of every warp, one after the other, and at the angle 0."""
    nodes = _nodes(_NODES)
    angles = np.concatenate([_angle_of(warp, nodes) for warp in _WARPS])
    with jax.ensure_compile_time_eval(), enable_x64():
        values = np.asarray(_sample(mlp, q, angles, jnp.float64))
        if parse_activation(mlp.activation)[0] in HOMOGENEOUS:
            return values, np.asarray(piecewise_linear_diagonals(mlp, np.asarray([q]))[:, 0])
        return values, np.asarray(scalar_diagonals(mlp, jnp.asarray([math.sqrt(q)], jnp.float64))[:, 0])


@functools.lru_cache(maxsize=64)
def angle_series(mlp: MLP, q: float, dtype: str) -> AngleSeries | None:
    """Sample f_1, ..., f_L in float64 and find the shortest series within `TOLERANCE`.

    Args:
      mlp: the architecture.
      q: |x|^2 / p of the inputs; 1 for homogeneous architectures, whose scale factors out.
      dtype: "float32" or "float64": the precision of the evaluation, which sets the degree.

    Returns:
      The series, or None where no series of degree <= 160 converges: the recursion is then the way, and a warning says
      so once.
    """
    nodes = _nodes(_NODES)
    values, at_zero = _values(mlp, q)
    if not (np.isfinite(values).all() and np.isfinite(at_zero).all()):
        return _no_series(mlp, q, "has entries that are not finite")
    scale = np.maximum(np.abs(values).max(axis=1), np.finfo(np.float64).tiny)
    to_coefficients = 2 / _NODES * chebyshev.chebvander(nodes, _NODES - 1)
    to_coefficients[:, 0] /= 2
    best: tuple[float, Form, np.ndarray] | None = None
    for warp, sampled in zip(_WARPS, np.split(values, len(_WARPS), axis=1), strict=True):
        coefficients = sampled @ to_coefficients
        relative = np.abs(coefficients) / scale[:, None]
        tail = np.cumsum(relative[:, ::-1], axis=1)[:, ::-1].max(axis=0)
        short = np.flatnonzero(tail <= TOLERANCE[dtype])
        if not short.size or short[0] > _MAX_DEGREE + 1:
            continue
        size = max(int(short[0]), 2)
        monomial = _to_monomials(coefficients[:, :size])
        growth = (np.abs(monomial).sum(axis=1) / scale).max()
        stable = growth <= _MAX_HORNER_GROWTH
        form = Form("monomial" if stable else "chebyshev", warp)
        cost = size * (1 if stable else 2) + (0 if math.isinf(warp) else 4)
        if best is None or cost < best[0]:
            best = cost, form, monomial if stable else coefficients[:, :size]
    if best is None:
        return _no_series(mlp, q, f"has no Chebyshev series of degree <= {_MAX_DEGREE} to {TOLERANCE[dtype]:g}")
    _, form, coefficients = best
    return AngleSeries(form, coefficients, at_zero)


def _no_series(mlp: MLP, q: float, reason: str) -> None:
    warnings.warn(
        f"the kernel of {mlp} at |x|^2/p = {q:.6g} {reason}: it goes through the slower recursion", stacklevel=3
    )


def _to_monomials(coefficients: np.ndarray) -> np.ndarray:
    """Monomial coefficients of Chebyshev series, one a row."""
    size = coefficients.shape[1]
    return np.stack([np.pad(chebyshev.cheb2poly(row), (0, size))[:size] for row in coefficients])


def traced_series(mlp: MLP, q: jax.Array, size: int = 32) -> KernelSeries:
    """The series of a sphere whose radius is only known inside a compiled function: sampled in the dtype of `q`.

    Returns:
      The series, arrays in the dtype of `q`. In float32 the samples themselves carry the
      rounding of the recursion, about 1e-5 of the largest entry at depth 10.
    """
    nodes = _nodes(size)
    values = _sample(mlp, q, _angle_of(math.inf, nodes), q.dtype)
    to_coefficients = 2 / size * chebyshev.chebvander(nodes, size - 1)
    to_coefficients[:, 0] /= 2
    coefficients = jnp.matmul(values, jnp.asarray(to_coefficients, q.dtype), precision=jax.lax.Precision.HIGHEST)
    if parse_activation(mlp.activation)[0] in HOMOGENEOUS:
        at_zero = jnp.asarray(piecewise_linear_diagonals(mlp, q[None])[:, 0])
    else:
        at_zero = scalar_diagonals(mlp, jnp.sqrt(q)[None])[:, 0]
    return KernelSeries(Form("chebyshev", math.inf), False, coefficients, at_zero, None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def evaluate(form: Form, coefficients: jax.Array, t: jax.Array) -> jax.Array:
    """Evaluate series at the angles `t`: coefficients (C, size) give (C, *t.shape), one series (size,) gives
    t.shape.
    """
    classes, size = coefficients.shape[:-1], coefficients.shape[-1]
    v = _variable(form, t)
    column = lambda k: coefficients[..., k].reshape(*classes, *(1,) * (t.ndim if classes else 0))  # noqa: E731
    last = size - 1
    if form.basis == "monomial":
        return horner([column(k) for k in range(size)], v)
    b1, b2, twice = jnp.broadcast_to(column(last), (*classes, *t.shape)), jnp.zeros_like(v), 2 * v
    for k in range(last - 1, 0, -1):
        b1, b2 = twice * b1 + (column(k) - b2), b1
    return v * b1 + (column(0) - b2)


@evaluate.defjvp
def _evaluate_jvp(form, primals, tangents):
    (coefficients, t), (dcoefficients, dt) = primals, tangents
    size = coefficients.shape[-1]
    derivative = chebyshev.chebder if form.basis == "chebyshev" else np.polynomial.polynomial.polyder
    matrix = np.pad(np.stack([derivative(row) for row in np.eye(size)]), ((0, 0), (0, 1)))
    if math.isinf(form.warp):
        slope = 2 / math.pi
    else:
        slope = 2 * (math.pi + form.warp) * form.warp / math.pi / (t + form.warp) ** 2
    shifted = jnp.matmul(coefficients, jnp.asarray(matrix, coefficients.dtype), precision=jax.lax.Precision.HIGHEST)
    tangent = evaluate(form, dcoefficients, t) + evaluate(form, shifted, t) * (slope * dt)
    return evaluate(form, coefficients, t), tangent
