"""How far Omega is determined, and what it is worth, by the rows that it is learned on.

    python experiments/rows.py [--families depths patches] [--rows 1500 3000 6000 12000] [--seeds 0 1 2]
        [--results FILE.json]

MNIST images: ten depths, or depth 2 of 16 patches and of the whole image. Every seed draws other rows. Searches that
would take more than 6 GiB go on without kernels in memory. For every number of rows

- the gain: by how much Omega lowers the squared error of equal weights, and that of the one kernel that is best on the
  held-out rows, on these rows, which chose Omega, and on the test images; solved on the other two thirds of the rows;
- the range of every weight: the values at which the paired difference of the squared errors on the held-out rows,
  less those at the learned Omega, is not above 1.645 standard errors, when the other weights are the best for it. The
  scores are taken as linear in the weights about the learned Omega.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import store

from nftk_jax.datasets import load_dataset
from nftk_jax.kernels.groups import group_kernel, image_groups
from nftk_jax.kernels.kernel import Kernel
from nftk_jax.kernels.mlp import MLP
from nftk_jax.kernels.rows import Rows
from nftk_jax.learn import TrainingRows, learn, make_plan
from nftk_jax.mkl.constraints import FeasibleSet
from nftk_jax.parts import draw_search
from nftk_jax.preprocessing.targets import encode_targets
from nftk_jax.settings import LearnSettings, gather
from nftk_jax.solvers.plan import GIB, SolvePlan
from nftk_jax.solvers.regression import prepare
from nftk_jax.solvers.search_plan import plan_search

SHAPE = (28, 28)
FAMILIES: dict[str, Kernel] = {
    "depths": MLP(10),
    "patches": group_kernel(MLP(2).only([1]), image_groups("patches:4x4", SHAPE)),
}
ROWS, SEEDS = (1500, 3000, 6000, 12_000), (0, 1, 2)
SHOWN = ("rows", "without_kernels", "evaluations", "converged", "gains", "mean_width", "above_zero")
#: Standard errors of a one-sided test at 5 %.
QUANTILE, HALVINGS = 1.645, 14
#: Bytes that the search may take.
MEMORY = 6 * GIB


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Residuals r on held-out rows, shape (V, C), and their derivatives f by the weights, shape (V, C, L)."""

    r: np.ndarray
    f: np.ndarray


def measure(kernel: Kernel, n: int, seed: int = 0) -> dict[str, Any]:
    """The gain and the ranges on n rows."""
    mnist = load_dataset("mnist")
    chosen = np.random.default_rng(seed).permutation(len(mnist.x_train))[:n]
    settings = gather(LearnSettings, {"n_search": n, "uniform_level": 1.0, "precision": "float32", "seed": seed})
    data = TrainingRows(mnist.x_train[chosen], mnist.y_train[chosen], mnist.classes, True)
    plan = make_plan(data.x.shape, data.n_outputs, 0, kernel, settings)
    search = plan_search(plan.sizes, dataclasses.replace(plan.machine, memory=MEMORY))
    few = SolvePlan("nystroem", (), rank=64)  # the model on all rows is not looked at
    with learn(data, kernel, settings, plan=few, search=search) as learned:
        found, rows, scaled = learned.found, learned.rows, learned.model.scaled
    assert found.descent is not None
    ((train, held),) = draw_search(data, settings, kernel.n_kernels)[1]
    y = encode_targets(data.y, data.n_outputs, None).y
    solve = SolvePlan("cholesky", ()) if kernel.n_kernels > 10 else search.solve or SolvePlan("cholesky", ())
    fitted = _Fitted(rows.take(train), y[train], solve)
    ours = found.omega
    held_out = fitted.linearise(ours, found.ridge, rows.x[held], y[held])
    low, high = find_ranges(ours, held_out)
    places = {"held_out": (rows.x[held], y[held]), "test": (scaled(mnist.x_test), one_hot(mnist.y_test, data))}
    singles = np.eye(kernel.n_kernels)
    rivals = [ours, np.full_like(ours, 1 / kernel.n_kernels), *(np.tile(one, (len(ours), 1)) for one in singles)]
    errors = fitted.errors(rivals, found.ridge, places)
    single = 2 + int(np.argmin([one["held_out"].mean() for one in errors[2:]]))
    gains = {
        f"{place}_over_{name}": gain(errors[number][place], errors[0][place])
        for place in places
        for name, number in (("uniform", 1), ("single", single))
    }
    return {
        "rows": n,
        "held_out": len(held),
        "without_kernels": found.widened is not None,
        "evaluations": int(found.descent.evaluations.max()),
        "converged": int(found.descent.converged.sum()),
        "gains": gains,
        "best_single": single - 1,
        "omega": np.round(ours, 4).tolist(),
        "low": np.round(low, 4).tolist(),
        "high": np.round(high, 4).tolist(),
        "mean_width": float((high - low).mean()),
        "above_zero": int((low > 0).sum()),
    }


def one_hot(labels: np.ndarray, data: TrainingRows) -> np.ndarray:
    """Targets of other rows, less the shares of the classes among the training rows."""
    return np.eye(data.n_outputs)[labels] - np.bincount(data.y, minlength=data.n_outputs) / len(data.y)


def gain(theirs: np.ndarray, ours: np.ndarray) -> list[float]:
    """By which share of their mean ours is lower, and the standard error over rows of that paired difference."""
    difference = theirs.mean(axis=1) - ours.mean(axis=1)
    return [float(one / theirs.mean()) for one in (difference.mean(), difference.std() / np.sqrt(len(difference)))]


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """What is solved on some rows: their kernels, targets and how."""

    rows: Rows
    y: np.ndarray
    plan: SolvePlan

    def errors(
        self, omegas: list[np.ndarray], ridge: np.ndarray, places: dict[str, tuple[np.ndarray, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """Squared errors of every Omega on other rows (inputs, targets), shape (m, C) each."""
        found, near = [], omegas[0].mean(axis=0)
        with prepare(self.rows, self.plan, omega=near, ridge=float(ridge.mean())) as solver:
            for omega in omegas:
                a = solver.solve(omega, ridge, self.y).dual_coef
                found.append({name: (self.rows.predict(omega, a, x) - y) ** 2 for name, (x, y) in places.items()})
        return found

    def linearise(self, omega: np.ndarray, ridge: np.ndarray, x: np.ndarray, y: np.ndarray) -> HeldOut:
        """r and f_l = Theta^(l)_VT a - K_VT A^(-1) Theta^(l)_TT a on other rows."""
        (count, n_kernels), rows = omega.shape, self.rows
        each, own = np.tile(np.eye(n_kernels), (count, 1)), np.repeat(omega, n_kernels, axis=0)
        with prepare(rows, self.plan, omega=omega.mean(axis=0), ridge=float(ridge.mean())) as solver:
            a = solver.solve(omega, ridge, self.y).dual_coef
            repeated = np.repeat(a, n_kernels, axis=1)
            images = rows.apply(each, repeated)
            h = solver.solve(own, np.repeat(ridge, n_kernels), images).dual_coef
        forward = rows.predict(each, repeated, x)
        f = (forward - rows.predict(own, h, x)).reshape(len(x), count, n_kernels)
        r = np.einsum("vcl,cl->vc", forward.reshape(f.shape), omega) - y
        return HeldOut(r, f)


def find_ranges(omega: np.ndarray, held: HeldOut) -> tuple[np.ndarray, np.ndarray]:
    """The ends of every weight's range, shape (C, L) each, by halving the way to 0 and to 1."""
    ends = []
    for wall in (0.0, 1.0):
        inside, outside = omega.copy(), np.full_like(omega, wall)
        within = not_worse(omega, held, outside)
        inside[within] = wall
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            good = not_worse(omega, held, middle)
            inside, outside = np.where(good, middle, inside), np.where(good, outside, middle)
        ends.append(np.where(within, wall, inside))
    return ends[0], ends[1]


def not_worse(omega: np.ndarray, held: HeldOut, value: np.ndarray) -> np.ndarray:
    """Whether every weight may have this value, shape (C, L), the others being the best for it on the simplex."""
    (n_classes, n_kernels), found = omega.shape, np.empty(omega.shape, bool)
    simplex = FeasibleSet("simplex")
    for c in range(n_classes):
        r, f = held.r[:, c], held.f[:, c]
        hessian, gradient = 2 * f.T @ f / len(r), 2 * f.T @ r / len(r)
        ridge = 1e-9 * np.trace(hessian) * np.eye(n_kernels)
        others = np.array([np.delete(np.arange(n_kernels), one) for one in range(n_kernels)])
        start = np.maximum(omega[c][others], 1e-9)
        start *= ((1 - value[c]) / start.sum(axis=1))[:, None]
        moved = np.empty((n_kernels, n_kernels))
        moved[np.arange(n_kernels)[:, None], others] = start
        moved[np.arange(n_kernels), np.arange(n_kernels)] = value[c]
        slope = gradient + (moved - omega[c]) @ hessian
        pairs = others[:, :, None], others[:, None, :]
        slopes = np.take_along_axis(slope, others, axis=1)
        best = simplex.minimise_quadratic(start, slopes, (hessian + ridge)[pairs])
        moved[np.arange(n_kernels)[:, None], others] = best
        change = (moved - omega[c]) @ f.T
        difference = change * (2 * r + change)
        error = difference.std(axis=1) / np.sqrt(len(r))
        found[c] = difference.mean(axis=1) <= QUANTILE * error
    return found


def tabulate(results: dict[str, Any]) -> str:
    """The table of docs/reading-omega.md: means over seeds, in percent where they are gains."""
    names = {"depths": "ten depths", "patches": "16 patches and the whole"}
    lines = [
        "| kernels | rows | draws | gain over equal weights: held out | test | over the best kernel: held out | test "
        "| width of a range | ranges above 0 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted({name.rsplit(",", 1)[0] for name in results}):
        entries = [entry for name, entry in results.items() if name.startswith(f"{key},")]
        family, n, cells = key.split(",")[0], entries[0]["rows"], np.size(entries[0]["omega"])
        shown = [
            f"{100 * np.mean([entry['gains'][f'{place}_over_{rival}'][0] for entry in entries]):.{digits}f}"
            for rival, digits in (("uniform", 1), ("single", 2))
            for place in ("held_out", "test")
        ]
        width, above = (np.mean([entry[name] for entry in entries]) for name in ("mean_width", "above_zero"))
        line = [names[family], f"{n:,}", str(len(entries)), *shown, f"{width:.3f}", f"{above:.0f} of {cells}"]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How far Omega is determined by the rows that it is learned on.")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/rows.json"))
    options = parser.parse_args(arguments)
    for name in options.families:
        for n in options.rows:
            for seed in options.seeds:
                entry = measure(FAMILIES[name], n, seed)
                store.write(options.results, f"{name}, {n:05} rows, seed {seed}", entry)
                print(name, seed, {key: entry[key] for key in SHOWN}, flush=True)


if __name__ == "__main__":
    main()
