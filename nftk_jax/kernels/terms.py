"""What one group of features adds to a sum of kernels: its terms, from angles, and angles of nearly parallel rows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from nftk_jax.kernels import tiles
from nftk_jax.kernels.series import Form, evaluate, of_distance

#: Of the terms of a group, and whether the lengths of the inputs are factors.
Forms = tuple[tuple[Form, bool], ...]


def _term(form: Form, radial: bool, series: jax.Array, t, delta, r1, r2) -> jax.Array:
    """One term of one group from angles, their 1 - cos and the lengths."""
    if not form.is_series:
        if form.basis == "linear":
            at = r1[:, None] * r2 * (1 - delta)
        else:
            at = of_distance(form.basis, (r1[:, None] - r2) ** 2 + 2 * r1[:, None] * r2 * delta)
        return series[..., 0].reshape(series.shape[:-1] + (1,) * (2 * (series.ndim > 1))) * at
    k = evaluate(form, series, t)
    return k * (r1[:, None] * r2) if radial else k


def sum_terms(forms: Forms, series: Any, t: jax.Array, delta: jax.Array, lengths1: Any, lengths2: Any) -> jax.Array:
    """All terms of one group, of every class."""
    found = [
        _term(*form, own, t, delta, r1, r2) for form, own, r1, r2 in zip(forms, series, lengths1, lengths2, strict=True)
    ]
    return functools.reduce(jnp.add, found)


def exact_complements(u1: jax.Array, u2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """1 - cos and 1 + cos of unit rows (m, p) and (n, p), shape (m, n), to about 1e-11 (1e-21) beside their rounding.

    u = a + b with a on a grid so coarse that products of two a, and sums of these up to 2, are exact. Then 1 - <a, a'>
    is exact too, and what is left to subtract is small. It also holds (1 - |u|^2) / 2 of both rows, which are unit
    vectors up to rounding alone: |u - u'|^2 / 2 = 1 - <u, u'> - (1 - |u|^2) / 2 - (1 - |u'|^2) / 2.
    """
    grid = 2.0 ** (jnp.finfo(u1.dtype).nmant // 2)
    a1, a2 = (jnp.round(u * grid) / grid for u in (u1, u2))
    b1, b2 = u1 - a1, u2 - a2
    main = tiles.dot(a1, a2)
    rest = tiles.dot(jnp.concatenate([u1, b1], axis=1), jnp.concatenate([b2, a2], axis=1))
    short1, short2 = (
        jnp.where(jnp.any(u != 0, axis=1), (1 - jnp.sum(a * a, axis=1)) - jnp.sum((u + a) * b, axis=1), 0) / 2
        for u, a, b in ((u1, a1, b1), (u2, a2, b2))
    )
    rest_near, rest_far = (sign * rest + (short1[:, None] + short2) for sign in (1, -1))
    return jnp.maximum((1 - main) - rest_near, 0), jnp.maximum((1 + main) - rest_far, 0)
