r"""Optimisers whose steps are sums over samples: SGD, Adam and AdamW with momentum, schedules and clipping.

All of them are one rule. With g_t the mean of the batch's gradients,

.. math::
    u_t = c_t g_t + \lambda w_t, \qquad m_t = \beta m_{t-1} + a u_t, \qquad
    D_t = -\eta_t \left( P_t (p_t m_t + q_t u_t) + \lambda' w_t \right) .

c_t is the factor that clips the gradient's norm and P_t, a diagonal matrix, the preconditioner:

 - SGD: a = 1, P_t = 1, and (p_t, q_t) = (1, 0), or (beta, 1) in Nesterov's form;
 - Adam: a = 1 - beta, P_t = 1 / (sqrt(v_t / (1 - b_2^t) + eps_root) + eps), v_t = b_2 v_(t-1) + (1 - b_2) u_t^2, and
   p_t = 1 / (1 - beta^t), q_t = 0 with t counted from 1; in Nesterov's form p_t = beta / (1 - beta^(t+1)),
   q_t = (1 - beta) / (1 - beta^t).

lambda is the weight decay that is added to the gradient, lambda' the one that is decoupled from it (AdamW).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nftk_jax.finite.settings import check_momentum, grows_by_decay, lower_decay
from nftk_jax.path_kernels.settings import DescentSettings
from nftk_jax.settings import check_number

Array = jax.Array
#: Learning rate of a step that is numbered from 0, as optax has it.
Schedule = Callable[[int], Any]


class SecondMoments(NamedTuple):
    """How Adam preconditions.

    Attributes:
      b2: share of the running mean of squares that a step keeps, from 0 to below 1.
      eps, eps_root: are added outside and inside the square root.
    """

    b2: float
    eps: float
    eps_root: float


class Coefficients(NamedTuple):
    """The numbers that change from step to step, shape (steps,) each.

    Attributes:
      rate: eta_t.
      on_momentum, on_gradient: p_t and q_t.
      second_correction: 1 - b_2^t, ones without second moments.
    """

    rate: Any
    on_momentum: Any
    on_gradient: Any
    second_correction: Any

    def part(self, steps: slice) -> Coefficients:
        """Those of some steps."""
        return Coefficients(*(one[steps] for one in self))


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """The rule of a step; see the module.

    Attributes:
      learning_rate: eta, one number or a schedule.
      clip: largest norm of the gradient; None does not clip.
      decay: lambda.
      decoupled_decay: lambda'.
      momentum: beta, from 0 to below 1.
      averages: whether a is 1 - beta, and p_t and q_t correct the bias of that; as in Adam.
      nesterov: whether the momentum has Nesterov's form.
      second: how Adam preconditions; None does not.

    Raises:
      ValueError: a value is out of range.
    """

    learning_rate: float | Schedule
    clip: float | None = None
    decay: float = 0.0
    decoupled_decay: float = 0.0
    momentum: float = 0.0
    averages: bool = False
    nesterov: bool = False
    second: SecondMoments | None = None

    def __post_init__(self) -> None:
        if not callable(self.learning_rate):
            check_number("learning_rate", self.learning_rate)
        if self.clip is not None:
            check_number("max_norm", self.clip)
        check_number("weight_decay", self.decay + self.decoupled_decay, zero=True)
        check_momentum(self.momentum)
        if self.second is not None:
            if not 0 <= self.second.b2 < 1:
                raise ValueError(f"b2 must be from 0 to below 1; got {self.second.b2!r}")
            check_number("eps", self.second.eps + self.second.eps_root)

    @classmethod
    def of(cls, settings: DescentSettings) -> Optimiser:
        """The optimiser that settings describe."""
        constant, nesterov = settings.schedule == "constant" and not settings.warmup, settings.nesterov
        piece = functools.partial(optax.adam, 1.0, nesterov=nesterov)
        if settings.optimiser == "sgd":
            piece = functools.partial(optax.sgd, 1.0, settings.momentum, nesterov)
        return dataclasses.replace(
            read_optax(piece),
            learning_rate=settings.learning_rate if constant else settings.rate,
            clip=settings.clip,
            **{"decoupled_decay" if settings.optimiser == "adamw" else "decay": settings.weight_decay},
        )

    @property
    def share(self) -> float:
        """a, the share of a step's gradient in the momentum."""
        return 1 - self.momentum if self.averages else 1.0

    def coefficients(self, steps: int, dtype: Any) -> Coefficients:
        """The coefficients of every step, shape (steps,), rounded to a dtype.

        Raises:
          ValueError: the schedule gives a learning rate that is negative or not finite.
        """
        rate, beta, t = self.learning_rate, self.momentum, np.arange(1, steps + 1)
        rates = np.array([float(rate(step)) for step in range(steps)]) if callable(rate) else np.full(steps, rate)
        if not (np.isfinite(rates) & (rates >= 0)).all():
            step = int(np.argmin(np.isfinite(rates) & (rates >= 0)))
            raise ValueError(f"learning_rate must be finite and >= 0; the schedule gives {rates[step]} for step {step}")
        on_momentum, on_gradient = np.ones(steps), np.zeros(steps)
        if self.averages:
            on_momentum = 1 / (1 - beta**t)
        if self.nesterov and beta:
            on_momentum = beta / (1 - beta ** (t + 1)) if self.averages else np.full(steps, beta)
            on_gradient = (1 - beta) / (1 - beta**t) if self.averages else np.ones(steps)
        correction = np.ones(steps) if self.second is None else 1 - self.second.b2**t
        return Coefficients(*(np.asarray(one, dtype) for one in (rates, on_momentum, on_gradient, correction)))

    def remedy(self, coefficients: Coefficients) -> str:
        """What to lower where the training diverges."""
        rate, coupled = float(coefficients.rate.max()), 0.0 if self.second else self.decay
        decays = (coupled, self.momentum), (self.decoupled_decay, 0.0)
        for decay, momentum in decays:
            if grows_by_decay(rate, decay, momentum):
                return lower_decay("weight_decay", decay, "learning_rate", rate)
        return f"lower `learning_rate`, {rate:g} now"


def precondition(second: Array, correction: Any, eps: Any, eps_root: Any) -> Array:
    """P_t of one parameter from its running mean of squares v_t, same shape."""
    return 1 / (jnp.sqrt(second / correction + eps_root) + eps)


def read_optax(*pieces: functools.partial[Any]) -> Optimiser:
    """The optimiser that a chain of optax's transformations is.

    A transformation of optax does not tell its numbers. So each piece is given as the function that makes it, with its
    arguments, in the order of `optax.chain`: first clipping, last the learning rate.

    >>> from functools import partial
    >>> rates = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)
    >>> chain = partial(optax.clip_by_global_norm, 1.0), partial(optax.adamw, rates, weight_decay=0.01)
    >>> optimiser = read_optax(*chain)
    >>> optimiser.clip, optimiser.momentum, optimiser.second.b2, optimiser.decoupled_decay
    (1.0, 0.9, 0.999, 0.01)

    Args:
      pieces: partials of sgd, adam, adamw, nadam, nadamw, clip_by_global_norm, add_decayed_weights, trace,
        scale_by_adam and scale_by_learning_rate.

    Raises:
      ValueError: a piece, one of its arguments or its place in the chain is not known; a value is out of range.
    """
    fields: dict[str, Any] = {}
    reached = -1
    for name, arguments in (simple for piece in pieces for simple in _simple_pieces(piece)):
        stage = _STAGES.get(name, 3 if reached >= 2 else 1)
        if stage <= reached:
            raise ValueError(f"{name} must not follow what is before it in the chain; the order is {_ORDER}, each once")
        fields |= _read(name, arguments, stage)
        reached = stage
    if "learning_rate" not in fields:
        raise ValueError(
            "the chain must end with a learning rate: add functools.partial(optax.scale_by_learning_rate, 0.1)"
        )
    return Optimiser(**fields)


#: Places of the pieces in a chain; add_decayed_weights has two, 1 and 3.
_STAGES = {"clip_by_global_norm": 0, "trace": 2, "scale_by_adam": 2, "scale_by_learning_rate": 4}
_ORDER = "clip_by_global_norm, add_decayed_weights, trace or scale_by_adam, add_decayed_weights, scale_by_learning_rate"
_KNOWN = (*_STAGES, "add_decayed_weights", "sgd", "adam", "adamw")


def _simple_pieces(piece: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pieces that one is made of, by name, with all of their arguments."""
    name, arguments = _arguments(piece)
    if name == "sgd":
        if arguments["momentum"] is not None:
            own = {key: arguments[key] for key in ("nesterov", "accumulator_dtype")}
            yield "trace", {"decay": arguments["momentum"], **own}
    elif name in ("adam", "adamw"):
        own = {key: arguments[key] for key in ("b1", "b2", "eps", "eps_root", "mu_dtype", "nesterov")}
        yield "scale_by_adam", own
        if name == "adamw":
            yield "add_decayed_weights", {key: arguments[key] for key in ("weight_decay", "mask")}
    else:
        yield name, arguments
        return
    yield "scale_by_learning_rate", {"learning_rate": arguments["learning_rate"]}


def _arguments(piece: Any) -> tuple[str, dict[str, Any]]:
    """The name of the function of optax that a partial calls, and its arguments, defaults included."""
    if not isinstance(piece, functools.partial):
        found = type(piece).__name__ if not callable(piece) else getattr(piece, "__name__", type(piece).__name__)
        raise ValueError(
            "every piece of the chain must be a functools.partial of the function of optax that makes it, such as "
            f"functools.partial(optax.adamw, 1e-3), because a transformation does not tell its numbers; got {found}"
        )
    while isinstance(piece.func, functools.partial):  # such as optax.nadam, adam with an argument
        piece = functools.partial(
            piece.func.func, *piece.func.args, *piece.args, **piece.func.keywords | piece.keywords
        )
    for name in _KNOWN:
        if piece.func is getattr(optax, name):
            try:
                bound = inspect.signature(piece.func).bind(*piece.args, **piece.keywords)
            except TypeError as error:
                raise ValueError(f"{name}: {error}") from None
            bound.apply_defaults()
            return name, dict(bound.arguments)
    called = getattr(piece.func, "__name__", repr(piece.func))
    raise ValueError(f"{called} is not a known piece of an optimiser; known are {', '.join(sorted(_KNOWN))}")


def _read(name: str, arguments: dict[str, Any], stage: int) -> dict[str, Any]:
    """Fields of `Optimiser` from the arguments of one simple piece.

    Raises:
      ValueError: an argument has a value that is not known.
    """
    numbers = dict(arguments)
    for key, known in {"mask": None, "mu_dtype": None, "accumulator_dtype": None, "flip_sign": True}.items():
        if numbers.pop(key, known) is not known:
            raise ValueError(f"{key} of {name} must be {known}; other values are not known")
    nesterov, rate = bool(numbers.pop("nesterov", False)), numbers.pop("learning_rate", None)
    if name == "scale_by_learning_rate":
        # optax calls a schedule with its count, an int32, which decides the precision of the rate.
        scheduled = callable(rate) and (lambda step: rate(jnp.asarray(step, jnp.int32)))
        return {"learning_rate": scheduled or _number("learning_rate", rate)}
    values = {key: _number(key, value) for key, value in numbers.items()}
    if name == "clip_by_global_norm":
        return {"clip": values["max_norm"]}
    if name == "add_decayed_weights":
        return {"decay" if stage == 1 else "decoupled_decay": values["weight_decay"]}
    if name == "trace":
        return {"momentum": values["decay"], "nesterov": nesterov}
    second = SecondMoments(values["b2"], values["eps"], values["eps_root"])
    return {"momentum": values["b1"], "averages": True, "nesterov": nesterov, "second": second}


def _number(key: str, value: Any) -> float:
    """One number as a float.

    Raises:
      ValueError: it is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key} must be a number; got {value!r}")
    return number
