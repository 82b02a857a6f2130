"""`python -m nftk_jax.compare`: the paper's finite networks beside their infinite-width limit on the same data."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import shlex
import shutil
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, Literal

from nftk_jax.commands import command_line
from nftk_jax.commands.command_line import CommandError
from nftk_jax.commands.data_flags import DataFlags, check_rows

if TYPE_CHECKING:
    import numpy as np

    from nftk_jax.datasets import Dataset
    from nftk_jax.finite.networks import NetworkSettings
    from nftk_jax.finite.trainer import Trained
    from nftk_jax.kernels.mlp import MLP
    from nftk_jax.learn import Learned, LearnSettings

#: Training rows on which the tangent kernels' mean diagonals are taken.
SCALE_ROWS = 64


@dataclasses.dataclass(frozen=True)
class CompareConfig(DataFlags):
    """Flags of `python -m nftk_jax.compare`; config{} of metrics.json."""

    depth: int = 10
    """Hidden layers L."""
    width: int = 256
    """Units of every hidden layer of the finite networks."""
    activation: str = "relu"
    """relu, erf, gelu, leaky_relu(0.1), ... : any that neural_tangents has in closed form."""
    w_std: float = 1.41421356
    """Standard deviation of the weights, of the infinite network and of the parametrisation ntk."""
    b_std: float = 0.0
    """Standard deviation of the hidden layers' biases, of the same."""
    epochs: int = 10
    """Passes over the training rows."""
    batch_size: int = 50
    """Rows a step."""
    learning_rate: float = 0.02
    """eta_theta, of all parameters but Omega."""
    omega_learning_rate: float = 0.05
    """eta_Omega."""
    weight_decay: float = 2e-6
    """Of all parameters and of Omega."""
    loss: Literal["mse", "cross-entropy"] = "mse"
    """Batch mean of the squared error summed over outputs, or of the softmax's cross-entropy."""
    parametrisation: Literal["standard", "ntk"] = "standard"
    """standard: Xavier normal; ntk: unit normal, scaled by the width in the forward pass."""
    omega_start: Literal["ones", "xavier", "half-normal"] = "xavier"
    """Omega of the finite network at the start; half of a Xavier draw is negative, so zero after the first step."""
    omega_positivity: Literal["project", "clip"] = "project"
    """How Omega >= 0 is kept: by projection after every step, or as max(Omega, 0) in the forward pass."""
    seeds: int = 1
    """Finite networks of each kind, trained together."""
    n_search: int | None = None
    """Training rows used to learn the infinite network's Omega; default all up to 3000."""
    ridge: float | Literal["auto"] = "auto"
    """Ridge of the infinite network in units of the kernel's unit mean diagonal; auto chooses it on held-out rows."""
    precision: Literal["float32", "float64"] = "float32"
    """Of the infinite network's kernels and solves."""
    output: pathlib.Path | None = None
    """Output directory; default runs/compare-DATASET-TIME."""
    overwrite: bool = False
    """Replace an earlier result in the output directory."""
    resume: bool = False
    """Go on from the epoch at which an earlier run with the same --output was interrupted."""


def main(config: CompareConfig) -> None:
    """Train, learn, compare and write the output directory.

    Raises:
      CommandError, ValueError: bad input; nothing is written.
      ArithmeticError: a numerical failure, named; nothing is written.
    """
    from rich.console import Console

    started, console = time.perf_counter(), Console()
    output = config.output or pathlib.Path("runs") / _default_name(config)
    command_line.check_output(output, overwrite=config.overwrite)
    _check_numbers(config)
    settings = _learn_settings(config)
    with command_line.make_progress(console) as progress:
        dataset = _load(config, command_line.StageReport(progress))
    checkpoints = output.absolute().with_name(f".{output.name}.resume")
    if not config.resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    console.print(
        f"{dataset.name}: {len(dataset.x_train)} training and {len(dataset.x_test)} test rows, {dataset.n_features} "
        f"features, {dataset.n_outputs} classes; depth {config.depth}, width {config.width}, {config.seeds} seeds",
        markup=False,
        highlight=False,
    )
    try:
        with warnings.catch_warnings(record=True) as caught, command_line.make_progress(console) as progress:
            warnings.simplefilter("always")
            report = command_line.StageReport(progress)
            finite = {kind: _train(config, dataset, kind, checkpoints, report) for kind in ("mlp", "nftk_mlp")}
            block = _compare(config, dataset, finite, settings, report)
    except KeyboardInterrupt:
        raise CommandError(
            f"interrupted; the same command with --output {output} --resume goes on from the last epoch",
            command_line.EXIT_INTERRUPTED,
        ) from None
    for message in dict.fromkeys(str(item.message) for item in caught):
        console.print(f"note: {message}", markup=False, highlight=False)
    metrics = {
        "schema": "nftk_jax.compare/1",
        "version": command_line.version(),
        "command": shlex.join(["python", "-m", "nftk_jax.compare", *sys.argv[1:]]),
        "config": {key: str(v) if isinstance(v, pathlib.Path) else v for key, v in dataclasses.asdict(config).items()},
        "environment": command_line.environment(),
        **block,
        "peak_memory_bytes": command_line.peak_memory_bytes(),
    }
    metrics["timings"]["total_s"] = time.perf_counter() - started
    with command_line.output_directory(output, overwrite=config.overwrite) as aside:
        _write(aside, metrics)
    shutil.rmtree(checkpoints, ignore_errors=True)
    from nftk_jax.reports.comparison import summary

    console.print(summary(metrics))
    console.print(
        f"results: {output}   report: {output / 'report.html'}", markup=False, highlight=False, soft_wrap=True
    )


def _default_name(config: CompareConfig) -> str:
    stem = pathlib.Path(config.dataset).name.removesuffix(".npz")
    return f"compare-{stem}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _check_numbers(config: CompareConfig) -> None:
    """Refuse what no type can: ranges of the flags that no constructor checks."""
    for name in ("epochs", "seeds"):
        if getattr(config, name) < 1:
            raise CommandError(f"--{name} must be >= 1; got {getattr(config, name)}")
    config.check_seed()
    if config.resume and config.output is None:
        raise CommandError("--resume needs the --output of the run to go on with")
    _train_settings(config)
    _network(config, "nftk_mlp", 1, 2)


def _load(config: CompareConfig, report: command_line.StageReport) -> Dataset:
    dataset = config.load(report)
    if dataset.classes is None:
        raise CommandError(f"{dataset.name} has real targets; compare needs classes: give labels as integers or text")
    check_rows("--n-search", config.n_search, dataset)
    return dataset


def _architecture(config: CompareConfig) -> MLP:
    from nftk_jax.kernels.mlp import MLP

    return MLP(config.depth, config.activation, config.w_std, config.b_std)


def _train_settings(config: CompareConfig):
    from nftk_jax.finite.training import TrainSettings

    return TrainSettings(
        config.batch_size, config.learning_rate, config.omega_learning_rate, config.weight_decay, loss=config.loss
    )


def _network(config: CompareConfig, kind: str, n_inputs: int, n_outputs: int) -> NetworkSettings:
    from nftk_jax.finite.networks import NetworkSettings

    return NetworkSettings(
        _architecture(config),
        n_inputs,
        n_outputs,
        config.width,
        config.parametrisation,
        "last" if kind == "mlp" else "all",
        config.omega_start,
        config.omega_positivity,
    )


def _learn_settings(config: CompareConfig) -> LearnSettings:
    from nftk_jax.learn import LearnSettings

    return LearnSettings(
        _architecture(config),
        ridge=config.ridge,
        n_search=config.n_search,
        precision=config.precision,
        scaling=config.scaling,
        unit_norm=config.unit_norm,
        seed=config.seed,
    )


def _train(config: CompareConfig, dataset: Dataset, kind: str, checkpoints: pathlib.Path, report) -> Trained:
    from nftk_jax.finite.trainer import train_on

    return train_on(
        dataset,
        _network(config, kind, dataset.n_features, dataset.n_outputs),
        _train_settings(config),
        seeds=range(config.seed, config.seed + config.seeds),
        epochs=config.epochs,
        scaling=config.scaling,
        unit_norm=config.unit_norm,
        checkpoint=checkpoints / f"{kind}.safetensors",
        resume=config.resume,
        report=lambda _, done, total: report(f"train {kind}, epochs", done, total),
    )


def _compare(
    config: CompareConfig, dataset: Dataset, finite: dict[str, Trained], settings: LearnSettings, report
) -> dict[str, Any]:
    """Learn the infinite network and set everything beside each other: the blocks of metrics.json."""
    import numpy as np

    from nftk_jax.assessment import baselines
    from nftk_jax.learn import learn

    learned = learn(
        dataset.x_train,
        dataset.y_train,
        settings,
        classes=dataset.classes,
        images=dataset.image_shape is not None,
        report=report,
    )
    if learned.iterative is not None:
        learned.iterative.release()  # nothing else is solved on all rows
    clock = time.perf_counter()
    scores = learned.model.decision_function(dataset.x_test, report=lambda *state: report("predict", *state))
    if not np.isfinite(scores).all():
        raise ArithmeticError("the infinite network's scores are not finite; raise --ridge")
    predict_s = time.perf_counter() - clock
    rng = np.random.default_rng(config.seed + 1)
    clock = time.perf_counter()
    shuffled = baselines.shuffled_labels(learned.problem, learned.model.ridge, settings.search, rng)
    shuffled_s = time.perf_counter() - clock
    right = (scores.argmax(axis=1) == dataset.y_test)[None]
    models = {kind: _finite_block(trained, dataset, right[0]) for kind, trained in finite.items()}
    models["infinite"] = _infinite_block(learned, right)
    seconds = {f"train_{kind}": trained.training.seconds for kind, trained in finite.items()}
    clock = time.perf_counter()
    agreement = _agreement(finite["nftk_mlp"], dataset, learned, shuffled, models, rng)
    seconds |= {**learned.seconds, "predict": predict_s, "shuffled_labels": shuffled_s}
    seconds["agreement"] = time.perf_counter() - clock
    return {
        "dataset": {
            "name": dataset.name,
            "n_train": len(dataset.x_train),
            "n_search": len(learned.search_rows),
            "n_test": len(dataset.x_test),
            "n_features": dataset.n_features,
            "n_classes": dataset.n_outputs,
            "sha256": dataset.sha256,
            "task": dataset.task,
            "class_names": dataset.class_names,
        },
        "models": models,
        "agreement": agreement,
        "timings": {f"{name}_s": value for name, value in seconds.items()},
    }


def _finite_block(trained: Trained, dataset: Dataset, infinite_right: np.ndarray) -> dict[str, Any]:
    from nftk_jax.assessment.identifiability import normalise_rows

    history, omega = trained.training.history, trained.omega
    right = trained.outputs.argmax(axis=2) == dataset.y_test
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
    """Accuracy of the infinite network minus that of the finite ones, paired over the test rows."""
    from nftk_jax.assessment.metrics import paired_accuracy_difference

    pairs = [paired_accuracy_difference(infinite, one) for one in right]
    return {
        "infinite_minus_it": float(sum(difference for difference, _ in pairs) / len(pairs)),
        "infinite_minus_it_intervals": [list(interval) for _, interval in pairs],
    }


def _agreement(
    trained: Trained,
    dataset: Dataset,
    learned: Learned,
    shuffled: np.ndarray,
    models: dict[str, Any],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Both Omegas as weights of kernels of unit mean diagonal, and their rank correlation; adds the finite one's to
    `models`.
    """
    import jax
    import numpy as np

    from nftk_jax.assessment.agreement import as_kernel_weights, compare_omegas, depth_scales

    x = learned.model.scaled(dataset.x_train[:SCALE_ROWS]).astype(np.float32)
    assert trained.omega is not None
    weights = []
    for seed, omega in enumerate(trained.omega):
        start = jax.tree.map(lambda leaf, seed=seed: leaf[seed], trained.start.params)
        weights.append(as_kernel_weights(omega, depth_scales(trained.network, start, x)))
    models["nftk_mlp"]["kernel_weights"] = weights[0].tolist()
    infinite = learned.model.omega
    against = [compare_omegas(one, infinite, rng) for one in weights]
    between = [compare_omegas(weights[i], weights[j], rng).correlation for i in range(len(weights)) for j in range(i)]
    return {
        "finite_and_infinite": [one.to_dict() for one in against],
        "finite_and_shuffled_labels": [compare_omegas(one, shuffled, rng).to_dict() for one in weights],
        "infinite_and_shuffled_labels": compare_omegas(infinite, shuffled, rng).to_dict(),
        "between_seeds": between,
        "omega_of_shuffled_labels": shuffled.tolist(),
    }


def _write(directory: pathlib.Path, metrics: dict[str, Any]) -> None:
    from nftk_jax.reports.comparison import render_comparison
    from nftk_jax.reports.comparison_figures import save_figures

    (directory / "figures").mkdir()
    figures = save_figures(metrics, directory / "figures")
    (directory / "report.html").write_text(render_comparison(metrics, figures), encoding="utf-8")
    (directory / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")


def command() -> int:
    """The console script nftk-compare."""
    return command_line.run(main, CompareConfig, prog="nftk_jax.compare", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(command())
