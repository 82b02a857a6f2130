"""Settings of finite networks and of their training, without JAX: the flags of `python -m nftk_jax.compare`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from nftk_jax.settings import check_choice, check_count, check_number

ParametrisationName = Literal["standard", "ntk"]
ReadoutsName = Literal["last", "all"]
OmegaStartName = Literal["ones", "xavier", "half-normal"]
PositivityName = Literal["project", "clip"]
LossName = Literal["mse", "cross-entropy"]


def check_momentum(value: float) -> None:
    """Raise ValueError unless 0 <= `value` < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"momentum must be from 0 to below 1; got {value!r}")


def grows_by_decay(rate: float, decay: float, momentum: float = 0.0) -> bool:
    """Whether steps of gradient descent on weight decay alone, lambda/2 |w|^2, make the parameters grow.

    With momentum mu, w_(t+1) - (1 + mu - rate lambda) w_t + mu w_(t-1) = 0 has a root below -1 where rate lambda is
    above 2 (1 + mu).
    """
    return rate * decay > 2 * (1 + momentum)


def lower_decay(name: str, decay: float, rate_name: str, rate: float) -> str:
    """The remedy where `grows_by_decay`."""
    return f"lower `{name}` (now {decay:g}), which alone makes the parameters grow with `{rate_name}` {rate:g}"


@dataclasses.dataclass(frozen=True)
class FiniteSettings:
    """The networks of finite width, besides their depth and activation. Fields of `NetworkSettings`.

    Raises:
      ValueError: the width is not a whole number >= 1, or a name is not known.
    """

    width: int = 256
    """Units in every hidden layer of the finite networks."""
    parametrisation: ParametrisationName = "standard"
    """standard: weights start Xavier normal; ntk: unit normal, and scaled by the width in the forward pass."""
    omega_start: OmegaStartName = "xavier"
    """Omega of the finite networks at the start. Half of a Xavier draw is negative, and so zero after one step."""
    omega_positivity: PositivityName = "project"
    """How Omega stays at least 0. project: after every step; clip: as max(Omega, 0) in the forward pass."""

    def __post_init__(self) -> None:
        check_count("width", self.width)
        check_choice("parametrisation", self.parametrisation, ParametrisationName)
        check_choice("omega_start", self.omega_start, OmegaStartName)
        check_choice("omega_positivity", self.omega_positivity, PositivityName)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How the finite networks are trained. The defaults are the paper's for MNIST.

    Raises:
      ValueError: a value is out of range.
    """

    batch_size: int = 50
    """Rows per step. The last batch of an epoch may be smaller."""
    learning_rate: float = 0.02
    """Learning rate of all parameters but Omega, the paper's eta_theta."""
    omega_learning_rate: float = 0.05
    """Learning rate of Omega, the paper's eta_Omega."""
    weight_decay: float = 2e-6
    """Weight decay of all parameters, Omega included."""
    momentum: float = 0.0
    """Momentum, at least 0 (none) and below 1."""
    loss: LossName = "mse"
    """mse: the mean over a batch of the squared error, summed over outputs; cross-entropy: that of the softmax."""
    epochs: int = 10
    """Passes over the training rows."""

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_count("epochs", self.epochs)
        check_number("learning_rate", self.learning_rate)
        check_number("omega_learning_rate", self.omega_learning_rate)
        check_number("weight_decay", self.weight_decay, zero=True)
        check_momentum(self.momentum)
        check_choice("loss", self.loss, LossName)

    def remedy(self) -> str:
        """What to lower where the training diverges."""
        rates = {name: getattr(self, name) for name in ("learning_rate", "omega_learning_rate")}
        for name, rate in rates.items():
            if grows_by_decay(rate, self.weight_decay, self.momentum):
                return lower_decay("weight_decay", self.weight_decay, name, rate)
        return "lower " + " or ".join(f"`{name}` (now {rate:g})" for name, rate in rates.items())


@dataclasses.dataclass(frozen=True)
class AlternatingSettings:
    """How the alternating minimisation runs.

    Attributes:
      rounds: how often theta and Omega take turns.
      theta_steps: most steps on theta in one round.
      omega_steps: steps on Omega in one round; 0 keeps Omega fixed.
      learning_rate: eta_theta of eq. 13.
      omega_learning_rate: eta_Omega of eq. 16.
      anchor: lambda of eq. 13, >= 0, the pull of theta towards its start.
      theta_tolerance: theta has converged when the norm of its gradient, the anchor's included, is below this share of
        its norm at the start of the round.

    Raises:
      ValueError: a value is out of range.
    """

    rounds: int = 10
    theta_steps: int = 1000
    omega_steps: int = 1
    learning_rate: float = 0.1
    omega_learning_rate: float = 0.05
    anchor: float = 1e-3
    theta_tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_count("rounds", self.rounds)
        check_count("theta_steps", self.theta_steps)
        check_count("omega_steps", self.omega_steps, least=0)
        check_number("anchor", self.anchor, zero=True)
        for name in ("learning_rate", "omega_learning_rate", "theta_tolerance"):
            check_number(name, getattr(self, name))

    def remedy(self) -> str:
        """What to lower where the minimisation diverges."""
        if grows_by_decay(self.learning_rate, self.anchor):
            return lower_decay("anchor", self.anchor, "learning_rate", self.learning_rate)
        return (
            f"lower `learning_rate` (now {self.learning_rate:g}) or `omega_learning_rate` (now "
            f"{self.omega_learning_rate:g})"
        )
