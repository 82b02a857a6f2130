"""The plan of a search: kernels in memory where they fit and are quick, else as many as it starts on, and why."""

from __future__ import annotations

import dataclasses

import pytest

from nftk_jax.solvers.machine import Machine
from nftk_jax.solvers.plan import GIB, Sizes, plan_fit
from nftk_jax.solvers.search_plan import TOLERANCE, plan_search

MACHINE = Machine(
    devices=1, memory=20 * GIB, shared_memory=1, flops=8e10, entries=2.4e9, stored_entries=4.4e9, factor_rows=46_340
)
MNIST = Sizes(
    n_train=60_000, n_search=3000, n_test=10_000, n_features=784, n_classes=10, depth=10, itemsize=4, start_rows=3000
)


def search_on(n, sizes=MNIST, **machine):
    return plan_search(dataclasses.replace(sizes, n_search=n), dataclasses.replace(MACHINE, **machine))


@pytest.mark.parametrize("n", [600, 3000, 6000])
def test_kernels_that_fit_and_take_seconds_are_kept(n):
    plan = search_on(n)
    assert (plan.dense_rows, plan.solve) == (n, None)
    assert [stage.name for stage in plan.stages] == ["kernels", "search"]


def test_a_search_beyond_memory_starts_on_fewer_rows_and_fits():
    plan, small = search_on(30_000), 8 * GIB
    assert plan.dense_rows == 3000
    assert plan.solve is not None
    assert (plan.solve.solver, plan.solve.tolerance) == ("cg", TOLERANCE)
    assert "30000 rows do not fit memory" in plan.reason
    assert search_on(30_000, memory=small).peak_bytes <= small
    assert search_on(6000, memory=2 * GIB).solve is not None


def test_of_two_that_fit_the_quicker_is_chosen():
    plan = search_on(12_000)
    assert plan.solve is not None
    assert "would take longer" in plan.reason
    assert plan.seconds < search_on(12_000, dataclasses.replace(MNIST, start_rows=None)).seconds
    assert search_on(12_000, stored_entries=1e8, entries=1e8).solve is None


def test_an_objective_that_needs_matrices_keeps_all_kernels_and_is_told_how_many_fit():
    sizes = dataclasses.replace(MNIST, start_rows=None, n_search=30_000)
    plan = plan_fit(sizes, MACHINE)
    assert (plan.search.dense_rows, plan.search.solve) == (30_000, None)
    with pytest.raises(MemoryError, match=r"`n_search=\d+`") as caught:
        plan.check()
    message = str(caught.value)
    rows = int(message.split("`n_search=")[1].split("`")[0])
    assert plan_fit(dataclasses.replace(sizes, n_search=rows), MACHINE).fits
    assert not plan_fit(dataclasses.replace(sizes, n_search=rows + 1000), MACHINE).fits


def test_every_fold_has_its_own_solver():
    one, five = (search_on(30_000, dataclasses.replace(MNIST, folds=folds)) for folds in (1, 5))
    assert five.peak_bytes <= MACHINE.memory
    assert five.stages[-1].bytes > 2 * one.stages[-1].bytes
    assert five.seconds > 4 * one.seconds


def test_kernels_of_groups_are_factored_rather_than_iterated_over():
    groups = dataclasses.replace(MNIST, depth=17, geometries=17, n_columns=2 * 784, start_rows=2683)
    plan = search_on(15_000, groups)
    assert plan.solve is not None
    assert plan.solve.solver == "cholesky"


def test_the_plan_of_a_fit_shows_the_stages_of_its_search():
    plan = plan_fit(dataclasses.replace(MNIST, n_search=30_000), MACHINE)
    assert [stage.name for stage in plan.stages][:3] == ["kernels", "search", "search, more rows"]
    assert plan.fits
