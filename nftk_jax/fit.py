"""`python -m nftk_jax.fit`: learn which depths each class uses, solve, compare with baselines, report."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import shlex
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, Literal

from nftk_jax.commands import command_line
from nftk_jax.commands.command_line import CommandError
from nftk_jax.commands.data_flags import DataFlags, check_rows

if TYPE_CHECKING:
    from rich.console import Console

    from nftk_jax.datasets import Dataset
    from nftk_jax.journal import Checkpoint
    from nftk_jax.learn import LearnSettings
    from nftk_jax.model import NFTKModel
    from nftk_jax.solvers.plan import Plan

#: Above this many training rows the baselines are compared on the search rows.
BASELINE_ROWS = 20_000


@dataclasses.dataclass(frozen=True)
class FitConfig(DataFlags):
    """Flags of `python -m nftk_jax.fit`; config{} of metrics.json."""

    depth: int = 10
    """Hidden layers L; the kernels of depths 1 to L are combined."""
    activation: str = "relu"
    """relu, erf, gelu, leaky_relu(0.1), ... : any that neural_tangents has in closed form."""
    w_std: float = 1.41421356
    """Standard deviation of the weights (NTK parametrisation)."""
    b_std: float = 0.0
    """Standard deviation of the hidden layers' biases."""
    basis: Literal["depths", "increments", "layers"] = "depths"
    """Kernels that Omega weighs: of each depth; what each further layer of depth adds; or what the parameters of each
    layer contribute to the kernel of the deepest network."""
    objective: Literal["validation", "kfold", "loo", "evidence", "train", "alignment"] = "validation"
    """What Omega minimises: the error on held-out rows, of 5-fold cross-validation or leave-one-out; the negative log
    marginal likelihood; the regularised training loss of the paper's eq. 9; or 1 - centred kernel-target alignment."""
    constraint: Literal["simplex", "orthant"] = "simplex"
    """Set that Omega is kept in: weights of a class add up to one, or are merely >= 0."""
    penalty: float = 0.0
    """Weight of the penalty on Omega."""
    penalty_norm: Literal["l1", "l2"] = "l1"
    """Norm of the penalty: sum of Omega, or half its sum of squares."""
    method: Literal["quasi-newton", "projected-gradient"] = "quasi-newton"
    """How Omega descends: by curvatures that it learns, or the paper's eq. 16 with a fixed step, which may diverge."""
    step_size: float = 1.0
    """Fixed step of projected-gradient, for errors in units of their value at the start."""
    n_search: int | None = None
    """Training rows used to learn Omega; default all up to 3000."""
    resamples: int = 0
    """Learn Omega again on this many random splits of the search rows and report its spread."""
    one_standard_error: bool = True
    """Keep equal weights for a class whose gain on the held-out rows is within its standard error (simplex, per-class
    weights, validation or kfold)."""
    weights: Literal["per-class", "shared", "uniform"] = "per-class"
    """Learn one row of Omega a class, one for all classes, or none."""
    ridge: float | Literal["auto", "learned"] = "auto"
    """Ridge in units of the kernel's unit mean diagonal; auto chooses it on held-out rows, learned then learns one for
    every class together with Omega."""
    solver: Literal["auto", "cholesky", "cg", "nystroem"] = "auto"
    """How the ridge regression is solved: a factorisation a class; conjugate gradients for all classes, which keep no
    kernel; on --landmarks only, an approximation for more rows than those can take. auto: the quicker exact one."""
    solver_tolerance: float | None = None
    """Relative residual at which cg stops; default 1e-4, 1e-3 with a low-rank preconditioner, and 1e-10
    in float64."""
    landmarks: int | None = None
    """Training rows that nystroem keeps; default 4096."""
    inputs: Literal["auto", "general", "sphere"] = "auto"
    """Whether the scaled rows have one length (sphere), any (general), or are to be looked at."""
    precision: Literal["float32", "float64"] = "float32"
    """Of kernels and solves."""
    output: pathlib.Path | None = None
    """Output directory; default runs/DATASET-TIME."""
    overwrite: bool = False
    """Replace an earlier result in the output directory."""
    dry_run: bool = False
    """Print the plan (memory, seconds, solver) and compute nothing."""
    resume: bool = False
    """Take up an interrupted run with the same flags and output directory."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes (hosts) share the work; each is started with the same flags."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Number of this one, from 0; process 0 writes the output."""


def main(config: FitConfig) -> None:
    """Run a fit and write its output directory.

    Raises:
      CommandError, ValueError: bad input; nothing is written.
      ArithmeticError: a numerical failure, named; nothing is written.
    """
    from rich.console import Console

    from nftk_jax.journal import Checkpoint

    started = time.perf_counter()
    output = config.output or pathlib.Path("runs") / _default_name(config)
    writes = not config.process_id
    console = Console(quiet=not writes)
    if not config.dry_run and writes:
        command_line.check_output(output, overwrite=config.overwrite)
    _check_numbers(config)
    settings = _settings(config)
    _join_processes(config)
    with command_line.make_progress(console) as progress:
        dataset = _load(config, command_line.StageReport(progress))
    plan = _plan(dataset, settings)
    if config.dry_run:
        _print_plan(console, plan, dataset)
        return
    plan.check()
    checkpoint = Checkpoint(
        output, {**_computed(config), "sha256": dataset.sha256}, resume=config.resume, writes=writes
    )
    try:
        metrics, model = _compute(config, settings, dataset, plan, checkpoint, console)
        metrics["timings"]["total_s"] = time.perf_counter() - started
        if not writes:
            return
        with command_line.output_directory(output, overwrite=config.overwrite) as aside:
            _write(aside, metrics, model)
    except KeyboardInterrupt as stop:
        checkpoint.flush()
        if not checkpoint.exists:
            raise
        raise CommandError(
            f"stopped; the same command with --resume goes on from {checkpoint.directory}",
            command_line.interrupt_status(stop),
        ) from None
    checkpoint.remove()
    from nftk_jax.reports.tables import summary

    console.print(summary(metrics))
    console.print(
        f"results: {output}   report: {output / 'report.html'}", markup=False, highlight=False, soft_wrap=True
    )


def _compute(
    config: FitConfig, settings: LearnSettings, dataset: Dataset, plan: Plan, checkpoint: Checkpoint, console: Console
) -> tuple[dict[str, Any], NFTKModel]:
    """Learn and judge: what metrics.json holds, and the model."""
    from nftk_jax.assessment.assess import assess
    from nftk_jax.learn import learn

    outputs = "targets" if dataset.classes is None else "classes"
    console.print(
        f"{dataset.name}: {len(dataset.x_train)} training and {len(dataset.x_test)} test rows, {dataset.n_features} "
        f"features, {dataset.n_outputs} {outputs}; depths 1 to {config.depth}; solver {plan.solve.solver}",
        markup=False,
        highlight=False,
    )
    with warnings.catch_warnings(record=True) as caught, command_line.make_progress(console) as progress:
        warnings.simplefilter("always")
        report = command_line.StageReport(progress)
        learned = learn(
            dataset.x_train,
            dataset.y_train,
            settings,
            classes=dataset.classes,
            images=dataset.image_shape is not None,
            plan=plan.solve,
            journal=checkpoint,
            report=report,
        )
        checkpoint.flush()
        assessment = assess(
            dataset, learned, settings, resamples=config.resamples, baseline_rows=BASELINE_ROWS, report=report
        )
    for message in dict.fromkeys(str(item.message) for item in caught):
        console.print(f"note: {message}", markup=False, highlight=False)
    return {
        "schema": "nftk_jax.fit/1",
        "version": command_line.version(),
        "command": shlex.join(["python", "-m", "nftk_jax.fit", *sys.argv[1:]]),
        "config": {key: str(v) if isinstance(v, pathlib.Path) else v for key, v in dataclasses.asdict(config).items()},
        "environment": command_line.environment(),
        **assessment,
        "peak_memory_bytes": command_line.peak_memory_bytes(),
    }, learned.model


def _computed(config: FitConfig) -> dict[str, Any]:
    """The flags that a result depends on."""
    others = (
        "data_dir",
        "output",
        "overwrite",
        "dry_run",
        "resume",
        "resamples",
        "coordinator",
        "num_processes",
        "process_id",
    )
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in others}


def _join_processes(config: FitConfig) -> None:
    """Connect this process with the others of the run, before JAX looks for devices."""
    flags = (config.coordinator, config.num_processes, config.process_id)
    if all(flag is None for flag in flags):
        return
    if any(flag is None for flag in flags):
        raise CommandError("--coordinator, --num-processes and --process-id go together; got only some of them")
    import jax

    # programs that run side by side on the CPU may talk to the other processes in another order there
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
    except RuntimeError as error:
        raise CommandError(f"cannot join the processes at {config.coordinator}: {error}") from None


def _default_name(config: FitConfig) -> str:
    stem = pathlib.Path(config.dataset).name.removesuffix(".npz")
    return f"{stem}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _check_numbers(config: FitConfig) -> None:
    """Refuse what no type can: ranges of the flags that no constructor checks."""
    if config.resamples < 0:
        raise CommandError(f"--resamples must be >= 0; got {config.resamples}")
    if config.resamples == 1:
        raise CommandError("--resamples must be 0 or at least 2, since one has no spread; got 1")
    config.check_seed()


def _settings(config: FitConfig) -> LearnSettings:
    from nftk_jax.kernels.mlp import MLP
    from nftk_jax.learn import LearnSettings
    from nftk_jax.settings import SearchSettings

    search = SearchSettings(
        config.objective,
        config.constraint,
        config.penalty,
        config.penalty_norm,
        config.weights,
        method=config.method,
        step_size=config.step_size,
        ridge="learned" if config.ridge == "learned" else "auto",
    )
    return LearnSettings(
        mlp=MLP(config.depth, config.activation, config.w_std, config.b_std, basis=config.basis),
        search=search,
        ridge="auto" if config.ridge == "learned" else config.ridge,
        n_search=config.n_search,
        precision=config.precision,
        scaling=config.scaling,
        unit_norm=config.unit_norm,
        one_standard_error=config.one_standard_error,
        seed=config.seed,
        solver=config.solver,
        solver_tolerance=config.solver_tolerance,
        landmarks=config.landmarks,
        inputs=config.inputs,
    )


def _load(config: FitConfig, report: command_line.StageReport) -> Dataset:
    dataset = config.load(report)
    check_rows("--n-search", config.n_search, dataset)
    return dataset


def _plan(dataset: Dataset, settings: LearnSettings) -> Plan:
    from nftk_jax.learn import make_plan

    return make_plan((len(dataset.x_train), dataset.n_features), dataset.n_outputs, len(dataset.x_test), settings)


def _print_plan(console: Console, plan: Plan, dataset: Dataset) -> None:
    from rich.table import Table

    solve = plan.solve
    details = {"cg": f", preconditioner of rank {solve.rank}", "nystroem": f", {solve.rank} landmarks"}
    title = f"plan: {dataset.name}, solver {solve.solver}{details.get(solve.solver, '')}"
    table = Table("stage", "memory, GiB", "seconds (estimate)", title=title)
    for stage in plan.stages:
        table.add_row(stage.name, f"{stage.bytes / 2**30:.2f}", f"{stage.seconds:.0f}")
    table.add_section()
    for other in plan.alternatives:
        table.add_row(f"solve by {other.solver}", f"{other.peak_bytes / 2**30:.2f}", f"{other.seconds:.0f}")
    console.print(table)
    fits, free = "fits" if plan.fits else "does not fit", plan.machine.memory / 2**30
    console.print(
        f"{fits}: peak {plan.peak_bytes / 2**30:.2f} GiB of {free:.1f} GiB free; {solve.solver}: {solve.reason}"
    )


def _write(directory: pathlib.Path, metrics: dict[str, Any], model) -> None:
    """Write every file of the contract."""
    from nftk_jax.reports.fit_figures import save_figures
    from nftk_jax.reports.html import render_report

    model.save(directory)
    rows = [f"class,{metrics['basis'].removesuffix('s')},weight,kernel_weight"]
    for name, weights, kernel_weights in zip(
        metrics["dataset"]["class_names"], metrics["omega"], metrics["kernel_omega"], strict=True
    ):
        quoted = '"' + name.replace('"', '""') + '"' if any(mark in name for mark in ',"\n\r') else name
        for depth, (weight, kernel_weight) in enumerate(zip(weights, kernel_weights, strict=True), 1):
            rows.append(f"{quoted},{depth},{weight!r},{kernel_weight!r}")
    (directory / "omega.csv").write_text("\n".join(rows) + "\n")
    (directory / "figures").mkdir()
    figures = save_figures(metrics, directory / "figures")
    (directory / "report.html").write_text(render_report(metrics, figures), encoding="utf-8")
    (directory / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")


def command() -> int:
    """The console script nftk-fit."""
    return command_line.run(main, FitConfig, prog="nftk_jax.fit", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(command())
