"""Settings of the descent whose path is recorded, without JAX."""

from __future__ import annotations

import dataclasses

from nftk_jax.finite.settings import check_momentum
from nftk_jax.settings import check_count, check_number


@dataclasses.dataclass(frozen=True)
class DescentSettings:
    """Gradient descent.

    Attributes:
      steps: number of steps T.
      learning_rate: epsilon.
      batch_size: samples of a step; None takes all of them.
      momentum: mu, from 0 to below 1.
      weight_decay: lambda >= 0.

    Raises:
      ValueError: a value is out of range.
    """

    steps: int
    learning_rate: float
    batch_size: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        check_number("learning_rate", self.learning_rate)
        check_momentum(self.momentum)
        check_number("weight_decay", self.weight_decay, zero=True)
