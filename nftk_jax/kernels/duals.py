r"""The kernels of an infinitely wide layer: E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of two centred normal variables.

In float32 a covariance no longer says how close to 1 or -1 the correlation is, and kinked or steep activations have
kernels that depend on it. So a `Pair` carries, beside the standard deviations s and s', what remains to either end,

.. math:: below = s s' - cov, \qquad above = s s' + cov,

and every activation below maps them to those of its outputs without a difference of nearly equal numbers. Its way there
is the gap E[(phi(u) - phi(v))^2] / 2 and the total E[(phi(u) + phi(v))^2] / 2.

Zero rows (s = 0) take the limit of short rows: 0 where phi(0) = 0, a constant otherwise. Where that limit depends on
the row's direction (a step), the row counts as orthogonal to all others. No derivative is NaN: at a kink the angle's is
taken as 0. Piecewise linear activations have a recursion of their own (`recursion.py`).

Sources: Cho & Saul (2009) for rectified monomials, Williams (1997) for erf, Tsuchida et al. (2021) for GELU,
neural_tangents for the others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nftk_jax.kernels.activations import parse_activation
from nftk_jax.kernels.angles import angle_between, arctan2

if TYPE_CHECKING:
    from nftk_jax.kernels.mlp import MLP


class Pair(NamedTuple):
    """Centred normal variables u and v, one pair an entry; the arrays broadcast.

    Attributes:
      std1: standard deviation s of u, >= 0.
      std2: standard deviation s' of v, >= 0.
      below: s s' - cov(u, v), >= 0.
      above: s s' + cov(u, v), >= 0.
    """

    std1: jax.Array
    std2: jax.Array
    below: jax.Array
    above: jax.Array

    @property
    def covariance(self) -> jax.Array:
        return (self.above - self.below) / 2

    @property
    def gap(self) -> jax.Array:
        """E[(u - v)^2] / 2."""
        return (self.std1 - self.std2) ** 2 / 2 + self.below

    @property
    def total(self) -> jax.Array:
        """E[(u + v)^2] / 2."""
        return (self.std1 - self.std2) ** 2 / 2 + self.above

    @property
    def complements(self) -> tuple[jax.Array, jax.Array]:
        """1 - cos and 1 + cos; a variable that vanishes is orthogonal to all that do not."""
        product = self.std1 * self.std2
        both = (self.std1 == 0) & (self.std2 == 0)
        safe = jnp.where(product > 0, product, 1)
        near = jnp.where(product > 0, self.below / safe, jnp.where(both, 0, 1))
        return near, jnp.where(product > 0, self.above / safe, jnp.where(both, 2, 1))

    def affine(self, w_std: float, b_std: float) -> Pair:
        """The pair of w_std u + b_std b, w_std v + b_std b with one standard normal b."""
        std1, std2 = w_std * self.std1, w_std * self.std2
        below, above = w_std**2 * self.below, w_std**2 * self.above
        if not b_std:
            return Pair(std1, std2, below, above)
        new1, new2 = jnp.sqrt(std1**2 + b_std**2), jnp.sqrt(std2**2 + b_std**2)
        more = b_std**2 * (std1 - std2) ** 2 / (new1 * new2 + std1 * std2 + b_std**2)
        return Pair(new1, new2, below + more, above + more + 2 * b_std**2)


# the pair of phi(u) and phi(v), and E[phi'(u) phi'(v)]
Dual = Callable[[Pair], tuple[Pair, jax.Array]]


def root(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def from_covariance(covariance: jax.Array, variance1: jax.Array, variance2: jax.Array) -> Pair:
    """The pair of these moments, whose covariance may exceed its bounds by rounding."""
    std1, std2 = root(variance1), root(variance2)
    return Pair(std1, std2, _positive(std1 * std2 - covariance), _positive(std1 * std2 + covariance))


def _positive(x: jax.Array) -> jax.Array:
    return x - lax.stop_gradient(jnp.minimum(x, 0))  # below 0 by rounding alone: the derivative stays


def _from_gap(variance1: jax.Array, variance2: jax.Array, gap: jax.Array, total: jax.Array) -> Pair:
    std1, std2 = root(variance1), root(variance2)
    excess = (std1 - std2) ** 2 / 2
    return Pair(std1, std2, _positive(gap - excess), _positive(total - excess))


def _from_complements(std1: jax.Array, std2: jax.Array, near: jax.Array, far: jax.Array) -> Pair:
    return Pair(std1, std2, std1 * std2 * near, std1 * std2 * far)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _arc_cosine(degree: int, near: jax.Array, far: jax.Array) -> jax.Array:
    """1 - J_d(t) / J_d(0), of Cho & Saul's J_d at the angle t with complements near and far."""
    t = angle_between(near, far)
    sin, cos = jnp.sqrt(near * far), (far - near) / 2
    return (
        t / math.pi,
        near + (t * cos - sin) / math.pi,
        (3 * (t - sin * cos) + 2 * (math.pi - t) * near * far) / (3 * math.pi),
        (near * (15 + 6 * cos + 6 * cos**2) + (t * (9 * cos + 6 * cos**3) - 15 * sin + 11 * near * far * sin) / math.pi)
        / 15,
    )[degree]


@_arc_cosine.defjvp
def _arc_cosine_jvp(degree, primals, tangents):
    """dJ_d / dcos = d^2 J_(d - 1): exact where sin t vanishes."""
    if degree == 0:
        slope = jax.jvp(angle_between, primals, tangents)[1] / math.pi
    else:
        slope = degree**2 / (2 * degree - 1) * (1 - _arc_cosine(degree - 1, *primals)) * (tangents[0] - tangents[1]) / 2
    return _arc_cosine(degree, *primals), slope


def _sign() -> Dual:
    def dual(pair: Pair) -> tuple[Pair, jax.Array]:
        near, far = pair.complements
        std1, std2 = (jnp.where(std > 0, 1.0, 0.0).astype(std.dtype) for std in (pair.std1, pair.std2))
        complements = (2 / math.pi) * angle_between(near, far), (2 / math.pi) * angle_between(far, near)
        return _from_complements(std1, std2, *complements), jnp.zeros_like(near)

    return dual


def _rectified_monomial(degree: float) -> Dual:
    order = int(degree)
    norm = math.prod(range(1, 2 * order, 2)) / 2  # E[phi(u)^2] at unit variance

    def dual(pair: Pair) -> tuple[Pair, jax.Array]:
        near, far = pair.complements
        complement = _positive(_arc_cosine(order, near, far))
        std1, std2 = (math.sqrt(norm) * std**order for std in (pair.std1, pair.std2))
        out = _from_complements(std1, std2, complement, 2 - complement)
        if order == 0:
            return out, jnp.zeros_like(near)
        slope = (pair.std1 * pair.std2) ** (order - 1) * (1 - _arc_cosine(order - 1, near, far))
        return out, order**2 * norm / (2 * order - 1) * slope

    return dual


def _exp_normalized(gamma: float, shift: float) -> Dual:
    def dual(pair: Pair) -> tuple[Pair, jax.Array]:
        scale, (near, _) = math.exp(gamma * (1 + shift)), pair.complements
        std1, std2, ratio = math.sqrt(scale) * pair.std1, math.sqrt(scale) * pair.std2, jnp.exp(-gamma * near)
        return _from_complements(std1, std2, -jnp.expm1(-gamma * near), 1 + ratio), gamma * scale * ratio

    return dual


def _exp(a: float, b: float) -> Dual:
    def dual(pair: Pair) -> tuple[Pair, jax.Array]:
        std1, std2 = (abs(a) * jnp.exp(b**2 * std**2) for std in (pair.std1, pair.std2))
        ratio = jnp.exp(-(b**2) * pair.gap)
        out = _from_complements(std1, std2, -jnp.expm1(-(b**2) * pair.gap), 1 + ratio)
        return out, b**2 * std1 * std2 * ratio

    return dual


def _gaussian(a: float, b: float) -> Dual:
    def dual(pair: Pair) -> tuple[Pair, jax.Array]:
        v1, v2, beta = pair.std1**2, pair.std2**2, -2 * b
        inner = jnp.sqrt(1 + 2 * beta * v1) * jnp.sqrt(1 + 2 * beta * v2)
        sines = pair.below * pair.above
        det = 1 + beta * (v1 + v2) + beta**2 * sines
        rest = beta**2 * (sines + (v1 - v2) ** 2 / (1 + beta * (v1 + v2) + inner))  # det - inner
        ratio = jnp.sqrt(inner / det)
        std1, std2 = (abs(a) * (1 + 2 * beta * v) ** -0.25 for v in (v1, v2))
        out = _from_complements(std1, std2, rest / det / (1 + ratio), 1 + ratio)
        return out, (a * beta) ** 2 * pair.covariance / (det * jnp.sqrt(det))

    return dual


def _wave(a: float, b: float, c: float) -> Dual:
    """a sin(b u + c)."""
    cos2, sin2 = math.cos(c) ** 2, math.sin(c) ** 2
    turn = cos2 - sin2  # cos(2c)

    def dual(pair: Pair) -> tuple[Pair, jax.Array]:
        v1, v2, gap, total = (b**2 * q for q in (pair.std1**2, pair.std2**2, pair.gap, pair.total))
        near, far = -jnp.expm1(-gap), -jnp.expm1(-total)
        lengths = (jnp.expm1(-v1) - jnp.expm1(-v2)) ** 2 / 2
        out = _from_gap(
            a**2 * (sin2 - turn / 2 * jnp.expm1(-2 * v1)),
            a**2 * (sin2 - turn / 2 * jnp.expm1(-2 * v2)),
            a**2 / 2 * (near * (2 * cos2 - turn * far) - turn * lengths),
            a**2 / 2 * (2 * sin2 * (2 - near) + turn * (far * (2 - near) - lengths)),
        )
        return out, (a * b) ** 2 / 2 * (cos2 * (2 - near - far) + sin2 * (far - near))

    return dual


def _gabor() -> Dual:
    def dual(pair: Pair) -> tuple[Pair, jax.Array]:
        v1, v2, cov, sines = pair.std1**2, pair.std2**2, pair.covariance, pair.below * pair.above
        det = 1 + 2 * (v1 + v2) + 4 * sines
        left, right = (jnp.exp(-(q + 2 * sines) / det) for q in (pair.total, pair.gap))
        std1, std2 = (root(-jnp.expm1(-2 * v / (1 + 4 * v)) / 2 / jnp.sqrt(1 + 4 * v)) for v in (v1, v2))
        k = -right * jnp.expm1(-2 * cov / det) / 2 / jnp.sqrt(det)
        even = (1 + 2 * (v1 + v2) + 4 * cov**2 + 4 * v1 * v2) / det / det
        odd = 4 * (cov / det) * ((4 * sines + 3 * (v1 + v2) + 2) / det)
        slope = (left * (even - odd) + right * (even + odd)) / 2 / jnp.sqrt(det)
        return Pair(std1, std2, _positive(std1 * std2 - k), _positive(std1 * std2 + k)), slope

    return dual


def _arcsines(pair: Pair, c: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """asin(w/(1 + w)) - asin(c cov / q) for w = c s^2 and w' = c s'^2, q^2 = (1 + w)(1 + w'); sqrt(q^2 - c^2 cov^2)."""
    sines = c**2 * pair.below * pair.above
    w1, w2 = c * pair.std1**2, c * pair.std2**2
    slant = jnp.sqrt(1 + w1 + w2 + sines)

    def rise(own: jax.Array, other: jax.Array, w: jax.Array, w_other: jax.Array) -> jax.Array:
        q = jnp.sqrt(1 + 2 * w)
        sin = w * ((w_other - w + sines) / (slant + q)) + c * (own * (own - other) + pair.below) * q
        return arctan2(sin, q * slant + w * (c * pair.covariance))

    return rise(pair.std1, pair.std2, w1, w2), rise(pair.std2, pair.std1, w2, w1), slant


def _erf(a: float, b: float, c: float) -> Dual:
    """a erf(b u) + c."""

    def dual(pair: Pair) -> tuple[Pair, jax.Array]:
        scale = 2 * b**2
        variance1, variance2 = (
            (2 * a**2 / math.pi) * arctan2(scale * std**2, jnp.sqrt(1 + 2 * scale * std**2))
            for std in (pair.std1, pair.std2)
        )
        first, second, slant = _arcsines(pair, scale)
        opposite = _arcsines(pair._replace(below=pair.above, above=pair.below), scale)[:2]
        gap, total = ((a**2 / math.pi) * (one + two) for one, two in ((first, second), opposite))
        return _from_gap(variance1, variance2, gap, total).affine(1.0, abs(c)), (2 * scale * a**2 / math.pi) / slant

    return dual


def _gelu() -> Dual:
    def dual(pair: Pair) -> tuple[Pair, jax.Array]:
        v1, v2, cov = pair.std1**2, pair.std2**2, pair.covariance
        first, second, slant = _arcsines(pair, 1.0)
        angle = arctan2(cov, slant)
        parts, variances = [], []
        for v, other, rise in ((v1, v2, first), (v2, v1, second)):
            q = jnp.sqrt(1 + 2 * v)
            ratio = (other - v + pair.below * pair.above) / (slant + q) * (1 / (q * slant) - 1 + 2 / (1 + v))
            parts.append(ratio + v * rise)
            variances.append(v / 4 + v / math.pi * (v / ((1 + v) * q) + arctan2(v, q) / 2))
        # u Phi(u) = u/2 + an even function, whose gap this is
        even = (parts[0] + parts[1] + 2 * angle * pair.gap) / math.pi
        out = _from_gap(variances[0], variances[1], (pair.gap + even) / 4, jnp.zeros_like(cov))
        slope = cov / slant * (1 / slant**2 + 1 / (1 + v1) + 1 / (1 + v2))
        out = out._replace(above=_positive(2 * out.std1 * out.std2 - out.below))
        return out, 0.25 + (angle + slope) / (2 * math.pi)

    return dual


def _polynomial(*coefficients: float) -> Dual:
    r"""sum_l cov^l / l! E[p^(l)(u)] E[p^(l)(v)], the expectations of derivatives being polynomials in the variance."""
    degrees = range(len(coefficients))

    def mean(order: int, v: jax.Array) -> jax.Array:
        """E[p^(order)(u)] = sum_i c_(order + 2i) (order + 2i)! / (2^i i!) v^i."""
        out = jnp.zeros_like(v)
        for i in reversed(range((len(coefficients) - order + 1) // 2)):
            weight = coefficients[order + 2 * i] * math.factorial(order + 2 * i) / (2**i * math.factorial(i))
            out = out * v + weight
        return out

    def power_sum(order: int, x: jax.Array, y: jax.Array) -> jax.Array:
        """(x^order - y^order) / (x - y)."""
        return functools.reduce(lambda total, power: total * y + x**power, range(1, order), jnp.ones_like(x))

    def dual(pair: Pair) -> tuple[Pair, jax.Array]:
        product, cov = pair.std1 * pair.std2, pair.covariance
        gap = total = slope = jnp.zeros_like(cov)
        v1, v2 = jnp.zeros_like(pair.std1), jnp.zeros_like(pair.std2)
        for order in degrees:
            mean1, mean2 = mean(order, pair.std1**2), mean(order, pair.std2**2)
            weight, means = 1 / math.factorial(order), mean1 * mean2
            end1, end2 = pair.std1**order * mean1, pair.std2**order * mean2
            lengths = (end1 - end2) ** 2 / 2
            v1, v2 = v1 + weight * end1**2, v2 + weight * end2**2
            if order == 0:
                below, above = jnp.zeros_like(cov), 2.0
            else:
                below = pair.below * power_sum(order, product, cov)
                above = pair.above * power_sum(order, product, -cov) if order % 2 else product**order + cov**order
                slope = slope + means * cov ** (order - 1) / math.factorial(order - 1)
            gap = gap + weight * (lengths + means * below)
            total = total + weight * (lengths + means * above)
        return _from_gap(v1, v2, gap, total), slope

    return dual


def hermite_coefficients(degree: float) -> tuple[float, ...]:
    """The normalised Hermite polynomial as a plain one, constant first."""
    order = int(degree)
    plain = np.polynomial.hermite_e.herme2poly([0] * order + [1]) / math.sqrt(math.factorial(order))
    return tuple(plain.tolist())


_DUALS: dict[str, Callable[..., Dual]] = {
    "sign": _sign,
    "erf": _erf,
    "sigmoid_like": lambda: _erf(0.5, 1 / 2.4020563531719796, 0.5),
    "gelu": _gelu,
    "sin": _wave,
    "cos": lambda a, b, c: _wave(a, b, c + math.pi / 2),
    "rbf": lambda gamma: _wave(math.sqrt(2), math.sqrt(2 * gamma), math.pi / 4),
    "gabor": _gabor,
    "exp": _exp,
    "gaussian": _gaussian,
    "exp_normalized": _exp_normalized,
    "monomial": lambda degree: _polynomial(*[0.0] * int(degree), 1.0),
    "rectified_monomial": _rectified_monomial,
    "hermite": lambda degree: _polynomial(*hermite_coefficients(degree)),
    "polynomial": _polynomial,
}


def dual(activation: str) -> Dual:
    """The dual of an activation of `ACTIVATIONS` that is not piecewise linear."""
    name, parameters = parse_activation(activation)
    return _DUALS[name](*parameters)


def kernels(mlp: MLP, omega: jax.Array, inputs: Pair) -> jax.Array:
    """K_c of rows whose first layer's pre-activations, without bias, are `inputs`: shape (C, ...)."""
    phi, first = dual(mlp.activation), inputs.affine(1.0, mlp.b_std)

    def layer(state, weight):
        pair, tangent, out = state
        pair, derivative = phi(pair)
        pair = pair.affine(mlp.w_std, mlp.b_std)
        return (pair, *add_layer(mlp, weight, derivative, pair.covariance, tangent, out)), None

    weights, tangent, out = begin(mlp, omega, first.covariance)
    _, tangent, out = lax.scan(layer, (first, tangent, out), weights)[0]  # compiled once, whatever the depth
    return out + tangent if mlp.basis == "layers" else out


def begin(mlp: MLP, omega: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each layer's weights, and the tangent kernel and the sum over depths before the first layer, from Sigma^(1).

    With `add_layer` they add up sum_l omega[c, l] K^(l), shape (C, ...). Where the kernels are the layers'
    contributions the sum is that of the covariances, each weighted, as what a layer contributes passes through all
    later layers alike.
    """
    by_layer = mlp.basis == "layers"
    if mlp.basis == "increments":  # in terms of the depths
        omega = omega - jnp.pad(omega[:, 1:], ((0, 0), (0, 1)))
    columns = omega.T.reshape(*omega.T.shape, *(1,) * sigma.ndim)
    out = jnp.full((len(omega), *sigma.shape), mlp.readout_bias**2 - mlp.b_std**2, sigma.dtype)
    if by_layer:
        return columns[1:], columns[0] * sigma, out * columns[-1]
    return columns, sigma, out * jnp.sum(omega, axis=1).reshape(columns.shape[1:])


def add_layer(
    mlp: MLP, weight: jax.Array, derivative: jax.Array, sigma: jax.Array, tangent: jax.Array, out: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The tangent kernel and the sum after a layer of E[phi' phi'] = derivative and the next Sigma."""
    by_layer = mlp.basis == "layers"
    tangent = (weight * sigma if by_layer else sigma) + mlp.w_std**2 * derivative * tangent
    if not by_layer:
        out = out + weight * (tangent if mlp.kind == "ntk" else sigma)
    return tangent, out
