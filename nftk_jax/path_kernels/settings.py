"""Settings of the descent whose path is recorded, without JAX."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from nftk_jax.finite.settings import check_momentum
from nftk_jax.settings import check_choice, check_count, check_number

OptimiserName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "linear", "cosine"]


@dataclasses.dataclass(frozen=True)
class DescentSettings:
    """Steps of an optimiser.

    Attributes:
      steps: number of steps T.
      learning_rate: epsilon; where there is a schedule, its largest value.
      batch_size: samples of a step; None takes all of them.
      momentum: mu of sgd, from 0 to below 1.
      weight_decay: lambda >= 0. It is added to the gradient by sgd and adam, and taken from the parameters by adamw.
      optimiser: the rule of a step. adam and adamw keep optax's b1, b2 and eps.
      nesterov: Nesterov's form of the momentum, of sgd with `momentum` and of adam and adamw.
      schedule: how the learning rate falls after the warm-up. linear and cosine reach 0 after the last step.
      warmup: steps over which the learning rate rises from 0.
      clip: largest Euclidean norm of the batch's gradient, all parameters together; longer ones are scaled down to it.

    Raises:
      ValueError: a value is out of range, or has no meaning for the optimiser.
    """

    steps: int
    learning_rate: float
    batch_size: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimiser: OptimiserName = "sgd"
    nesterov: bool = False
    schedule: ScheduleName = "constant"
    warmup: int = 0
    clip: float | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        check_number("learning_rate", self.learning_rate)
        check_momentum(self.momentum)
        check_number("weight_decay", self.weight_decay, zero=True)
        check_choice("optimiser", self.optimiser, OptimiserName)
        check_choice("schedule", self.schedule, ScheduleName)
        check_count("warmup", self.warmup, least=0)
        if self.clip is not None:
            check_number("clip", self.clip, instead="None for no clipping")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup must be below the {self.steps} `steps`; got {self.warmup}")
        if self.optimiser != "sgd" and self.momentum:
            raise ValueError(f"momentum must be 0 for {self.optimiser}, which has its own; got {self.momentum:g}")
        if self.nesterov and self.optimiser == "sgd" and not self.momentum:
            raise ValueError("nesterov must go with a `momentum` above 0, or with adam or adamw")

    def rate(self, step: int) -> float:
        """The learning rate of a step, numbered from 0: that of optax's schedules of these names."""
        if step < self.warmup:
            return self.learning_rate * step / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self.learning_rate * left[self.schedule]
