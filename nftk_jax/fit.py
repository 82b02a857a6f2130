"""`python -m nftk_jax.fit`: learn how much each kernel contributes to each class, and judge the result."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nftk_jax.commands import command_line
from nftk_jax.commands.command_line import CommandError, speak_of_flags
from nftk_jax.commands.data_flags import DataFlags, RunFlags, check_rows
from nftk_jax.commands.environment import check_devices
from nftk_jax.commands.kernel_flags import KernelFlags, digest
from nftk_jax.commands.run import ResumableFlags, Run, write_report
from nftk_jax.settings import (
    BaselinesName,
    ClassWeightName,
    DecisionName,
    LearnSettings,
    MLPSettings,
    ScalingSettings,
    SearchSettings,
    SolveSettings,
    flatten,
    gather,
)

if TYPE_CHECKING:
    from rich.console import Console

    from nftk_jax.commands.checkpoint import Checkpoint
    from nftk_jax.datasets import Dataset
    from nftk_jax.kernels.kernel import Kernel
    from nftk_jax.model import NFTKModel
    from nftk_jax.solvers.plan import Plan


@dataclasses.dataclass(frozen=True)
class ProcessFlags:
    """Several processes, on one host or on many, that share the work."""

    coordinator: str | None = None
    """To share the work between processes: HOST:PORT of process 0. All of them get the same flags."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0. Process 0 writes the result."""


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Flags of `python -m nftk_jax.fit`; config{} of metrics.json."""

    data: DataFlags = dataclasses.field(default_factory=DataFlags)
    held_out: Annotated[RunFlags, tyro.conf.arg(name="data")] = dataclasses.field(default_factory=RunFlags)
    scaling: Annotated[ScalingSettings, tyro.conf.arg(name="data")] = dataclasses.field(default_factory=ScalingSettings)
    kernels: KernelFlags = dataclasses.field(default_factory=KernelFlags)
    mlp: Annotated[MLPSettings, tyro.conf.arg(name="kernels")] = dataclasses.field(default_factory=MLPSettings)
    search: SearchSettings = dataclasses.field(default_factory=SearchSettings)
    solve: SolveSettings = dataclasses.field(default_factory=SolveSettings)
    files: Annotated[ResumableFlags, tyro.conf.arg(name="run")] = dataclasses.field(default_factory=ResumableFlags)
    processes: Annotated[ProcessFlags, tyro.conf.arg(name="run")] = dataclasses.field(default_factory=ProcessFlags)
    decision: DecisionName = LearnSettings.decision
    """How scores become labels. scores: the largest score wins; logistic: a logistic regression on the scores of
    held-out rows."""
    class_weight: ClassWeightName = "none"
    """balanced: all classes have the same total weight in training, however rare they are."""
    baselines: BaselinesName = "auto"
    """Simpler models to compare with. quick: equal weights, the best single kernel and shared weights, on the rows of
    the search; auto: also weights from shuffled labels, an RBF and a Laplace kernel, on all rows if there are at most
    20000; all: the same on all rows, however many."""
    resamples: int = 0
    """Learn Omega again on this many random splits, to see how much it varies."""
    influence: int = 0
    """Explain this many test rows by the training rows that matter most to them, and list training rows that look
    mislabelled."""
    dry_run: bool = False
    """Print the expected memory, time and solver, and compute nothing."""


def main(config: FitConfig) -> None:
    """Run a fit and write its output directory.

    Raises:
      CommandError, ValueError: bad input; nothing is written.
      ArithmeticError: a numerical failure, named; nothing is written.
    """
    from nftk_jax.kernels.groups import group_kernel

    with Run("fit", config, dry=config.dry_run, writes=not config.processes.process_id) as run:
        kernel, settings = _settings(config)
        _join_processes(config.processes)
        check_devices()
        with run.progress() as report:
            dataset = config.held_out.apply(config.data.load(report), config.data)
            groups = config.kernels.read_groups(dataset)
        if groups:
            kernel = group_kernel(kernel, groups)
        check_rows("--n-search", config.search.n_search, dataset)
        if config.class_weight == "balanced" and dataset.classes is None:
            raise CommandError(f"--class-weight balanced needs classes, and {dataset.name} has numbers as targets")
        plan = _plan(dataset, kernel, settings)
        _check_influence(config, plan, dataset)
        if config.dry_run:
            _print_plan(run.console, plan, dataset, kernel)
            return
        plan.check()
        run.describe(dataset, f"{_describe(kernel)}; solver {plan.solve.solver}")
        also = {"columns": digest(groups)} if groups else {}
        if dataset.runs is not None:
            also["rows"] = digest(dataset.runs.tolist())
        with run.checkpoint(dataset, resume=config.files.resume, also=also) as checkpoint:
            blocks, model = _compute(run, config, dataset, kernel, settings, plan, checkpoint)
            metrics = run.metrics({**blocks, "groups": {name: list(columns) for name, columns in groups.items()}})
            run.write(metrics, lambda directory, metrics: _write(directory, metrics, model, dataset))
        from nftk_jax.reports.tables import summary

        run.conclude(summary(metrics))


def _settings(config: FitConfig) -> tuple[Kernel, LearnSettings]:
    """The kernels of one group and the settings, checked as far as they can be without data."""
    from nftk_jax.kernels.members import network_kernel, with_members
    from nftk_jax.mkl.search import check_search

    if config.resamples < 0 or config.resamples == 1:
        raise CommandError(f"--resamples must be 0 or at least 2, since one has no spread; got {config.resamples}")
    check_search(config.search)
    config.kernels.check()
    network = network_kernel(config.mlp, config.kernels.depth_numbers)
    return with_members(network, config.kernels.members), gather(LearnSettings, flatten(config))


def _check_influence(config: FitConfig, plan: Plan, dataset: Dataset) -> None:
    """Refuse to explain test rows where that would fail after everything else."""
    from nftk_jax.memory import GIB, available_memory
    from nftk_jax.model.systems import check_rows_fit

    if config.influence < 0:
        raise CommandError(f"--influence must be 0 or a number of test rows; got {config.influence}")
    if not config.influence:
        return
    if plan.solve.solver == "nystroem":
        raise CommandError("--influence needs all training rows, and --solver nystroem keeps landmarks; leave one out")
    check_rows_fit(len(dataset.x_train))
    rows = min(config.influence, len(dataset.x_test))
    needed = 8 * rows * len(dataset.x_train)
    if needed > available_memory() / 2:
        raise CommandError(
            f"--influence {rows} needs {needed / GIB:.1f} GiB for the effects of all training rows on them; explain "
            "fewer"
        )


def _describe(kernel: Kernel) -> str:
    """The kernels in words: "depths 1 to 10", "34 kernels of 17 groups"."""
    depths = [label.depth for label in kernel.labels]
    if kernel.word == "depth" and depths == list(range(1, len(depths) + 1)):
        return f"depths 1 to {len(depths)}"
    groups = len({label.group for label in kernel.labels if label.group})
    words = f"{len(depths)} kernel{'s' * (len(depths) > 1)}"
    return f"{words} of {groups} group{'s' * (groups > 1)} of features" if groups else words


def _join_processes(flags: ProcessFlags) -> None:
    """Connect this process with the others of the run, before JAX looks for devices."""
    given = (flags.coordinator, flags.num_processes, flags.process_id)
    if all(flag is None for flag in given):
        return
    if any(flag is None for flag in given):
        raise CommandError("--coordinator, --num-processes and --process-id go together; got only some of them")
    import jax

    # programs that run side by side on the CPU may talk to the other processes in another order there
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(flags.coordinator, flags.num_processes, flags.process_id)
    except RuntimeError as error:
        raise CommandError(f"cannot join the processes at {flags.coordinator}: {error}") from None


def _plan(dataset: Dataset, kernel: Kernel, settings: LearnSettings) -> Plan:
    from nftk_jax.learn import make_plan
    from nftk_jax.preprocessing.sampling import count_run_folds

    shape = len(dataset.x_train), dataset.n_features
    folds = None if dataset.runs is None else count_run_folds(dataset.runs, settings.search.cv)
    return make_plan(shape, dataset.n_outputs, len(dataset.x_test), kernel, settings, folds=folds)


def _print_plan(console: Console, plan: Plan, dataset: Dataset, kernel: Kernel) -> None:
    from rich.table import Table

    solve = plan.solve
    details = {"cg": f", preconditioner of rank {solve.rank}", "nystroem": f", {solve.rank} landmarks"}
    title = f"plan: {dataset.name}, {_describe(kernel)}, solver {solve.solver}{details.get(solve.solver, '')}"
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
    if plan.search.solve is not None:
        console.print(f"search: {plan.search.reason}; its systems by {plan.search.solve.solver}")


def _compute(
    run: Run,
    config: FitConfig,
    dataset: Dataset,
    kernel: Kernel,
    settings: LearnSettings,
    plan: Plan,
    checkpoint: Checkpoint,
) -> tuple[dict[str, Any], NFTKModel]:
    """Learn and judge: the blocks of metrics.json, and the model."""
    from nftk_jax.assessment.assess import assess_learned
    from nftk_jax.assessment.influence import explain
    from nftk_jax.datasets import read_texts
    from nftk_jax.learn import TrainingRows, learn
    from nftk_jax.preprocessing.reading import weigh_classes

    images = dataset.image_shape is not None
    balanced = config.class_weight == "balanced"
    weight = weigh_classes("balanced", dataset.y_train) if balanced else None
    rows = TrainingRows(
        dataset.x_train, dataset.y_train, dataset.classes, images, weight, runs=dataset.runs, table=dataset.table
    )
    with (
        run.progress() as report,
        learn(
            rows, kernel, settings, plan=plan.solve, search=plan.search, journal=checkpoint, report=report
        ) as learned,
    ):
        checkpoint.flush()
        found = assess_learned(dataset, learned, resamples=config.resamples, baselines=config.baselines, report=report)
        if config.influence:
            texts = read_texts(dataset, config.data.data_dir, report=report)
            found["influence"] = explain(dataset, learned.model, config.influence, report, texts=texts)
        for block, text in ((found["identifiability"], "verdict"), (found, "baselines_note")):
            block[text] = block[text] and speak_of_flags(block[text], FitConfig)
        certificate = found["certificate"]
        if certificate["warning"] is not None:
            certificate["warning"] = speak_of_flags(certificate["warning"], FitConfig)
        return found, learned.model


def _write(directory: pathlib.Path, metrics: dict[str, Any], model: NFTKModel, dataset: Dataset) -> None:
    """Write what the contract has besides metrics.json."""
    from nftk_jax.reports.fit_figures import save_figures
    from nftk_jax.reports.html import render_report
    from nftk_jax.reports.maps import mean_images

    dataclasses.replace(model, table=dataset.table).save(directory)
    with (directory / "omega.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["class", "kernel", "group", "kind", "depth", "weight", "kernel_weight", "contribution"])
        columns = metrics["omega"], metrics["kernel_omega"], metrics["contributions"]["test"]
        for name, *rows in zip(metrics["dataset"]["class_names"], *columns, strict=True):
            for kernel, *cells in zip(metrics["kernels"], *rows, strict=True):
                row = [kernel["label"], kernel["group"], kernel["kind"], kernel["depth"]]
                table.writerow([name, *row, *map(repr, cells)])
    write_report(
        directory,
        lambda folder: save_figures(metrics, folder, mean_images(dataset), dataset),
        lambda figures: render_report(metrics, figures),
    )


def command(prog: str = "nftk_jax.fit") -> int:
    """The console script nftk-fit, and the command `nftk fit`: its errors begin with `prog`."""
    return command_line.run(main, FitConfig, prog=prog, description=__doc__)


if __name__ == "__main__":
    sys.exit(command())
