from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.ensemble import AdaBoostClassifier
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, ShuffleSplit, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from nftk_jax import KernelFamily, NFTKClassifier, NFTKRegressor, load_model
from nftk_jax.settings import LearnSettings, MLPSettings, flatten


@pytest.fixture
def blobs(rng):
    centres = rng.normal(size=(3, 4)) * 1.5
    y = rng.integers(0, 3, 60)
    return centres[y] + rng.normal(size=(60, 4)), y


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator",
    [kind(**given) for kind in (NFTKClassifier, NFTKRegressor) for given in ({"depth": 2}, {"kernel": "precomputed"})],
    ids=repr,
)
def test_scikit_learns_whole_battery_passes(estimator):
    checks = "check_positive_only_tag_during_fit", "check_estimators_dtypes", "check_decision_proba_consistency"
    known = dict.fromkeys(checks, "gives it no kernel") if estimator.kernel == "precomputed" else {}
    results = check_estimator(estimator, on_fail=None, expected_failed_checks=known)
    assert not [result for result in results if result["status"] == "failed"]


def test_digits_are_read():
    x, x_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)
    model = NFTKClassifier(depth=3, n_search=500).fit(x, y)
    assert model.score(x_test, y_test) > 0.97
    assert model.omega_.shape == (10, 3)
    np.testing.assert_allclose(model.kernel_omega_, model.omega_ / model.scale_)


def test_string_labels_cross_validation_pipeline_and_grid_search():
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    pipeline = make_pipeline(StandardScaler(), NFTKClassifier(depth=1))
    search = GridSearchCV(pipeline, {"nftkclassifier__b_std": [0.0, 0.5]}, cv=2).fit(x, names)
    assert search.score(x, names) > 0.9
    assert cross_val_score(NFTKClassifier(depth=1, b_std=0.5), x, names, cv=2).mean() > 0.9


def test_two_classes_have_one_margin_that_agrees_with_labels_and_probabilities(rng):
    x = rng.normal(size=(60, 3))
    y = np.where(x[:, 0] + x[:, 1] > 0, "yes", "no")
    model = NFTKClassifier(depth=2).fit(x, y)
    np.testing.assert_array_equal(model.decision_function(x) > 0, model.predict(x) == "yes")
    np.testing.assert_array_equal(model.predict_proba(x)[:, 1] > 0.5, model.predict(x) == "yes")


def test_regression_beats_the_mean_and_keeps_the_shape_of_y():
    x, y = load_diabetes(return_X_y=True)
    assert cross_val_score(NFTKRegressor(depth=2, b_std=0.5), x, y, cv=3).mean() > 0.35
    assert NFTKRegressor(depth=1).fit(x[:50], y[:50]).predict(x[:3]).shape == (3,)
    assert NFTKRegressor(depth=1).fit(x[:50], y[:50, None]).predict(x[:3]).shape == (3, 1)


def test_every_target_has_its_own_omega_and_a_constant_one_is_predicted(rng):
    x = rng.normal(size=(50, 3))
    y = np.stack([np.sin(2 * x[:, 0]), x @ [1, 2, 3], np.full(50, 1e6 / 3)], axis=1)
    model = NFTKRegressor(depth=3).fit(x, y)
    assert model.omega_.shape == (3, 3)
    np.testing.assert_allclose(model.predict(x)[:, 2], 1e6 / 3, rtol=1e-12)
    alone = NFTKRegressor(depth=3).fit(x, y[:, 1])
    np.testing.assert_allclose(model.omega_[1], alone.omega_[0], atol=1e-6)


def test_parameters_are_stored_untouched_and_a_pickle_predicts_the_same(blobs):
    x, y = blobs
    model = NFTKClassifier(depth=2, ridge=0.5, activation="erf", cv=ShuffleSplit(2, random_state=0))
    before = {**model.get_params()}
    model.fit(x, y)
    assert model.get_params() == before
    assert clone(model).get_params()["ridge"] == 0.5
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(x), model.predict_proba(x))


@pytest.mark.parametrize("state", [None, 3, np.random.RandomState(3)])
def test_any_random_state_works(blobs, state):
    x, y = blobs
    assert NFTKClassifier(depth=2, random_state=state).fit(x, y).score(x, y) > 0.7


def test_one_class_is_refused(rng):
    with pytest.raises(ValueError, match="at least two classes"):
        NFTKClassifier(depth=1).fit(rng.normal(size=(9, 2)), np.zeros(9))


BAD = {
    "ridge": ["learn", None, [1, 2], -1, True, np.nan],
    "penalty": ["a", -1, None],
    "n_search": ["a", 0, 3, 1.5],
    "depth": ["3", 0, 2.5, None],
    "w_std": ["a", 0, True],
    "b_std": [-1, np.inf],
    "objective": [None, "margin"],
    "random_state": [-1, 2**32, 2**63, True],
    "verbose": ["loud", 2, None],
    "class_weight": ["unbalanced", 2.0, [1, 2, 3]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_parameter_is_named(blobs, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*; got"):
        NFTKClassifier(**{name: value}).fit(*blobs)


def test_every_default_is_that_of_the_settings_but_for_those_that_differ_on_purpose():
    settings = flatten(MLPSettings()) | flatten(LearnSettings())
    settings["random_state"] = settings.pop("seed")
    own = {name: parameter.default for name, parameter in inspect.signature(NFTKClassifier).parameters.items()}
    different = {name for name, value in settings.items() if own[name] != value}
    assert different == {"b_std", "decision"}  # docs/library.md says why
    assert set(own) - set(settings) == {"depths", "kernel", "family", "groups", "class_weight", "verbose"}


def test_logarithms_of_probabilities_are_finite_where_these_underflow(blobs, monkeypatch):
    x, y = blobs
    model = NFTKClassifier(1, weights="uniform").fit(x, y)
    probabilities = model.predict_proba(x)
    np.testing.assert_array_equal(model.predict_log_proba(x), np.log(probabilities))
    monkeypatch.setattr(model, "predict_proba", lambda x: np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(model.predict_log_proba(x), [[0.0, np.log(np.finfo(float).tiny)]])


def test_an_unknown_parameter_is_answered_under_the_class_s_own_name():
    with pytest.raises(TypeError, match=r"^NFTKClassifier.__init__\(\) got an unexpected keyword argument 'alpha'"):
        NFTKClassifier(alpha=1)  # type: ignore[call-arg]


def test_numpys_numbers_are_parameters_like_others(blobs, tmp_path):
    """As a grid search over np.arange or np.linspace hands them out."""
    x, y = blobs
    own = NFTKClassifier(np.int64(2), w_std=np.float32(1.5), ridge=np.float32(0.5), n_search=np.int64(50)).fit(x, y)
    own.model_.save(str(tmp_path / "new" / "model"))
    again = load_model(tmp_path / "new" / "model")
    assert again.kernel == NFTKClassifier(2, w_std=1.5).fit(x, y).model_.kernel
    np.testing.assert_array_equal(again.predict(x), own.predict(x))


def test_a_ridge_is_learned_for_every_output(rng):
    x = rng.normal(size=(120, 2))
    y = np.column_stack([x[:, 0], x[:, 0] + 2 * rng.normal(size=120)])
    given, learned = (NFTKRegressor(depth=2, ridge=ridge).fit(x, y).ridge_ for ridge in ("auto", "learned"))
    assert learned[1] > 10 * learned[0]  # noise asks for it
    assert (learned != given).any()


@pytest.mark.parametrize("objective", ["validation", "loo", "evidence"])
def test_a_constant_target_is_predicted_under_a_learned_ridge(objective, rng):
    x, y = rng.normal(size=(40, 2)), np.column_stack([np.ones(40), rng.normal(size=40)])
    model = NFTKRegressor(depth=2, ridge="learned", objective=objective).fit(x, y)
    np.testing.assert_allclose(model.omega_[0], 0.5)
    np.testing.assert_array_equal(model.predict(x)[:, 0], 1)


def test_a_search_that_did_not_converge_says_so(blobs):
    with pytest.warns(ConvergenceWarning, match="not converged after 1 iterations"):
        NFTKClassifier(depth=3, max_iterations=1, tolerance=1e-12).fit(*blobs)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_handful_of_rows_is_enough(n, rng):
    x = rng.normal(size=(n, 2))
    assert np.isfinite(NFTKClassifier(depth=2).fit(x, np.arange(n) % 2).predict_proba(x)).all()
    assert np.isfinite(NFTKRegressor(depth=2).fit(x, np.arange(n)).predict(x)).all()


def test_integer_weights_are_repeated_rows_and_zero_is_removal(blobs, rng):
    x, y = blobs
    weight = rng.integers(0, 4, len(y))
    fold = np.arange(len(y)) % 3
    again = np.repeat(np.arange(len(y)), weight)
    splits = lambda of: [(np.flatnonzero(of != k), np.flatnonzero(of == k)) for k in range(3)]  # noqa: E731
    weighted = NFTKClassifier(depth=2, cv=splits(fold)).fit(x, y, weight)
    repeated = NFTKClassifier(depth=2, cv=splits(fold[again])).fit(x[again], y[again])
    np.testing.assert_allclose(weighted.predict_proba(x), repeated.predict_proba(x), rtol=1e-7)
    np.testing.assert_allclose(weighted.omega_, repeated.omega_, atol=1e-8)
    np.testing.assert_allclose(weighted.scale_, repeated.scale_, rtol=1e-10)


@pytest.mark.parametrize("factor", [1e-99, 1e-12, 0.0067, 1e12, 1e99])
@pytest.mark.parametrize("ridge", ["auto", "learned"])
def test_a_common_factor_of_the_weights_changes_the_ridge_alone(factor, ridge, blobs, rng):
    x, y = blobs
    target = x[:, 0] * x[:, 1] + rng.normal(size=len(x))
    for weight in (None, rng.uniform(0.5, 2, len(y))):
        scaled = factor * (np.ones(len(y)) if weight is None else weight)
        plain = NFTKClassifier(depth=2, ridge=ridge).fit(x, y, weight)
        model = NFTKClassifier(depth=2, ridge=ridge).fit(x, y, scaled)
        np.testing.assert_allclose(model.predict_proba(x), plain.predict_proba(x), atol=1e-9)
        np.testing.assert_allclose(model.ridge_, factor * plain.ridge_, rtol=1e-9)
        mean, deviation = NFTKRegressor(depth=2, ridge=ridge).fit(x, target, weight).predict(x, return_std=True)
        again = NFTKRegressor(depth=2, ridge=ridge).fit(x, target, scaled).predict(x, return_std=True)
        np.testing.assert_allclose(again, (mean, deviation), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_rows_of_hardly_any_weight_are_as_good_as_absent(solver, precision, blobs, rng):
    x, y = blobs
    heavy = np.flatnonzero(rng.random(len(y)) < 0.6)
    weight = np.full(len(y), 1e-12)
    weight[heavy] = 1e12
    fold = np.arange(len(y)) % 3
    splits = lambda of: [(np.flatnonzero(of != k), np.flatnonzero(of == k)) for k in range(3)]  # noqa: E731
    make = lambda of: NFTKClassifier(depth=2, cv=splits(of), solver=solver, precision=precision)  # noqa: E731
    mixed, alone = make(fold).fit(x, y, weight), make(fold[heavy]).fit(x[heavy], y[heavy])
    tolerance = 1e-8 if precision == "float64" else 3e-3  # cg solves to 1e-10 and 1e-4
    np.testing.assert_allclose(mixed.predict_proba(x), alone.predict_proba(x), atol=tolerance)
    np.testing.assert_allclose(mixed.ridge_, 1e12 * alone.ridge_, rtol=1e-9)


def test_heavy_rows_are_interpolated_at_a_given_ridge(blobs, rng):
    x = blobs[0]
    target, weight = rng.normal(size=len(x)), np.where(np.arange(len(x)) % 2, 1e-12, 1e12)
    mean, deviation = NFTKRegressor(depth=2, ridge=1e-3).fit(x, target, weight).predict(x, return_std=True)
    np.testing.assert_allclose(mean[weight > 1], target[weight > 1], atol=1e-9)
    assert (deviation[weight > 1] < 1e-6).all()
    assert (deviation[weight < 1] > 1e-2).all()


@pytest.mark.parametrize("weight", [1e308, 1e-308, 5e-324])
def test_weights_out_of_range_are_refused(weight, blobs):
    x, y = blobs
    with pytest.raises(ValueError, match=r"the largest sample weight must be from 1e-100 to 1e100; got .*divide all"):
        NFTKClassifier(depth=1).fit(x, y, np.full(len(y), weight))


def test_boosting_is_no_worse_than_one_fit(rng):
    x = rng.normal(size=(150, 4))
    y = (x[:, 0] * x[:, 1] > 0) * 1 + (x[:, 2] > 0.7)
    x_test = rng.normal(size=(500, 4))
    y_test = (x_test[:, 0] * x_test[:, 1] > 0) * 1 + (x_test[:, 2] > 0.7)
    one = NFTKClassifier(depth=2).fit(x, y).score(x_test, y_test)
    boosted = AdaBoostClassifier(NFTKClassifier(depth=2), n_estimators=2, random_state=0).fit(x, y)
    assert boosted.score(x_test, y_test) >= one - 0.01


@pytest.mark.parametrize("n_classes", [2, 3])
def test_renamed_classes_give_the_same_model(n_classes, rng):
    x = rng.normal(size=(90, 3))
    y = ((x[:, 0] > 0) * 1 + (x[:, 1] > 0.5) + rng.integers(0, 2, 90)) % n_classes
    names = np.array(["c", "a", "b"])[:n_classes]
    order = np.argsort(names)  # of the columns
    ours, theirs = NFTKClassifier(depth=2).fit(x, y), NFTKClassifier(depth=2).fit(x, names[y])
    np.testing.assert_allclose(theirs.predict_proba(x), ours.predict_proba(x)[:, order], atol=1e-6)
    np.testing.assert_allclose(theirs.omega_, ours.omega_[order], atol=1e-6)


def test_the_order_of_features_and_of_targets_does_not_matter(rng):
    x = rng.normal(size=(80, 3))
    y = np.stack([np.sin(2 * x[:, 0]), x[:, 1] ** 2, rng.normal(size=80)], axis=1)
    plain = NFTKRegressor(depth=2).fit(x, y).predict(x)
    np.testing.assert_allclose(
        NFTKRegressor(depth=2).fit(x[:, [2, 0, 1]], y).predict(x[:, [2, 0, 1]]), plain, atol=1e-6
    )
    np.testing.assert_allclose(
        NFTKRegressor(depth=2).fit(x, y[:, [1, 2, 0]]).predict(x), plain[:, [1, 2, 0]], atol=1e-6
    )


def test_weights_that_leave_no_data_are_refused(blobs):
    x, y = blobs
    with pytest.raises(ValueError, match="at least two rows"):
        NFTKClassifier(depth=1).fit(x, y, np.eye(len(y))[0])
    with pytest.raises(ValueError, match="one class"):
        NFTKClassifier(depth=1).fit(x, y, (y == 1).astype(float))


def test_cv_decides_which_rows_are_held_out(blobs):
    """Targets that nothing explains in the held-out rows ask for the largest ridge; elsewhere they are not seen."""
    x, y = blobs
    real = x[:, 0] + x[:, 1] ** 2
    real[40:] = np.random.default_rng(1).permutation(real[40:]) * 9
    held = lambda rows: [(np.setdiff1d(np.arange(40), rows), rows)]  # noqa: E731
    clean = NFTKRegressor(depth=2, cv=held(np.arange(20))).fit(x, real)
    noisy = NFTKRegressor(depth=2, cv=held(np.arange(40, 60))).fit(x, real)
    assert clean.ridge_ < noisy.ridge_
    groups = np.arange(60) // 10
    assert NFTKClassifier(depth=2, cv=GroupKFold(3)).fit(x, y, groups=groups).score(x, y) > 0.7
    assert NFTKClassifier(depth=2, cv=4).fit(x, y).score(x, y) > 0.7
    with pytest.raises(ValueError, match="no split of `cv`"):
        NFTKRegressor(depth=2, cv=[(np.arange(5), np.arange(0))]).fit(x, real)


def log_loss(p, y):
    return -np.log(np.maximum(p[np.arange(len(y)), y], 1e-300)).mean()


def test_probabilities_are_calibrated_on_new_rows(rng):
    """Better than the softmax of the scores, and among rows given about p, a share of about p is right."""
    x = rng.normal(size=(3000, 3))
    y = (rng.random(3000) < 1 / (1 + np.exp(-2 * (x[:, 0] + x[:, 1] ** 2 - 1)))).astype(int)
    model = NFTKClassifier(depth=2, b_std=0.5).fit(x[:500], y[:500])
    p, scores = model.predict_proba(x[500:]), model.model_.decision_function(x[500:])
    plain = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert log_loss(p, y[500:]) < log_loss(plain, y[500:]) - 0.03
    np.testing.assert_array_equal(model.classes_[p.argmax(axis=1)], model.predict(x[500:]))
    order = np.argsort(p[:, 1])
    for rows in np.array_split(order, 5):
        assert abs(p[rows, 1].mean() - y[500:][rows].mean()) < 0.1


def test_the_calibration_is_saved_with_the_model(blobs, tmp_path):
    x, y = blobs
    fitted = NFTKClassifier(depth=1).fit(x, y)
    fitted.model_.save(tmp_path)
    again = load_model(tmp_path)
    np.testing.assert_array_equal(again.probabilities(again.decision_function(x)), fitted.predict_proba(x))
    np.testing.assert_array_equal(again.predict(x), fitted.predict(x))


def test_constant_and_linear_targets(rng):
    x = rng.normal(size=(40, 3))
    constant = NFTKRegressor(depth=2).fit(x, np.full(40, 7.0))
    np.testing.assert_allclose(constant.predict(x), 7.0)
    y = x @ [1.0, -2.0, 0.5] + 3
    linear = NFTKRegressor(depth=1, activation="identity", scaling="none", ridge=1e-9).fit(x - x.mean(axis=0), y)
    expected = LinearRegression().fit(x, y).predict(x)
    np.testing.assert_allclose(linear.predict(x - x.mean(axis=0)), expected, atol=1e-6)


def test_the_logistic_decision_sees_a_class_that_least_squares_masks(rng):
    """Three shells in the plane: the middle one lies between the others, and its score is the least sharp."""
    x = rng.normal(size=(600, 4))
    y = np.digitize((x**2).sum(axis=1), [2.2, 4.4])
    by = lambda name: NFTKClassifier(depth=2, decision=name).fit(x[:200], y[:200]).score(x[200:], y[200:])  # noqa: E731
    assert by("logistic") > by("scores") + 0.03


def test_a_temperature_keeps_the_order_of_the_scores(blobs):
    x, y = blobs
    model = NFTKClassifier(depth=1, decision="scores").fit(x, y)
    scores = model.model_.decision_function(x)
    np.testing.assert_array_equal(scores.argmax(axis=1), model.predict(x))
    np.testing.assert_array_equal(model.predict_proba(x).argmax(axis=1), model.predict(x))
    ratio = model.decision_function(x) / scores
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-9)


def test_omega_stays_uniform_where_nothing_is_gained(rng):
    """Labels that the inputs do not explain: the search finds weights, their gain is within its standard error."""
    x, y = rng.normal(size=(80, 3)), rng.integers(0, 2, 80)
    np.testing.assert_allclose(NFTKClassifier(depth=3).fit(x, y).omega_, 1 / 3)


@pytest.fixture
def grams(blobs):
    """Kernels of two widths on all rows of `blobs`, and the family that looks them up."""
    x, _ = blobs
    square = ((x[:, None] - x) ** 2).sum(axis=-1)
    return KernelFamily.precomputed([np.exp(-square / width) for width in (1.0, 10.0)])


def test_a_family_takes_the_place_of_the_mlp(blobs):
    x, y = blobs
    family = KernelFamily((lambda a, b: a @ b.T + 1, lambda a, b: (a @ b.T + 1) ** 2))
    model = NFTKClassifier(kernel=family)
    assert clone(model).kernel is family
    assert "2 functions" in repr(model)
    model.fit(x, y)
    assert model.omega_.shape == (3, 2)
    assert model.model_.kernel is family
    assert model.score(x, y) > 0.8
    with pytest.raises(ValueError, match=r"kernel .* must be one Kernel"):
        NFTKClassifier(kernel="relu").fit(x, y)  # type: ignore[arg-type]


def test_precomputed_grams_are_cross_validated_by_row_numbers(blobs, grams):
    y = blobs[1]
    rows = np.arange(60)[:, None]
    assert cross_val_score(NFTKClassifier(kernel=grams), rows, y, cv=3).mean() > 0.7
    alone = KernelFamily(grams.functions[:1], n_rows=60)
    search = GridSearchCV(NFTKClassifier(), {"kernel": [alone, grams]}, cv=2).fit(rows, y)
    assert search.best_params_["kernel"] in (alone, grams)
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict_proba(rows), search.predict_proba(rows))
    with pytest.raises(ValueError, match="row numbers from 0 to 59"):
        search.predict([[60]])
    with pytest.raises(ValueError, match="must not be scaled"):
        NFTKClassifier(kernel=grams, scaling="standardise").fit(rows, y)


def test_a_family_has_posterior_deviations_under_its_own_kernel_alone(grams, rng):
    rows = np.arange(60)[:, None]
    y = rng.normal(size=40)
    model = NFTKRegressor(kernel=grams, ridge=1e-3).fit(rows[:40], y)
    k = sum(weight * function.args[0] for weight, function in zip(model.kernel_omega_[0], grams.functions, strict=True))
    a, y = k[:40, :40] + 1e-3 * np.eye(40), y - y.mean()
    smooth = np.linalg.solve(a, k[:40, 40:])
    c = smooth + (1 - smooth.sum(axis=0)) / 40
    variance = np.diag(k[40:, 40:] - 2 * c.T @ k[:40, 40:] + c.T @ a @ c) * (y @ np.linalg.solve(a, y) / 40)
    deviation = model.predict(rows[40:], return_std=True)[1]
    np.testing.assert_allclose(deviation, np.sqrt(variance), rtol=1e-6)
    with pytest.raises(ValueError, match="has no NNGP kernel"):
        model.predict(rows[40:], return_std=True, covariance="nngp")


def test_images_of_a_family_are_scaled_by_one_number(rng):
    x = rng.uniform(0, 16, size=(30, 4))
    family = KernelFamily((lambda a, b: (a[:, None] * b).sum(axis=(2, 3)) + 1,), input_shape=(2, 2))
    model = NFTKRegressor(kernel=family).fit(x, x[:, 0])
    np.testing.assert_array_equal(model.model_.input_scaling.scale, np.full(4, x.max()))


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_an_estimator_that_is_not_fitted_says_so(blobs, method):
    with pytest.raises(NotFittedError):
        getattr(NFTKClassifier(), method)(blobs[0])
