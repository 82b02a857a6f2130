"""What is said of a model without some of its rows, against refits without them in NumPy."""

from __future__ import annotations

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from nftk_jax import KernelFamily, KernelStack, NFTKClassifier, NFTKRegressor, load_model
from nftk_jax.kernels.combined import combined_kernel
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.model import left_out, systems

N = 34


@pytest.fixture
def data(rng):
    x = rng.normal(size=(N, 3))
    y = np.stack([3 + 2 * np.sin(2 * x[:, 0]), x[:, 1] * x[:, 2], x[:, 0]], axis=1) + 0.1 * rng.normal(size=(N, 3))
    return x, y, rng.normal(size=(7, 3)), rng.uniform(0.3, 3, N)


def targets(name, y):
    """One problem of each kind: what the estimator is, and what it is fitted to."""
    gaps = y.copy()
    gaps[:9, 0], gaps[5:20, 2] = np.nan, np.nan
    labels = np.array(["low", "middle", "high"])[np.digitize(y[:, 2], [-0.5, 0.5])]
    return (NFTKClassifier, labels) if name == "classes" else (NFTKRegressor, gaps if name == "missing" else y)


CASES = {
    "classes": {},
    "targets": {},
    "weights": {"objective": "evidence"},
    "missing": {"objective": "loo"},
    "learned ridge": {"ridge": "learned"},
    "cg": {"solver": "cg", "solver_tolerance": 1e-13, "ridge": 0.1},
    "one kernel": {"weights": "uniform", "ridge": 1e-3},
}


def fit(name, data):
    x, y, _, weight = data
    kind, given = targets(name, y)
    settings = {"depth": 2, "precision": "float64"} | CASES[name]
    return kind(**settings).fit(x, given, weight if name in ("weights", "missing", "classes") else None)


def refits(model, x, given, x_new):
    """A function of the rows to keep: scores of new and of training rows, (m + n, C), by the system of these rows.

    Omega, ridge and centring are the model's.
    """
    with enable_x64():
        both = np.vstack([model.scaled(x, np.float64), model.scaled(x_new, np.float64)])
        k = np.asarray(combined_kernel(model.kernel, model.kernel_omega, both))
    noise = model.ridge[:, None] / (np.ones(N) if model.weight is None else model.weight)
    y = (model.encode(given, N) - model.target_mean) / model.target_scale

    def solve(keep):
        found = np.empty((N + len(x_new), len(noise)))
        for c in range(len(noise)):
            rows = np.flatnonzero(keep & ~np.isnan(y[:, c]))
            alpha = np.linalg.solve(k[c][np.ix_(rows, rows)] + np.diag(noise[c, rows]), y[rows, c])
            found[:, c] = np.roll(k[c], -N, axis=0)[:, rows] @ alpha
        return found * model.target_scale + model.target_mean

    return solve


@pytest.mark.parametrize("name", CASES)
def test_influences_and_left_out_predictions_are_those_of_n_refits(name, data):
    x, y, x_new, _ = data
    estimator, given = fit(name, data), targets(name, y)[1]
    model = estimator.model_
    whole, change, left_out = model.decision_function(x_new), estimator.influence(x_new), estimator.loo_predictions_
    refit = refits(model, x, given, x_new)
    np.testing.assert_allclose(refit(np.ones(N, bool))[:7], whole, atol=1e-8)
    assert change.shape == (7, N, 3)
    for i in range(N):
        found = refit(np.arange(N) != i)
        np.testing.assert_allclose(whole + change[:, i], found[:7], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(left_out[i], found[7 + i], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["classes", "missing", "cg"])
def test_groups_of_rows_are_removed_together(name, data):
    x, y, x_new, _ = data
    estimator, given = fit(name, data), targets(name, y)[1]
    whole, refit = estimator.model_.decision_function(x_new), refits(estimator.model_, x, given, x_new)
    for rows in ([3], [0, 7, 30], range(5, 25), np.arange(N) % 3 == 0, []):
        keep = np.ones(N, bool)
        keep[np.asarray(rows, bool if isinstance(rows, np.ndarray) else int)] = False
        found = estimator.influence(x_new, rows=rows)
        np.testing.assert_allclose(whole + found, refit(keep)[:7], rtol=1e-8, atol=1e-8)
    everyone = estimator.influence(x_new, rows=np.ones(N, bool))
    np.testing.assert_allclose(whole + everyone, np.tile(estimator.model_.target_mean, (7, 1)), atol=1e-8)
    np.testing.assert_allclose(estimator.influence(x_new)[:, 3], estimator.influence(x_new, rows=[3]), atol=1e-10)


@pytest.mark.parametrize("name", ["targets", "missing"])
def test_the_largest_influences_are_kept_in_tiles(name, data, monkeypatch):
    estimator = fit(name, data)
    whole = estimator.influence(data[0])
    monkeypatch.setattr(systems, "TILE_ROWS", 5)
    monkeypatch.setattr(left_out, "available_memory", lambda: 0)  # no array of all changes
    rows, changes = estimator.influence(data[0], top=4)
    assert rows.shape == changes.shape == (N, 4, 3)
    order = np.argsort(-np.abs(whole), axis=1, kind="stable")[:, :4]
    np.testing.assert_allclose(changes, np.take_along_axis(whole, order, axis=1), atol=1e-12)
    np.testing.assert_array_equal(rows, order)
    rows, changes = estimator.influence(data[0][:2], top=N)
    np.testing.assert_array_equal(np.sort(rows, axis=1)[0, :, 0], np.arange(N))


def test_precomputed_kernels_are_given_as_numbers_or_as_a_stack(data):
    x, y, x_new, _ = data
    both = np.vstack([x, x_new])
    whole = KernelStack([np.exp(-((both[:, None] - both) ** 2).sum(axis=2) / width) for width in (1.0, 9.0)])
    rows, new = np.arange(N), np.arange(N, N + 7)
    model = NFTKRegressor(kernel="precomputed").fit(whole[np.ix_(rows, rows)], y)
    numbers = NFTKRegressor(kernel=KernelFamily.precomputed(whole)).fit(rows[:, None], y)
    stack = whole[np.ix_(new, rows)]
    np.testing.assert_allclose(
        model.influence([scipy.sparse.csr_array(k) for k in stack.matrices]), model.influence(stack), atol=1e-12
    )
    for call in (
        lambda m, q: m.influence(q),
        lambda m, q: m.influence(q, rows=[1, 2]),
        lambda m, q: m.predict_interval(q, 0.9),
        lambda m, _: m.loo_predictions_,
    ):
        np.testing.assert_allclose(call(model, stack), call(numbers, new[:, None]), atol=1e-9)


def test_a_float32_model_has_the_influences_of_float64(data):
    x, y, x_new, _ = data
    single, double = (
        NFTKRegressor(depth=2, weights="uniform", ridge=0.1, precision=precision).fit(x, y).influence(x_new)
        for precision in ("float32", "float64")
    )
    np.testing.assert_allclose(single, double, atol=1e-5)


def test_factors_on_a_device_with_its_own_memory_give_the_same(data, monkeypatch):
    """There they are JAX's arrays, and programs are compiled for few sizes."""
    estimator = fit("missing", data)
    model, x_new = estimator.model_, data[2]
    calls = (
        model.posterior_std,
        model.influence,
        lambda x: model.influence(x, rows=[3, 20]),
        lambda x: model.loo_predictions(),
    )
    expected = [call(x_new) for call in calls]
    model.factors.systems.clear()
    monkeypatch.setattr("nftk_jax.solvers.cholesky.near_lapack", jnp.asarray)
    for call, found in zip(calls, expected, strict=True):
        np.testing.assert_allclose(call(x_new), found, rtol=1e-9, atol=1e-12)
    assert not any(isinstance(system.lower, np.ndarray) for system in model.factors.systems.values())


def test_factors_are_kept_up_to_a_bound_and_not_pickled_saved_or_copied(data, monkeypatch, tmp_path):
    x_new = data[2]
    estimator = fit("missing", data)  # three systems
    model, factored = estimator.model_, []
    plain = systems.factor_ridge
    monkeypatch.setattr(systems, "factor_ridge", lambda *given, **named: factored.append(0) or plain(*given, **named))
    std, change = model.posterior_std(x_new), model.influence(x_new)
    for _ in range(2):
        np.testing.assert_array_equal(model.posterior_std(x_new), std)
        np.testing.assert_array_equal(model.influence(x_new), change)
    assert len(factored) == 3
    again = pickle.loads(pickle.dumps(estimator)).model_
    assert len(pickle.dumps(model)) < len(pickle.dumps(vars(model)))
    model.save(tmp_path)
    for other in (again, load_model(tmp_path)):
        factored.clear()
        np.testing.assert_array_equal(other.posterior_std(x_new), std)
        assert len(factored) == 3
    monkeypatch.setattr(systems, "KEPT_BYTES", 64 * 64 * 8 + 64 * 64)  # the two small ones
    other = load_model(tmp_path)
    factored.clear()
    for _ in range(2):
        np.testing.assert_array_equal(other.influence(x_new), change)
    assert len(factored) == 4


def test_what_does_not_fit_memory_is_refused_with_the_numbers(data, monkeypatch):
    estimator = fit("targets", data)
    monkeypatch.setattr(left_out, "available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match=r"7 rows without each of 34 training rows need 5\.3e-06 GiB.*use `top=10`"):
        estimator.influence(data[2])
    small = systems.this_machine()
    monkeypatch.setattr(systems, "this_machine", lambda: small.__class__(1, 1000, 1, 1.0, 1.0, 1.0))
    for call in (estimator.model_.posterior_std, lambda x: estimator.influence(x, top=1)):
        with pytest.raises(MemoryError, match=r"kernel of all 34 training rows in float64, which needs 0\.00012 GiB"):
            call(data[2])
    monkeypatch.setattr(systems, "this_machine", lambda: small.__class__(1, 10**12, 1, 1.0, 1.0, 1.0, factor_rows=30))
    with pytest.raises(MemoryError, match="its factorisation takes 30 rows: fit on fewer rows"):
        estimator.model_.posterior_std(data[2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top": 0}, "top must be a whole number >= 1; got 0"),
        ({"top": 35}, "top must be at most the 34 training rows; got 35"),
        ({"top": 2, "rows": [1]}, "leave out `top` or `rows`"),
        ({"rows": [34]}, "rows must be numbers of training rows from 0 to 33, or a mask of 34"),
        ({"rows": [-1]}, "rows must be numbers of training rows from 0 to 33"),
        ({"rows": np.ones(3, bool)}, "rows must be numbers of training rows from 0 to 33"),
        ({"rows": [0.5]}, "rows must be numbers of training rows from 0 to 33"),
    ],
)
def test_what_is_no_number_of_rows_is_refused_in_one_line(given, message, data):
    with pytest.raises(ValueError, match=message) as caught:
        fit("one kernel", data).influence(data[2], **given)
    assert "\n" not in str(caught.value)


def test_rows_too_far_away_are_refused_and_give_no_nan(data):
    estimator = fit("one kernel", data)
    far = data[2] * np.where(np.arange(7) == 5, 1e300, 1)[:, None]
    for call in (
        estimator.influence,
        lambda x: estimator.influence(x, top=1),
        lambda x: estimator.influence(x, rows=[1]),
    ):
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="on the scale of the training inputs"):
            call(far)
        with pytest.raises(ValueError, match="NaN"):
            call(np.full((1, 3), np.nan))


def test_landmarks_alone_have_no_left_out_predictions(data):
    model = NFTKRegressor(depth=1, solver="nystroem", landmarks=10, ridge=0.1).fit(*data[:2])
    for call in (
        lambda: model.loo_predictions_,
        lambda: model.influence(data[2]),
        lambda: model.predict_interval(data[2]),
    ):
        with pytest.raises(ValueError, match="need all training rows, and this model keeps the landmarks"):
            call()


# intervals and sets of labels


@pytest.mark.parametrize("name", ["targets", "missing"])
def test_intervals_are_the_jackknife_plus_by_its_definition(name, data):
    """Barber et al. 2021, from refits; with weights rows count by them."""
    x, y, x_new, _ = data
    estimator = fit(name, data)
    model = estimator.model_
    given, level = targets(name, y)[1], 0.85
    found, refit = estimator.predict_interval(x_new, level), refits(model, x, given, x_new)
    for c in range(3):
        rows = np.flatnonzero(~np.isnan(given[:, c]))
        left = np.array([refit(np.arange(N) != i)[[*range(7), 7 + i], c] for i in rows])
        left, at = left[:, :7], left[:, 7]
        residual = np.abs(given[rows, c] - at)[:, None]
        low, high = np.sort(left - residual, axis=0), np.sort(left + residual, axis=0)
        n = len(rows)
        if name == "targets":
            expected = low[int(np.floor(0.15 * (n + 1))) - 1], high[int(np.ceil(level * (n + 1))) - 1]
        else:
            weight = model.weight[rows] / model.weight[rows].mean()

            def weighted(values, weight=weight, n=n):
                order = np.argsort(values)
                return values[order][np.cumsum(weight[order]) >= level * (n + 1)][0]

            expected = (
                [-weighted(column) for column in (residual - left).T],
                [weighted(column) for column in (left + residual).T],
            )
        np.testing.assert_allclose(found[:, c].T, expected, rtol=1e-7, atol=1e-7)


def test_sets_of_labels_are_those_of_the_definition(data):
    """Romano et al. 2020, section 2.3, with the score of a label as its conformity."""
    x, y, x_new, _ = data
    labels = targets("classes", y)[1]
    estimator = NFTKClassifier(depth=2, precision="float64").fit(x, labels)
    level, place = 0.8, np.searchsorted(estimator.classes_, labels)
    better, refit = np.zeros((7, 3)), refits(estimator.model_, x, labels, x_new)
    for i in range(N):
        score = refit(np.arange(N) != i)
        better += score[7 + i, place[i]] > score[:7]
    found = estimator.predict_set(x_new, level)
    np.testing.assert_array_equal(found, better < level * (N + 1))
    assert found.any()
    assert not found.all()


def test_levels_that_so_few_rows_do_not_allow_are_refused(data):
    x, y, x_new, _ = data
    model = NFTKRegressor(depth=1).fit(x, y[:, 0])
    assert model.predict_interval(x_new, 34 / 35).shape == (7, 2)
    with pytest.raises(ValueError, match=r"level=0\.99 needs 99 training rows at least; got 34: use `level=0\.971`"):
        model.predict_interval(x_new, 0.99)
    assert model.predict_interval(x_new, 0.971).shape == (7, 2)
    for level in (0, 1, 95, "0.9", None, True):
        with pytest.raises(ValueError, match="level must be"):
            model.predict_interval(x_new, level)


def test_a_constant_target_has_intervals_and_deviations_of_no_width(data):
    model = NFTKRegressor(depth=1).fit(data[0], np.full(N, 3.0))
    np.testing.assert_array_equal(model.predict_interval(data[2]), 3.0)
    np.testing.assert_array_equal(model.predict(data[2], return_std=True)[1], 0.0)
    np.testing.assert_array_equal(model.model_.noise_std, 0.0)
