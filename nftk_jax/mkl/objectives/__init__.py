r"""What Omega minimises: objectives J_c(omega_c) with exact gradients through the ridge solve (paper eqs. 9 and 16).

With K = sum_l omega_l Theta^(l), A = K + lambda I and a = A^{-1} y, one Cholesky factor per class gives value and
gradient. The gradients use dA^{-1} = -A^{-1} dA A^{-1}, so that no derivative passes through the factorisation itself.

To add an objective, write a subclass of `Objective` with its traits and `@objective("name")`, and add the name to
`nftk_jax.settings.ObjectiveName`.
"""

from nftk_jax.mkl.objectives.alignment import AlignmentObjective
from nftk_jax.mkl.objectives.base import OBJECTIVES, Evaluation, Minimand, Objective, make_objective, objective
from nftk_jax.mkl.objectives.held_out import HeldOutObjective, HeldOutSplit
from nftk_jax.mkl.objectives.leave_one_out import (
    EvidenceObjective,
    GeneralisedCrossValidationObjective,
    LeaveOneOutObjective,
)
from nftk_jax.mkl.objectives.reduced import ModelledObjective, ReducedObjective
from nftk_jax.mkl.objectives.train import TrainObjective
from nftk_jax.mkl.objectives.wrappers import LearnedRidgeObjective, PenalisedObjective, SharedObjective

__all__ = [
    "OBJECTIVES",
    "AlignmentObjective",
    "Evaluation",
    "EvidenceObjective",
    "GeneralisedCrossValidationObjective",
    "HeldOutObjective",
    "HeldOutSplit",
    "LearnedRidgeObjective",
    "LeaveOneOutObjective",
    "Minimand",
    "ModelledObjective",
    "Objective",
    "PenalisedObjective",
    "ReducedObjective",
    "SharedObjective",
    "TrainObjective",
    "make_objective",
    "objective",
]
