"""`python -m nftk_jax.compare`: compare the paper's finite networks with their infinite-width limit."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nftk_jax.commands import command_line
from nftk_jax.commands.command_line import CommandError
from nftk_jax.commands.data_flags import DataFlags, RunFlags, check_rows
from nftk_jax.commands.environment import check_devices
from nftk_jax.commands.run import ResumableFlags, Run, write_report
from nftk_jax.finite.settings import AlternatingSettings, FiniteSettings, TrainSettings
from nftk_jax.progress import StageReport
from nftk_jax.settings import (
    LearnSettings,
    MLPSettings,
    PrecisionName,
    ScalingSettings,
    SearchSettings,
    SolveSettings,
    check_count,
    check_seed,
    flatten,
    gather,
)

if TYPE_CHECKING:
    import numpy as np

    from nftk_jax.commands.checkpoint import Checkpoint
    from nftk_jax.datasets import Dataset
    from nftk_jax.finite.networks import NetworkSettings
    from nftk_jax.finite.trainer import Trained
    from nftk_jax.kernels.mlp import MLP
    from nftk_jax.learn import Learned

#: Training rows on which the tangent kernels' mean diagonals are taken.
SCALE_ROWS = 64
TrainingName = Literal["joint", "alternating"]


@dataclasses.dataclass(frozen=True)
class AlternationFlags:
    """How --training alternating trains the NFT-K MLP, with the learning rates of the joint training."""

    rounds: int = AlternatingSettings.rounds
    """How many times theta and Omega take turns."""
    theta_steps: int = AlternatingSettings.theta_steps
    """Largest number of full-batch steps on theta in one round."""
    omega_steps: int = AlternatingSettings.omega_steps
    """Full-batch steps on Omega in one round; 0 keeps Omega fixed."""
    anchor: float = AlternatingSettings.anchor
    """lambda of the paper's eq. 13, the pull of theta towards its start."""
    theta_tolerance: float = AlternatingSettings.theta_tolerance
    """theta has converged when the norm of its gradient is this share of what it was at the start of the round."""


@dataclasses.dataclass(frozen=True)
class InfiniteFlags:
    """How the infinite network is learned."""

    n_search: int | None = SearchSettings.n_search
    """Training rows used to learn Omega. Default: all, but at most 3000."""
    ridge: float | Literal["auto", "learned"] = SearchSettings.ridge
    """Regularisation, relative to the kernel's mean diagonal. auto: chosen on held-out rows; learned: starts there and
    is learned for every class together with Omega."""
    precision: PrecisionName = SolveSettings.precision
    """Precision of kernels and solves."""


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Flags of `python -m nftk_jax.compare`; config{} of metrics.json."""

    data: DataFlags = dataclasses.field(default_factory=DataFlags)
    held_out: Annotated[RunFlags, tyro.conf.arg(name="data")] = dataclasses.field(default_factory=RunFlags)
    scaling: Annotated[ScalingSettings, tyro.conf.arg(name="data")] = dataclasses.field(default_factory=ScalingSettings)
    finite: FiniteSettings = dataclasses.field(default_factory=FiniteSettings)
    train: TrainSettings = dataclasses.field(default_factory=TrainSettings)
    alternation: AlternationFlags = dataclasses.field(default_factory=AlternationFlags)
    infinite: InfiniteFlags = dataclasses.field(default_factory=InfiniteFlags)
    files: Annotated[ResumableFlags, tyro.conf.arg(name="run")] = dataclasses.field(default_factory=ResumableFlags)
    depth: int = MLPSettings.depth
    """Hidden layers L of every network."""
    activation: str = MLPSettings.activation
    """relu, erf, gelu, leaky_relu(0.1) or any other that neural_tangents has in closed form."""
    w_std: float = MLPSettings.w_std
    """Standard deviation of the weights in the infinite network and in --parametrisation ntk."""
    b_std: float = MLPSettings.b_std
    """Standard deviation of the hidden layers' biases in the same networks."""
    training: TrainingName = "joint"
    """How the NFT-K MLP is trained. joint: mini-batch steps on theta and Omega together; alternating: full-batch steps
    on theta until it has converged, then steps on Omega, and so on (the paper's eqs. 9, 13 and 16)."""
    seeds: int = 1
    """Number of finite networks of each kind. They are trained together."""


def main(config: CompareConfig) -> None:
    """Train, learn, compare and write the output directory.

    Raises:
      CommandError, ValueError: bad input; nothing is written.
      ArithmeticError: a numerical failure, named; nothing is written.
    """
    with Run("compare", config, prefix="compare-") as run:
        check_devices()
        kernel, training = _check(config)
        with run.progress() as report:
            dataset = config.held_out.apply(config.data.load(report), config.data)
        if dataset.classes is None:
            raise CommandError(
                f"{dataset.name} has real targets; compare needs classes: give labels as integers or text"
            )
        check_rows("--n-search", config.infinite.n_search, dataset)
        run.describe(dataset, f"depth {config.depth}, width {config.finite.width}, {config.seeds} seeds")
        with run.checkpoint(dataset, resume=config.files.resume) as checkpoint:
            with run.progress() as report:
                finite = _train(config, kernel, training, dataset, checkpoint, report)
                blocks = _compare(config, kernel, dataset, finite, checkpoint, report)
            metrics = run.metrics(blocks)
            run.write(metrics, _write)
        from nftk_jax.reports.comparison import summary

        run.conclude(summary(metrics))


def _check(config: CompareConfig) -> tuple[MLP, TrainSettings | AlternatingSettings]:
    """Refuse what can be refused without data; the architecture, and how the NFT-K MLP is trained."""
    from nftk_jax.kernels.mlp import MLP

    check_count("seeds", config.seeds)
    check_seed(config.data.seed + config.seeds - 1, name="`seed` + `seeds` - 1")
    alternating = gather(AlternatingSettings, flatten(config))
    if config.training == "alternating" and config.train.loss != "mse":
        raise CommandError(
            f"--training alternating minimises the squared error; got --loss {config.train.loss}: use --loss mse"
        )
    kernel = MLP(**flatten(gather(MLPSettings, flatten(config))))
    return kernel, alternating if config.training == "alternating" else config.train


def _network(config: CompareConfig, kernel: MLP, kind: str, dataset: Dataset) -> NetworkSettings:
    from nftk_jax.finite.networks import NetworkSettings

    readouts = "last" if kind == "mlp" else "all"
    return NetworkSettings(kernel, dataset.n_features, dataset.n_outputs, readouts=readouts, **flatten(config.finite))


def _train(
    config: CompareConfig,
    kernel: MLP,
    training: TrainSettings | AlternatingSettings,
    dataset: Dataset,
    checkpoint: Checkpoint,
    report: StageReport,
) -> dict[str, Trained]:
    """The finite networks of both kinds."""
    from nftk_jax.finite.trainer import ClassRows, train_on

    rows, trained = ClassRows.of(dataset, config.scaling), {}
    for kind, settings in (("mlp", config.train), ("nftk_mlp", training)):
        unit = "epochs" if settings is config.train else "rounds"
        trained[kind] = train_on(
            rows,
            _network(config, kernel, kind, dataset),
            settings,
            seeds=range(config.data.seed, config.data.seed + config.seeds),
            journal=checkpoint,
            name=kind,
            report=lambda _, done, total, stage=f"train {kind}, {unit}": report(stage, done, total),
        )
        checkpoint.flush()
    return trained


def _compare(
    config: CompareConfig, kernel: MLP, dataset: Dataset, finite: dict[str, Trained], checkpoint: Checkpoint, report
) -> dict[str, Any]:
    """Learn the infinite network and set everything beside each other: the blocks of metrics.json."""
    import numpy as np

    from nftk_jax.assessment import baselines
    from nftk_jax.kernels.precision import enable_x64
    from nftk_jax.learn import TrainingRows, learn

    settings, images = gather(LearnSettings, flatten(config)), dataset.image_shape is not None
    rows = TrainingRows(
        dataset.x_train, dataset.y_train, dataset.classes, images, runs=dataset.runs, table=dataset.table
    )
    with learn(rows, kernel, settings, journal=checkpoint, report=report) as learned:
        pass  # nothing else is solved on all rows: the solver's memory is given back
    seconds = {f"train_{kind}": trained.training.seconds for kind, trained in finite.items()} | learned.seconds
    clock = time.perf_counter()
    scores = learned.model.decision_function(dataset.x_test, report=lambda *state: report("predict", *state))
    if not np.isfinite(scores).all():
        raise ArithmeticError("the infinite network's scores are not finite; raise `ridge`")
    seconds["predict"] = time.perf_counter() - clock
    rng = np.random.default_rng(config.data.seed + 1)
    clock = time.perf_counter()
    with enable_x64(learned.rows.dtype == np.float64):
        shuffled = baselines.shuffled_labels(learned.problem, learned.model.ridge, settings.search, rng)
    seconds["shuffled_labels"] = time.perf_counter() - clock
    right = (scores.argmax(axis=1) == dataset.y_test)[None]
    models = {kind: _finite_block(trained, dataset.y_test, right[0]) for kind, trained in finite.items()}
    models["infinite"] = _infinite_block(learned, right)
    clock = time.perf_counter()
    x = learned.model.scaled(dataset.x_train[:SCALE_ROWS]).astype(np.float32)
    weights = _kernel_weights(finite["nftk_mlp"], x)
    models["nftk_mlp"]["kernel_weights"] = weights[0].tolist()
    agreement = _agreement(weights, learned.model.omega, shuffled, rng)
    seconds["agreement"] = time.perf_counter() - clock
    return {
        "dataset": {**dataset.describe(), "n_search": len(learned.search_rows)},
        "models": models,
        "agreement": agreement,
        "timings": {f"{name}_s": value for name, value in seconds.items()},
    }


def _finite_block(trained: Trained, labels: np.ndarray, infinite_right: np.ndarray) -> dict[str, Any]:
    from nftk_jax.assessment.identifiability import normalise_rows

    history, omega = trained.training.history, trained.omega
    right = trained.outputs.argmax(axis=2) == labels
    zeros = None if omega is None else float((normalise_rows(omega.reshape(-1, omega.shape[2])) == 0).mean())
    return {
        **_accuracy_block(right),
        **_difference_block(right, infinite_right),
        "omega": None if omega is None else omega[0].tolist(),
        "omega_by_seed": None if omega is None else omega.tolist(),
        "zeros_in_omega_n": zeros,
        "zeros_at_initialisation": None if omega is None else float(trained.training.initial_zeros.mean()),
        "train_s": trained.training.seconds,
        "history": {
            "train_loss": history["train_loss"].tolist(),
            "zeros_in_omega": None if omega is None else history["zeros_in_omega"].tolist(),
            "seconds": history["seconds"].tolist(),
        },
    }


def _infinite_block(learned: Learned, right: np.ndarray) -> dict[str, Any]:
    from nftk_jax.assessment.identifiability import normalise_rows

    model = learned.model
    return {
        **_accuracy_block(right),
        "test_accuracy_std": 0.0,  # nothing in it is drawn
        "omega": model.omega.tolist(),
        "scale": model.scale.tolist(),
        "ridge": model.ridge.tolist(),
        "zeros_in_omega_n": float((normalise_rows(model.omega) == 0).mean()),
        "zeros_at_initialisation": 0.0,  # the search starts from equal weights
        "train_s": sum(learned.seconds.values()),
    }


def _accuracy_block(right: np.ndarray) -> dict[str, Any]:
    """Accuracy of several seeds' networks, from which test rows they have right, shape (S, m)."""
    from nftk_jax.assessment.metrics import accuracy_interval

    by_seed = right.mean(axis=1)
    return {
        "test_accuracy": float(by_seed.mean()),
        "test_accuracy_std": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
        "test_accuracy_by_seed": by_seed.tolist(),
        "test_accuracy_interval": list(accuracy_interval(right[0])[1]),
    }


def _difference_block(right: np.ndarray, infinite: np.ndarray) -> dict[str, Any]:
    """How much more accurate the infinite network is, positive where it is better: the mean over the finite networks'
    seeds, and every seed's 95 % interval, paired over the test rows.
    """
    from nftk_jax.assessment.metrics import paired_accuracy_difference

    pairs = [paired_accuracy_difference(infinite, one) for one in right]
    return {
        "infinite_advantage": float(sum(difference for difference, _ in pairs) / len(pairs)),
        "infinite_advantage_intervals": [list(interval) for _, interval in pairs],
    }


def _agreement(
    omegas: np.ndarray, infinite: np.ndarray, shuffled: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """Rank correlations of Omegas, all as weights of kernels of unit mean diagonal; `omegas` are the finite ones."""
    from nftk_jax.assessment.agreement import compare_omegas

    against = [compare_omegas(one, infinite, rng) for one in omegas]
    between = [compare_omegas(omegas[i], omegas[j], rng).correlation for i in range(len(omegas)) for j in range(i)]
    return {
        "finite_and_infinite": [one.to_dict() for one in against],
        "finite_and_shuffled_labels": [compare_omegas(one, shuffled, rng).to_dict() for one in omegas],
        "infinite_and_shuffled_labels": compare_omegas(infinite, shuffled, rng).to_dict(),
        "between_seeds": between,
        "omega_of_shuffled_labels": shuffled.tolist(),
    }


def _kernel_weights(trained: Trained, x: np.ndarray) -> np.ndarray:
    """The Omega of every seed as weights of kernels of unit mean diagonal on the rows x, shape (S, C, L)."""
    import jax
    import numpy as np

    from nftk_jax.assessment.agreement import as_kernel_weights, depth_scales

    assert trained.omega is not None
    weights = []
    for seed, omega in enumerate(trained.omega):
        start = jax.tree.map(lambda leaf, seed=seed: leaf[seed], trained.start)
        weights.append(as_kernel_weights(omega, depth_scales(trained.training.network, start, x)))
    return np.stack(weights)


def _write(directory: pathlib.Path, metrics: dict[str, Any]) -> None:
    """Write what the contract has besides metrics.json."""
    from nftk_jax.reports.comparison import render_comparison
    from nftk_jax.reports.comparison_figures import save_figures

    write_report(
        directory, lambda folder: save_figures(metrics, folder), lambda figures: render_comparison(metrics, figures)
    )


def command(prog: str = "nftk_jax.compare") -> int:
    """The console script nftk-compare, and the command `nftk compare`: its errors begin with `prog`."""
    return command_line.run(main, CompareConfig, prog=prog, description=__doc__)


if __name__ == "__main__":
    sys.exit(command())
