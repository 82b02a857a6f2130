"""The plan: memory that fits, the solver it chooses, rates of its model, and refusals that name what would fit."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from nftk_jax import MLP, RBF
from nftk_jax.kernels import operators
from nftk_jax.learn import make_plan
from nftk_jax.settings import LearnSettings, gather
from nftk_jax.solvers import plan
from nftk_jax.solvers.machine import H100, Machine
from nftk_jax.solvers.plan import GIB, Sizes, plan_fit

MNIST = Sizes(n_train=60_000, n_search=3000, n_test=10_000, n_features=784, n_classes=10, depth=10, itemsize=4)
LAPTOP = Machine(
    devices=1, memory=20 * GIB, shared_memory=1, flops=8e10, entries=2.4e9, stored_entries=2.4e9, factor_rows=46_340
)


def rows(n, sizes=MNIST):
    return dataclasses.replace(sizes, n_train=n, n_search=min(n, 3000))


def seconds(solver, n, machine=LAPTOP):
    return plan_fit(rows(n), machine, solver).solve.seconds - (0 if solver == "cholesky" else plan.START_SECONDS)


def test_auto_factors_what_takes_seconds_and_iterates_over_what_does_not_fit():
    assert plan_fit(rows(3000), LAPTOP).solve.solver == "cholesky"
    middle = plan_fit(rows(8000), LAPTOP).solve
    assert (middle.solver, middle.preconditioner) == ("cg", "factor")
    assert "quicker than one factorisation per class" in middle.reason
    large = plan_fit(MNIST, LAPTOP)
    assert (large.solve.solver, large.solve.preconditioner) == ("cg", "low-rank")
    assert large.fits
    assert "only exact solver that fits" in large.solve.reason


@pytest.mark.parametrize("memory", [4, 8, 16, 32])
@pytest.mark.parametrize("n", [3000, 12_000, 60_000])
def test_what_auto_chooses_fits_wherever_an_exact_solver_does(n, memory):
    chosen = plan_fit(rows(n), dataclasses.replace(LAPTOP, memory=memory * GIB))
    exact = [solve for solve in chosen.alternatives if solve.solver != "nystroem"]
    assert any(solve.peak_bytes <= memory * GIB for solve in exact) == (chosen.solve.peak_bytes <= memory * GIB)
    assert all(math.isfinite(stage.seconds) and stage.bytes < 2**50 for s in exact for stage in s.stages)


def test_auto_approximates_where_an_exact_solve_would_take_more_than_an_hour():
    million = dataclasses.replace(rows(1_000_000), n_features=20, n_classes=1, n_kernels=1)
    chosen = plan_fit(million, LAPTOP)
    assert min(solve.seconds for solve in chosen.alternatives if solve.solver != "nystroem") > 3600
    assert (chosen.solve.solver, chosen.solve.reason) == ("nystroem", "the exact solvers would take more than an hour")
    assert chosen.peak_bytes < 12 * GIB
    assert plan_fit(million, LAPTOP, "cg").solve.solver == "cg"
    assert plan_fit(MNIST, LAPTOP).solve.solver == "cg"


def test_kernels_that_take_more_passes_get_a_larger_rank():
    one = dataclasses.replace(MNIST, n_kernels=1)
    relu, rbf = (plan_fit(dataclasses.replace(one, relative_passes=k), LAPTOP, "cg").solve for k in (1.0, 2.6))
    assert rbf.rank == 2 * relu.rank
    assert rbf.seconds > 1.3 * relu.seconds
    kernels = MLP(3), RBF(2.0), RBF(2.0).on([0, 1]) + MLP(2).on([1, 2])
    stages = [make_plan((60_000, 20), 1, 0, kernel, LearnSettings()).alternatives[1].seconds for kernel in kernels]
    assert stages[0] < min(stages[1:])


def test_nystroem_iterates_on_the_host_where_summing_would_take_longer():
    def sample(n, machine=LAPTOP, **changes):
        return plan_fit(dataclasses.replace(rows(n), n_features=20, **changes), machine, "nystroem").solve.sample

    assert sample(1_000_000) == 3 * 4096
    assert sample(1_000_000, landmarks=64) == 0  # few landmarks: summing costs less than eight passes
    assert sample(15_000) == 0  # the preconditioner would have as many rows
    assert sample(1_000_000, H100) == 0


def test_angles_take_what_memory_the_rest_leaves():
    whole = 4 * 60_000 * 60_512 / 2
    assert whole <= plan_fit(MNIST, LAPTOP, "cg").solve.store_bytes <= 1.02 * whole
    small = plan_fit(MNIST, dataclasses.replace(LAPTOP, memory=6 * GIB), "cg").solve
    assert 0 < small.store_bytes < whole
    assert small.peak_bytes <= 6 * GIB
    assert small.seconds > plan_fit(MNIST, LAPTOP, "cg").solve.seconds


@pytest.mark.parametrize("n", [3000, 8000, 8192, 8193, 60_000])
def test_every_tile_keeps_its_angles_where_memory_allows(n):
    size = operators.tile_rows(n, 1)
    across = operators.padded_rows(n, 1) // size
    tiles = across * (across + 1) // 2 * size**2 * 4
    store = plan_fit(rows(n), dataclasses.replace(LAPTOP, memory=2**40), "cg").solve.store_bytes
    assert tiles <= store <= 1.3 * tiles


def test_seconds_grow_with_the_cube_the_square_and_the_first_power_of_the_rows():
    assert seconds("cholesky", 800_000) / seconds("cholesky", 400_000) == pytest.approx(8, rel=0.02)
    # the rank that the preconditioner may take, and so the passes, grow a little with n
    roomy = dataclasses.replace(LAPTOP, memory=2**60)
    assert 4 < seconds("cg", 400_000, roomy) / seconds("cg", 200_000, roomy) < 5.5
    assert seconds("nystroem", 800_000) / seconds("nystroem", 400_000) == pytest.approx(2, rel=0.05)


def test_eight_devices_take_an_eighth_of_the_seconds_and_of_the_angles():
    one = plan_fit(rows(200_000), dataclasses.replace(H100, memory=2**60), "cg").solve
    eight = plan_fit(rows(200_000), dataclasses.replace(H100, memory=2**60, devices=8), "cg").solve
    assert eight.store_bytes == pytest.approx(one.store_bytes / 8, rel=1e-6)
    assert eight.seconds - plan.START_SECONDS == pytest.approx((one.seconds - plan.START_SECONDS) / 8, rel=0.3)


def test_a_refusal_names_rows_that_fit_and_not_many_fewer_than_could():
    refused = plan_fit(MNIST, LAPTOP, "cholesky")
    with pytest.raises(MemoryError, match=r"solve needs 5[0-9].* GiB and 20.0 GiB are free") as caught:
        refused.check()
    message = str(caught.value)
    assert "\n" not in message
    assert "`solver='cg'`" in message
    named = int(re.search(r"`n_train=(\d+)`", message)[1])
    assert plan_fit(rows(named), LAPTOP, "cholesky").fits
    assert not plan_fit(rows(named + 1000), LAPTOP, "cholesky").fits
    plan_fit(rows(named), LAPTOP, "cholesky").check()


def test_where_nothing_fits_the_rows_named_are_those_of_any_exact_solver():
    """The smallest is then not what was asked for: cg has the least bytes, but fits half of what Cholesky does."""
    machine = dataclasses.replace(LAPTOP, memory=GIB)
    many_classes = Sizes(n_train=400_000, n_search=500, n_test=100, n_features=10, n_classes=1000, depth=3, itemsize=4)
    refused = plan_fit(many_classes, machine)
    assert (refused.solve.solver, refused.solve.fits) == ("cg", False)
    with pytest.raises(MemoryError) as caught:
        refused.check()
    named = dataclasses.replace(many_classes, n_train=int(re.search(r"`n_train=(\d+)`", str(caught.value))[1]))
    assert plan_fit(named, machine).fits
    assert not plan_fit(named, machine, "cg").fits
    assert not plan_fit(dataclasses.replace(named, n_train=named.n_train + 1000), machine).fits
    assert plan_fit(named, machine).solve.fits
    assert "no other exact solver does" in plan_fit(named, machine).solve.reason


@pytest.mark.parametrize(("stored", "chosen"), [(2.4e9, "factor"), (4.4e9, "factor"), (1e12, "low-rank")])
def test_a_factor_is_preferred_unless_a_low_rank_saves_much(stored, chosen):
    machine = dataclasses.replace(LAPTOP, stored_entries=stored)
    sizes = dataclasses.replace(rows(8000), n_kernels=10)
    assert plan_fit(sizes, machine, "cg").solve.preconditioner == chosen


@pytest.mark.parametrize(
    ("kernel", "search", "systems"),
    [
        (RBF(1.0), {"ridge": 0.1}, 1),
        (RBF(1.0), {}, 10),  # a ridge of its own for every target, perhaps
        (MLP(2), {"ridge": 0.1}, 10),
        (MLP(2), {"weights": "shared"}, 1),
    ],
)
def test_what_has_one_kernel_and_one_ridge_is_factored_once(kernel, search, systems):
    assert make_plan((5000, 784), 10, 0, kernel, gather(LearnSettings, search)).sizes.kernels == systems
