"""`python -m nftk_jax.paths`: train a network and attribute each of its outputs to the training samples."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nftk_jax.commands import command_line
from nftk_jax.commands.command_line import CommandError
from nftk_jax.commands.data_flags import DataFlags, check_rows
from nftk_jax.commands.environment import check_devices
from nftk_jax.commands.run import OutputFlags, Run, write_report
from nftk_jax.finite.settings import LossName
from nftk_jax.path_kernels.settings import DescentSettings, OptimiserName, ScheduleName
from nftk_jax.progress import StageReport
from nftk_jax.settings import DtypeName, MLPSettings, ScalingSettings

if TYPE_CHECKING:
    import numpy as np

    from nftk_jax.datasets import Dataset
    from nftk_jax.finite.networks import NetworkSettings
    from nftk_jax.path_kernels.path_kernel import PathTerms
    from nftk_jax.path_kernels.quadrature import Rule
    from nftk_jax.path_kernels.trajectory import Trajectory

#: Of the training and the test rows, where they are embedded texts.
Texts = tuple[list[str], list[str]] | None
#: Learning rate of each loss unless told otherwise, and that of Adam for both.
LEARNING_RATES = {"mse": 0.02, "cross-entropy": 0.1}
ADAM_LEARNING_RATE = 0.002
#: Test samples explained in the report.
EXPLAINED = 10


@dataclasses.dataclass(frozen=True)
class PathsConfig:
    """Flags of `python -m nftk_jax.paths`; config{} of metrics.json."""

    data: DataFlags = dataclasses.field(default_factory=DataFlags)
    scaling: Annotated[ScalingSettings, tyro.conf.arg(name="data")] = dataclasses.field(default_factory=ScalingSettings)
    files: Annotated[OutputFlags, tyro.conf.arg(name="run")] = dataclasses.field(default_factory=OutputFlags)
    network: Literal["mlp", "nftk"] = "mlp"
    """mlp: one readout; nftk: a readout at every layer, weighted by Omega (the paper's eqs. 7-8)."""
    loss: LossName = "mse"
    """mse: the mean over a batch of the squared error, summed over outputs; cross-entropy: that of the softmax."""
    depth: int = 2
    """Hidden layers."""
    width: int = 64
    """Units in every hidden layer."""
    activation: str = MLPSettings.activation
    """relu, erf, gelu, leaky_relu(0.1) or any other that neural_tangents has in closed form."""
    layer_norm: bool = False
    """Normalise hidden layers; a scale and a shift are trained too."""
    steps: int = 60
    """Number of training steps."""
    optimiser: OptimiserName = DescentSettings.optimiser
    """adam and adamw have b1 = 0.9, b2 = 0.999 and eps = 1e-8."""
    batch_size: int | None = DescentSettings.batch_size
    """Samples per step. Default: all."""
    learning_rate: float | None = None
    """Default: 0.002 for adam and adamw, otherwise 0.02 for mse and 0.1 for cross-entropy."""
    schedule: ScheduleName = DescentSettings.schedule
    """How the learning rate falls after the warm-up; linear and cosine to 0."""
    warmup: int = DescentSettings.warmup
    """Steps over which the learning rate rises from 0."""
    clip: float | None = DescentSettings.clip
    """Largest norm of a batch's gradient. Default: no clipping."""
    weight_decay: float = DescentSettings.weight_decay
    """Added to the gradient by sgd and adam; adamw takes it from the parameters."""
    momentum: float = DescentSettings.momentum
    """Momentum of sgd, at least 0 and below 1."""
    nesterov: bool = DescentSettings.nesterov
    """Use Nesterov's form of the momentum."""
    quadrature: int = 8
    """Gauss-Legendre nodes per interval of the integral over a step."""
    tolerance: float | None = 1e-3
    """Halve intervals until the error is below this share of the largest output. None takes one interval per step."""
    precision: DtypeName = "float32"
    """Precision of training and quadrature."""


def main(config: PathsConfig) -> None:
    """Train, rebuild, measure and write the output directory.

    Raises:
      CommandError, ValueError: bad input; nothing is written.
      ArithmeticError: training diverged; nothing is written.
    """
    with Run("paths", config, prefix="paths-") as run:
        check_devices()
        settings, rule = _check_flags(config)
        with run.progress() as report:
            dataset, texts = _load(config, report)
        network = _network(config, dataset.n_features, dataset.n_outputs)
        _check_memory(dataset)
        run.describe(dataset, f"depth {config.depth}, width {config.width}, {config.steps} steps")
        from nftk_jax.kernels.precision import enable_x64
        from nftk_jax.path_kernels.path_kernel import path_terms

        with enable_x64(config.precision == "float64"), run.progress() as report:
            clock = time.perf_counter()
            trajectory, x_test = _train(config, dataset, network, settings, report)
            train_s = time.perf_counter() - clock
            clock = time.perf_counter()
            terms = path_terms(trajectory, x_test, rule=rule, tolerance=config.tolerance, report=report)
            path_s = time.perf_counter() - clock
        blocks = _measure(config, dataset, texts, trajectory, terms)
        metrics = run.metrics({**blocks, "timings": {"train_s": train_s, "path_s": path_s}})
        run.write(metrics, lambda directory, metrics: _write(directory, metrics, terms, dataset))
        from nftk_jax.reports.paths import summary

        run.conclude(summary(metrics))


def _check_flags(config: PathsConfig) -> tuple[DescentSettings, Rule]:
    """Refuse what no type can, before any data are read; the settings and the rule."""
    from nftk_jax.path_kernels.quadrature import check_tolerance, gauss_legendre

    check_tolerance(config.tolerance)
    _network(config, 1, 1)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(DescentSettings)}
    if config.learning_rate is None:
        values["learning_rate"] = LEARNING_RATES[config.loss] if config.optimiser == "sgd" else ADAM_LEARNING_RATE
    return DescentSettings(**values), gauss_legendre(config.quadrature)


def _network(config: PathsConfig, n_inputs: int, n_outputs: int) -> NetworkSettings:
    from nftk_jax.finite.networks import NetworkSettings
    from nftk_jax.kernels.mlp import MLP

    # Omega >= 0 by max(Omega, 0) in the forward pass: a projection would be a movement that no sample accounts for.
    return NetworkSettings(
        MLP(config.depth, config.activation),
        n_inputs,
        n_outputs,
        config.width,
        readouts="all" if config.network == "nftk" else "last",
        omega_start="ones",
        omega_positivity="clip",
        layer_norm=config.layer_norm,
    )


def _load(config: PathsConfig, report: StageReport) -> tuple[Dataset, Texts]:
    from nftk_jax.datasets import read_texts

    dataset = config.data.load(report)
    check_rows("--batch-size", config.batch_size, dataset)
    if dataset.classes is None and config.loss != "mse":
        raise CommandError(f"{dataset.name} has real targets; --loss cross-entropy needs classes, take mse")
    return dataset, read_texts(dataset, config.data.data_dir, report=report)


def _check_memory(dataset: Dataset) -> None:
    """Refuse terms that do not fit: as they are summed up, saved and read."""
    from nftk_jax.memory import available_memory

    numbers = len(dataset.x_train) * len(dataset.x_test) * dataset.n_outputs
    needed, available = 3 * 8 * numbers, available_memory()
    if needed > 0.8 * available:
        raise CommandError(
            f"one term for each of {len(dataset.x_test)} test rows, {len(dataset.x_train)} training rows and "
            f"{dataset.n_outputs} outputs takes {needed / 2**30:.1f} GiB of the {available / 2**30:.1f} GiB free; "
            "lower --n-train or --n-test"
        )


def _train(
    config: PathsConfig, dataset: Dataset, network: NetworkSettings, settings: DescentSettings, report: StageReport
) -> tuple[Trajectory, np.ndarray]:
    """The recorded training, and the scaled test rows."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nftk_jax.finite.networks import Params, apply, initialise
    from nftk_jax.path_kernels.trajectory import Problem, draw_batches, record_trajectory, sample_loss
    from nftk_jax.preprocessing.scaling import fit_input_scaling
    from nftk_jax.preprocessing.targets import encode_targets

    dtype = np.dtype(config.precision)
    inputs = fit_input_scaling(
        dataset.x_train,
        config.scaling.scaling,
        images=dataset.image_shape is not None,
        unit_norm=config.scaling.unit_norm,
        table=dataset.table,
    )
    x, x_test = (inputs.apply(rows, dtype) for rows in (dataset.x_train, dataset.x_test))
    if dataset.classes is None:
        y = encode_targets(dataset.y_train, None).y.astype(dtype)
    else:
        y = np.eye(dataset.n_outputs, dtype=dtype)[dataset.y_train]
    theta, omega = initialise(network, jax.random.key(config.data.seed), dtype)
    columns, tree = jax.tree.flatten(omega)  # Omega column by column, so that every layer has its own
    params = (theta, {f"omega_{1 + place}": column for table in columns for place, column in enumerate(table.T)})

    def output(params, rows):
        table = jnp.stack(list(params[1].values()), axis=1) if columns else None
        return apply(network, Params(params[0], jax.tree.unflatten(tree, [table] if columns else [])), rows)

    trajectory = record_trajectory(
        Problem(output, x, y, sample_loss(config.loss)),
        params,
        settings,
        batches=draw_batches(len(x), settings, np.random.default_rng((config.data.seed, 2))),
        report=report,
    )
    return trajectory, x_test


def _measure(
    config: PathsConfig, dataset: Dataset, texts: Texts, trajectory: Trajectory, terms: PathTerms
) -> dict[str, Any]:
    """The blocks of metrics.json that tell what was found."""
    import numpy as np

    from nftk_jax.assessment.metrics import accuracy_interval, r2
    from nftk_jax.path_kernels import influence
    from nftk_jax.preprocessing.scaling import mean_and_deviation

    classes = dataset.classes is not None
    labels, query_labels = (dataset.y_train, dataset.y_test) if classes else (None, None)
    names, contribution = influence.by_layer(terms, query_labels)
    classes_block = None
    if dataset.classes is not None:
        between = influence.between_classes(terms, dataset.y_train, dataset.y_test, dataset.n_outputs)
        classes_block = _finite(between)
    blocks: dict[str, Any] = {
        "dataset": dataset.describe(),
        "training": {
            "learning_rate": trajectory.settings.learning_rate,
            "clipped_steps": int((trajectory.clips < 1).sum()),
            "n_parameters": sum(leaf.size for leaf in trajectory.start),
            "losses": trajectory.losses.tolist(),
        },
        "reconstruction": {
            "relative_error": terms.relative_error,
            "max_abs_error": terms.max_abs_error,
            "largest_output": float(np.abs(terms.output).max()),
            "intervals": terms.intervals,
            "bisections": terms.bisections,
            "steps_times_queries": config.steps * len(dataset.x_test),
            "measured_quadrature_error": terms.unresolved,
        },
        "layers": {
            "names": names,
            "contribution": _finite(contribution),
            "start": _finite(_mean(terms.start, query_labels)),
            "output": _finite(_mean(terms.output, query_labels)),
            "omega": _omega(trajectory),
        },
        "classes": classes_block,
        "influences": influence.influences(
            terms,
            labels,
            query_labels,
            queries=influence.choose_queries(terms.output, query_labels, EXPLAINED),
            texts=texts,
        ),
    }
    if classes:
        right = terms.output.argmax(axis=1) == dataset.y_test
        accuracy, interval = accuracy_interval(right)
        same = float((terms.reconstruction.argmax(axis=1) == terms.output.argmax(axis=1)).mean())
        blocks |= {"test_accuracy": accuracy, "test_accuracy_interval": list(interval), "same_prediction": same}
    else:
        mean, scale = mean_and_deviation(dataset.y_train)
        blocks["test_r2"] = r2(dataset.y_test, mean + scale * terms.output)
    return blocks


def _mean(values: np.ndarray, query_labels: np.ndarray | None) -> np.ndarray:
    """Mean over queries of every output; where there are classes, over the queries of the output's class."""
    import numpy as np

    if query_labels is None:
        return values.mean(axis=0)
    members = np.eye(values.shape[1])[query_labels]
    counts = members.sum(axis=0)
    return np.divide((values * members).sum(axis=0), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _omega(trajectory: Trajectory) -> list[list[float]] | None:
    """Omega of the trained NFT-K network as its forward pass sees it, (n_outputs, depth)."""
    import numpy as np

    columns = [end for name, end in zip(trajectory.network.names, trajectory.end, strict=True) if "omega_" in name]
    return np.maximum(np.stack(columns, axis=1), 0).astype(float).tolist() if columns else None


def _finite(values: np.ndarray) -> list[Any]:
    """Nested lists with None for what is not a number."""
    return [_finite(row) if row.ndim else None if row != row else float(row) for row in values]


def _write(directory: pathlib.Path, metrics: dict[str, Any], terms: PathTerms, dataset: Dataset) -> None:
    """Write what the contract has besides metrics.json."""
    import numpy as np

    from nftk_jax.reports.path_figures import save_figures
    from nftk_jax.reports.paths import render_paths

    np.savez_compressed(
        directory / "terms.npz",
        terms=terms.terms,
        start=terms.start,
        regulariser=terms.regulariser,
        output=terms.output,
    )

    def draw(folder: pathlib.Path) -> dict[str, pathlib.Path | bytes]:
        return save_figures(
            metrics,
            folder,
            output=terms.output,
            rebuilt=terms.reconstruction,
            x_train=dataset.x_train,
            x_test=dataset.x_test,
            image_shape=dataset.image_shape,
        )

    write_report(directory, draw, lambda figures: render_paths(metrics, figures))


def command(prog: str = "nftk_jax.paths") -> int:
    """The console script nftk-paths, and the command `nftk paths`: its errors begin with `prog`."""
    return command_line.run(main, PathsConfig, prog=prog, description=__doc__)


if __name__ == "__main__":
    sys.exit(command())
