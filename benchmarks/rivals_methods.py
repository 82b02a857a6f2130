"""The methods of `rivals.py`, each run in a process of its own, and only with what that method's library needs.

    python benchmarks/rivals_methods.py METHOD TASK.npz RESULT.json '{"kernel": "laplace", "width": 9.0, ...}'

`rivals.py` calls it, with the Python of the environment in which the rivals are installed; nftk_jax is imported by its
own method alone. A method ran once on a few rows, or up to its first pass, before its clock starts: nothing that is
compiled counts. Clocks are processor and wall seconds of the process. They stand still while a state is judged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WARM_ROWS = 500
#: EigenPro's epochs, ASkotch's passes, Falkon's iterations (20, its default: 1.5 times as long, 0.06 points at most).
EPOCHS, PASSES, ITERATIONS = 15, 10, 10
#: Centres of Falkon and components of Nystroem, at most all rows.
COMPONENTS = (500, 1000, 2000, 4000, 8000, 16_000)
#: Tolerances of GPyTorch's and KeOps's conjugate gradients, each a fit of its own.
TOLERANCES = {"gpytorch": (0.3, 0.1, 0.03, 0.01), "keops": (0.1, 0.03, 0.01, 0.003)}
#: Passes of nftk_jax that are judged.
JUDGED = 12

Predict = Callable[[np.ndarray], np.ndarray]


class OutOfTime(Exception):
    """A method has used its seconds: what it has shown until then counts."""


class FirstPass(Exception):
    """The first pass is over, and with it compilation."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Inputs (n, p) and (m, p), float32 in [0, 1], and class numbers, int64."""

    x: np.ndarray
    labels: np.ndarray
    x_test: np.ndarray
    test_labels: np.ndarray

    @property
    def y(self) -> np.ndarray:
        """One-hot rows less their mean, float32: what everyone fits."""
        one_hot = np.eye(int(self.labels.max()) + 1, dtype=np.float32)[self.labels]
        return one_hot - one_hot.mean(axis=0)

    @property
    def mean(self) -> np.ndarray:
        return np.bincount(self.labels) / len(self.labels)

    def first(self, n: int) -> Task:
        return dataclasses.replace(self, x=self.x[:n], labels=self.labels[:n])

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Task:
        with np.load(path) as arrays:
            return cls(**arrays)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A kernel, its width and the absolute ridge, as they were chosen, and seconds of the processor for one fit."""

    kernel: str
    width: float = 1.0
    ridge: float = 1e-3
    limit: float = np.inf


class Watch:
    """Seconds of the processor and of the wall from `start` on, but not those in which states are judged."""

    def __init__(self, task: Task, limit: float) -> None:
        self.points: list[dict[str, Any]] = []
        self._task, self._limit = task, limit
        self._spent, self._since = np.zeros(2), np.zeros(2)

    def start(self, growth: float = 2.0) -> None:
        """Begin a fit that takes `growth` times as long as the last one.

        Raises:
          OutOfTime: that is more than the limit.
        """
        if self._spent[0] * growth > self._limit:
            raise OutOfTime(f"the next fit would take more than {self._limit:.0f} s")
        self._spent, self._since = np.zeros(2), self._now()

    @contextlib.contextmanager
    def paused(self) -> Iterator[np.ndarray]:
        """Stop the clocks; gives what they show."""
        self._spent = self._spent + self._now() - self._since
        yield self._spent
        self._since = self._now()

    def judge(self, step: str, predict: Predict) -> None:
        """Note the accuracy of scores less their mean.

        Raises:
          OutOfTime: the fit has used its seconds.
        """
        with self.paused() as spent:
            begin = time.process_time()
            scores = predict(self._task.x_test) + self._task.mean
            self.note(step, spent, scores.argmax(axis=1), time.process_time() - begin)
        if self._spent[0] > self._limit:
            raise OutOfTime(f"stopped after {self._limit:.0f} s")

    def note(self, step: str, spent: np.ndarray, found: np.ndarray, predict_s: float, **facts: Any) -> None:
        accuracy = float((found == self._task.test_labels).mean())
        point = {"step": step, "processor_s": float(spent[0]), "wall_s": float(spent[1]), "accuracy": accuracy}
        self.points.append(point | {"predict_s": predict_s} | facts)

    @staticmethod
    def _now() -> np.ndarray:
        return np.array([time.process_time(), time.perf_counter()])


def nftk_jax(task: Task, settings: Settings, watch: Watch) -> None:
    """All that `nftk fit` does until there is a model: scaling, search, preconditioner and passes."""
    from nftk_jax import MLP, RBF, Laplace
    from nftk_jax.learn import TrainingRows, learn
    from nftk_jax.settings import LearnSettings, SearchSettings

    kernels = {
        "depths": lambda: MLP(10),
        "laplace": lambda: Laplace(settings.width),
        "rbf": lambda: RBF(settings.width),
    }
    kernel = kernels[settings.kernel]()
    ridge = "auto" if settings.kernel == "depths" else settings.ridge
    options = LearnSettings(search=SearchSettings(ridge=ridge))
    rows = TrainingRows(task.x, task.labels, np.arange(task.y.shape[1]), images=True)
    states: list[tuple[str, np.ndarray, np.ndarray, float | None]] = []

    class Journal(dict[str, Any]):
        """Keeps the solution of every pass with its time."""

        def __init__(self, *, warm: bool) -> None:
            super().__init__()
            self._warm = warm

        def __setitem__(self, name: str, value: dict[str, np.ndarray]) -> None:
            super().__setitem__(name, value)
            if name == "solve" and self._warm:
                raise FirstPass
            if name == "solve":
                with watch.paused() as spent:
                    residual = float(value["relative"].max())
                    states.append((f"pass {int(value['passes'])}", spent, value["solution"], residual))

    with contextlib.suppress(FirstPass):  # a solve without passes runs to its end
        learn(rows, kernel, options, condition=False, journal=Journal(warm=True)).solver.close()
    watch.start()
    learned = learn(rows, kernel, options, condition=False, journal=Journal(warm=False))
    with learned, watch.paused() as spent:
        states.append((f"end, {learned.solution.solver}", spent, learned.solution.dual_coef, None))
    model = learned.model
    chosen = np.unique(np.geomspace(1, len(states), min(JUDGED, len(states))).round().astype(int) - 1)
    for step, spent, dual_coef, residual in (states[place] for place in chosen):
        begin = time.process_time()
        found = dataclasses.replace(model, dual_coef=dual_coef.astype(model.dual_coef.dtype)).predict(task.x_test)
        watch.note(step, spent, found, time.process_time() - begin, residual=residual)


def eigenpro(task: Task, settings: Settings, watch: Watch) -> None:
    """EigenPro 2 with the steps and batches that it chooses itself, judged after every epoch.

    Its eigenvectors come from `torch.linalg.eigh`: the `torch.lobpcg` of its last version does not end on kernels whose
    spectrum decays fast.
    """
    import torch
    from eigenpro2 import kernels, models

    def eigenvectors(samples: Any, kernel_fn: Callable[[Any, Any], Any], top_q: int) -> tuple[Any, Any, Any]:
        k = kernel_fn(samples, samples)
        values, vectors = torch.linalg.eigh(k / len(k))
        size = min(top_q + 1, len(k) // 3)
        return values.flip(0)[:size], vectors.flip(1)[:, :size] / len(k) ** 0.5, k.diag().max()

    models.nystrom_kernel_eigh = eigenvectors
    function = {"laplace": kernels.laplacian, "rbf": kernels.gaussian}[settings.kernel]

    class Judged(models.KernelModel):
        """Judges itself where it would compute its own figures."""

        epoch = 0

        def evaluate(self, x_eval: Any, y_eval: Any, bs: Any, metrics: Any = ()) -> dict[str, float]:
            if len(x_eval) == 1:  # the rows to validate on, not those of the training
                self.epoch += 1
                watch.judge(f"epoch {self.epoch}", _in_blocks(self.forward))
            return {"mse": np.nan, "multiclass-acc": np.nan}

    x, y = torch.tensor(task.x), torch.tensor(task.y)
    model = Judged(lambda a, b: function(a, b, bandwidth=settings.width), x, y.shape[1], device="cpu")
    watch.start()
    model.fit(x, y, x[:1], y[:1], epochs=EPOCHS, mem_gb=8, n_train_eval=2)


def askotch(task: Task, settings: Settings, watch: Watch) -> None:
    """ASkotchV2 with the block and rank that its authors recommend: one run per class, by turns."""
    import torch
    from fast_krr.models import FullKRR
    from fast_krr.opts import ASkotchV2

    x, y, n = torch.tensor(task.x), torch.tensor(task.y), len(task.x)
    kernel = {"laplace": {"type": "matern", "nu": 0.5}, "rbf": {"type": "rbf"}}[settings.kernel]
    block = max(n // 100, 10)
    precondition = {"type": "nystrom", "r": min(100, block), "rho": "damped"}
    watch.start()
    runs = []
    for target in y.T.contiguous():
        w0 = torch.zeros(n)
        parts = {"kernel_params": kernel | {"sigma": settings.width}, "Ktr_needed": False, "lambd": settings.ridge}
        model = FullKRR(x, target, None, None, task="regression", w0=w0, device="cpu", **parts)
        runs.append(ASkotchV2(model, block, precond_params=precondition))
    steps = max(n // block // 4, 1)
    for quarter in range(1, 4 * PASSES + 1):
        for run in runs:
            for _ in range(steps):
                run.step()
        predict = _dual_predict(settings, x, torch.stack([run.model.w for run in runs], dim=1))
        watch.judge(f"{quarter / 4:g} passes", predict)


def falkon(task: Task, settings: Settings, watch: Watch) -> None:
    """Falkon with more and more centres, each a fit of its own.

    It stores the kernel of rows and centres, which it would do by itself only above 1,200 features; not if all rows
    are centres, since its last version then never transposes what it stored.
    """
    import torch
    from falkon import Falkon, FalkonOptions
    from falkon.kernels import GaussianKernel, LaplacianKernel

    x, y = torch.tensor(task.x), torch.tensor(task.y)
    kernel = {"laplace": LaplacianKernel, "rbf": GaussianKernel}[settings.kernel]
    common = {"use_cpu": True, "keops_active": "no", "store_kernel_d_threshold": 0}
    for size in _components(len(x)):
        watch.start()
        how = FalkonOptions(**common, never_store_kernel=size == len(x))
        penalty = settings.ridge / len(x)
        model = Falkon(kernel(sigma=settings.width), penalty, size, maxiter=ITERATIONS, seed=0, options=how)
        model.fit(x, y)
        watch.judge(f"{size:,} centres", _in_blocks(model.predict))


def nystroem(task: Task, settings: Settings, watch: Watch) -> None:
    """scikit-learn: more and more components of Nystroem's method and ridge regression on them."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    for size in _components(len(task.x)):
        watch.start(growth=8)  # twice as many components: eight times the work for their singular values
        features = Nystroem(gamma=1 / (2 * settings.width**2), n_components=size, random_state=0)
        model = make_pipeline(features, Ridge(settings.ridge, fit_intercept=False)).fit(task.x, task.y)
        watch.judge(f"{size:,} components", model.predict)


def gpytorch(task: Task, settings: Settings, watch: Watch) -> None:
    """GPyTorch's kernel: its Cholesky, and its conjugate gradients for all classes to smaller and smaller tolerances.

    No preconditioner: those of rank 15, 100 and 500 reach the tolerance of 0.1 later on 5,000 rows.
    """
    import gpytorch
    import torch

    x, y = torch.tensor(task.x), torch.tensor(task.y)
    kernels = {"laplace": lambda: gpytorch.kernels.MaternKernel(0.5), "rbf": gpytorch.kernels.RBFKernel}
    kernel = kernels[settings.kernel]()
    kernel.lengthscale = settings.width
    options = gpytorch.settings
    for tolerance in (None, *TOLERANCES["gpytorch"]):
        with (
            torch.no_grad(),
            options.max_cholesky_size(len(x) if tolerance is None else 0),
            options.cg_tolerance(tolerance or 1.0),
            options.max_cg_iterations(300),
            options.max_preconditioner_size(0),
        ):
            watch.start()
            dual_coef = kernel(x).add_jitter(settings.ridge).solve(y)
            step = "Cholesky" if tolerance is None else f"tolerance {tolerance:g}"
            watch.judge(step, _dual_predict(settings, x, dual_coef))


def keops(task: Task, settings: Settings, watch: Watch) -> None:
    """KeOps's own kernel solver, conjugate gradients for all classes, to smaller and smaller tolerances."""
    import torch
    from pykeops.torch import LazyTensor

    x, y = torch.tensor(task.x), torch.tensor(task.y)
    for tolerance in TOLERANCES["keops"]:
        watch.start()
        squares = ((LazyTensor(x[:, None, :]) - LazyTensor(x[None, :, :])) ** 2).sum(2)
        negative = (
            -squares.sqrt() / settings.width if settings.kernel == "laplace" else -squares / 2 / settings.width**2
        )
        dual_coef = negative.exp().solve(y, alpha=settings.ridge, eps=tolerance)
        watch.judge(f"tolerance {tolerance:g}", _dual_predict(settings, x, dual_coef))


def _components(n: int) -> list[int]:
    return sorted({min(size, n) for size in COMPONENTS})


def _in_blocks(predict: Callable[[Any], Any], rows: int = 2000) -> Predict:
    """What maps a tensor to scores, as a map of arrays, some rows after the others."""
    import torch

    def scores(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.concatenate([predict(part).numpy() for part in torch.split(torch.tensor(x), rows)])

    return scores


def _dual_predict(settings: Settings, x: Any, dual_coef: Any) -> Predict:
    """Scores from dual coefficients by dense products, for libraries that would take longer to predict than to fit."""
    import torch

    def scores(part: Any) -> Any:
        distances = torch.cdist(part, x, compute_mode="use_mm_for_euclid_dist")
        scaled = distances / settings.width
        return (-scaled if settings.kernel == "laplace" else -(scaled**2) / 2).exp() @ dual_coef

    return _in_blocks(scores)


Method = Callable[[Task, Settings, Watch], None]
METHODS: dict[str, Method] = {
    method.__name__: method for method in (nftk_jax, eigenpro, falkon, nystroem, gpytorch, keops, askotch)
}
#: The distribution of each method, for its version.
PACKAGES = {
    "nftk_jax": "nftk_jax",
    "eigenpro": "eigenpro2",
    "falkon": "falkon",
    "nystroem": "scikit-learn",
    "gpytorch": "gpytorch",
    "keops": "pykeops",
    "askotch": "fast_krr",
}


def measure(method: str, task: Task, settings: Settings) -> dict[str, Any]:
    """The points of one method, what came before the clock, and why it ended, if it did not end by itself."""
    begin, note = time.process_time(), ""
    if method != "nftk_jax":  # it warms itself at the full size, since it compiles for sizes
        few = task.first(WARM_ROWS)
        with contextlib.suppress(OutOfTime):
            METHODS[method](few, settings, Watch(few, 0.0))
    watch, warm_s = Watch(task, settings.limit), time.process_time() - begin
    try:
        METHODS[method](task, settings, watch)
    except OutOfTime as error:
        note = str(error)
    spent = watch.points[-1]["processor_s"] if method == "nftk_jax" else 0.0
    if method == "nftk_jax":
        warm_s = time.process_time() - begin - spent - sum(point["predict_s"] for point in watch.points)
    return {"version": importlib.metadata.version(PACKAGES[method]), "warm_s": warm_s, "note": note} | {
        "points": watch.points
    }


def main(method: str, task_file: str, result_file: str, settings: str) -> None:
    warnings.simplefilter("ignore")
    begin = time.process_time()
    task = Task.load(Path(task_file))
    load_s = time.process_time() - begin
    if "OMP_NUM_THREADS" in os.environ and PACKAGES[method] not in ("nftk_jax", "scikit-learn"):
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(method, task, Settings(**json.loads(settings)))
    Path(result_file).write_text(json.dumps(found | {"load_s": load_s}))


if __name__ == "__main__":
    main(*sys.argv[1:5])
