"""Learning the weights of kernels side by side: ours, himalaya, and on depths scikit-learn and MKLpy.

    make bench-mkl                                        (a virtual environment of its own, with the peers)
    python benchmarks/mkl.py [--fast] [--cases depths bands targets] [--sizes N ...] [--targets C ...] [--threads 1]
                             [--minutes 30 | --budget SECONDS] [--json FILE] [--figure FILE.png] [--docs PAGE.md]

One JSON object on standard output, progress on standard error. The cases are in `mkl_cases.py`, the methods in
`mkl_methods.py`: everyone gets the same kernels, given, in float32, the same five folds, and as many threads of the
CPU. Each method runs in a process of its own, so that its memory is its own. himalaya takes the backend and settings
that did best in a trial on each kind of case, and as many iterations, up to those of its documentation, as fit a budget
of seconds. Losses are recomputed in float64 by one function from the weights that come back.

`speedup_to_equal_loss` of a case is the time that a peer takes in all over our time to the loss that the peer ends
with, on both clocks, wall and processor; our time counts the choice of the ridge. All cases together take about
`--minutes`; what had to be cut is listed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from mkl_cases import JUDGED, KINDS, Case, Task, kfold_loss, make_task, test_accuracy
from mkl_methods import CHOICES
from mkl_report import PEERS, by_case, compare, cuts, draw, markdown, write_between_markers
from threadpoolctl import threadpool_limits

SIZES = {"depths": (2000, 4000), "bands": (500, 1000, 2000, 4000), "targets": (500, 1000)}
TARGETS = (10, 100, 1000, 10_000)
#: Most rows of the peers that run on depths alone.
LARGEST = {"kernel_ridge_grid": 4000, "mklpy": 2000}
TRIAL_ROWS, TRIAL_TARGETS = 500, 100
#: Share of a case's time that one of himalaya's solvers gets; the rest is for ours, trials and the oracle.
SHARE = 0.35
#: Seconds that a case of ten targets takes besides, at 4,000 rows: the oracle's factorisations.
OVERHEAD = 80


class Allowance:
    """Seconds for one method: fixed, or such that all cases together take so many minutes."""

    def __init__(self, cases: list[Case], budget: float | None, minutes: float) -> None:
        self._left, self._budget, self._end = list(cases), budget, time.monotonic() + 60 * minutes

    def next_case(self) -> float | None:
        """The budget of every method on the next case; None where there is no time for it."""
        overhead = [OVERHEAD * (case.n / 4000) ** 3 * min(case.targets, JUDGED) / 10 for case in self._left]
        time_left, count = self._end - time.monotonic(), len(self._left)
        self._left.pop(0)
        if self._budget is not None:
            return self._budget
        if time_left < overhead[0]:
            return None
        return max(2.0, SHARE * (time_left - sum(overhead)) / count)


def choose_cases(options: argparse.Namespace) -> list[Case]:
    """Cases by name, cheap ones first."""
    if options.fast:
        return sorted(
            Case(options.sizes[0] if options.sizes else 100, 10, kind)
            for kind in ("depths", "bands-ntk", "targets")
            if _selected(kind, options.cases)
        )
    cases = []
    for kind in KINDS:
        if _selected(kind, options.cases):
            targets = (options.targets or TARGETS) if kind == "targets" else (10,)
            cases += [Case(n, c, kind) for n in options.sizes or SIZES[kind.split("-")[0]] for c in targets]
    return sorted(cases)


def _selected(kind: str, names: list[str]) -> bool:
    return any(kind == name or kind.startswith(f"{name}-") for name in names)


def environment(threads: int | None) -> dict[str, str]:
    """Of a method's process: the CPU alone, as many threads for every library; None leaves all cores to them."""
    variables = os.environ | {"JAX_PLATFORMS": "cpu"}
    if threads is None:
        return variables
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1:
        flags += " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return variables | dict.fromkeys(names, str(threads)) | {"XLA_FLAGS": flags.strip()}


def run_method(method: str, task: Path, result: Path, settings: dict[str, Any], threads: int | None) -> str | None:
    """Run a method in a process of its own; returns why it has no result, or None."""
    script, budget = Path(__file__).with_name("mkl_methods.py"), settings.get("budget", 600.0)
    command = [sys.executable, str(script), method, str(task), str(result), json.dumps(settings)]
    limit = 6 * budget + 120  # two runs of ours, imports, compilation; the budget itself is kept by the method
    try:
        done = subprocess.run(command, env=environment(threads), stderr=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


class Bench:
    """What the cases share: the folder for arrays, the number of threads, and himalaya's best settings by kind."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder, self._options = folder, options
        self.settings: dict[str, dict[str, Any]] = {}

    def measure(self, case: Case, budget: float) -> dict:
        """Every method on one case."""
        task = make_task(case, 200 if self._options.fast else 2000)
        path = self._folder / "task.npz"
        task.save(path)
        methods = {}
        for method in self._options.methods:
            if method in ("kernel_ridge_grid", "mklpy") and (case.kind != "depths" or case.n > LARGEST[method]):
                continue
            settings = self._best_settings(method, case) if method in CHOICES else {}
            rows = self._rows(method, path, task, settings | {"budget": budget})
            methods |= rows
            for name, row in rows.items():
                say(f"{case.name}: {name}: {_line(row)}")
        facts = {"name": case.name, **vars(case), "kernels": len(task.k), "judged_targets": len(task.judged)}
        return facts | {"budget_s": budget, "methods": methods} | compare(methods)

    def _rows(self, method: str, path: Path, task: Task, settings: dict[str, Any]) -> dict[str, dict]:
        """What a method measured, by its name; MKLpy is two."""
        result = path.with_name("result.npz")
        failure = run_method(method, path, result, settings, self._options.threads)
        if failure is not None:
            return {method: {"cut": failure}}
        if method == "mklpy":
            return json.loads(result.read_text())
        with np.load(result) as file:
            arrays = dict(file)
        history = {"seconds": arrays["wall"], "processor_seconds": arrays["processor"], "loss": arrays["loss"]}
        row = {
            "seconds": float(arrays["wall"][-1]),
            "processor_seconds": float(arrays["processor"][-1]),
            "iterations": len(arrays["wall"]),
            "kfold_loss": kfold_loss(task, arrays["weights"]),
            "settings": {key: value for key, value in settings.items() if key != "budget"},
            **json.loads(str(arrays["plain"])),
            "history": {name: values.tolist() for name, values in history.items()},
        }
        if task.labels is not None:
            row["test_accuracy"] = test_accuracy(task, arrays["weights"])
        return {method: row}

    def _best_settings(self, method: str, case: Case) -> dict[str, Any]:
        """From a trial, one for each kind of case."""
        kind = case.kind.split("-")[0]
        chosen = self.settings.setdefault(method, {})
        if kind not in chosen and self._options.fast:
            chosen[kind] = {name: values[0] for name, values in CHOICES[method].items()}
        if kind not in chosen:
            trial = Case(TRIAL_ROWS, TRIAL_TARGETS if kind == "targets" else 10, case.kind)
            path, result = self._folder / "trial.npz", self._folder / "trial.json"
            make_task(trial, 10).save(path)
            failure = run_method(method, path, result, {"trial": True}, self._options.threads)
            if failure is not None:
                raise SystemExit(f"the trial of {method} on {trial.name} ended early: {failure}")
            chosen[kind] = json.loads(result.read_text())
            say(f"{kind}: {method} runs with {chosen[kind]}")
        return chosen[kind]


def _line(row: dict) -> str:
    if "cut" in row:
        return f"no result: {row['cut']}"
    times = f"{row['seconds']:.1f} s, {row['processor_seconds']:.1f} s of the processor"
    if "kfold_loss" not in row:
        return f"{times}, accuracy {row['test_accuracy']:.3f}"
    memory = f"{row['peak_memory_mib']:,.0f} MiB"
    note = f"; {row['note']}" if row["note"] else ""
    return f"loss {row['kfold_loss']:.5f} in {times}, {row['iterations']} iterations, {memory}{note}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def summary(cases: list[dict], settings: dict, left_out: list[str], threads: int | None) -> dict[str, Any]:
    """The JSON object."""
    return {
        "schema": "nftk_jax.bench_mkl/2",
        "jax": importlib.metadata.version("jax"),
        "himalaya": _version("himalaya"),
        "cpu_count": os.cpu_count(),
        "threads": threads,
        **{what: by_case(cases, what) for what in ("speedup_to_equal_loss", "speedup_in_all", "final_loss_ratio")},
        "cut": cuts(cases),
        "left_out": left_out,
        "himalaya_settings": settings,
        "cases": cases,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    methods = ["ours", *PEERS, "kernel_ridge_grid", "mklpy"]
    names = ["depths", "bands", "targets", *(kind for kind in KINDS if "-" in kind)]
    parser.add_argument("--fast", action="store_true", help="one tiny case of each kind: that the benchmark runs")
    parser.add_argument("--cases", nargs="+", choices=names, default=names[:3], help="default: depths bands targets")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"training rows; default by case {SIZES}")
    parser.add_argument("--targets", type=int, nargs="+", help=f"simulated targets of `targets`; default {TARGETS}")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, help="default: all")
    parser.add_argument("--threads", type=int, help="of every method; default all cores")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all cases together (default 30)")
    parser.add_argument("--budget", type=float, help="seconds for each of himalaya's runs, in place of --minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there too, as they come")
    parser.add_argument("--read", type=Path, metavar="FILE", nargs="+", help="measure nothing: take these files' cases")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw loss against time (needs matplotlib)")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the tables between the markers of this page")
    return parser.parse_args(arguments)


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    cases, measured, left_out = choose_cases(options), [], []
    allowance = Allowance(cases, 1.0 if options.fast else options.budget, options.minutes)
    result = summary(measured, {}, left_out, options.threads)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(options.threads):  # the oracle's threads too
        bench = Bench(Path(folder), options)
        for case in cases:
            budget = allowance.next_case()
            if budget is None:
                left_out.append(f"{case.name} left out")
                say(left_out[-1])
                continue
            measured.append(bench.measure(case, budget))
            result = summary(measured, bench.settings, left_out, options.threads)
            for name, speedup in measured[-1]["speedup_to_equal_loss"].items():
                say(f"{case.name}: {speedup['wall']:.1f} times (processor {speedup['processor']:.1f}) against {name}")
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.read:
        results = [json.loads(path.read_text()) for path in options.read]
        cases, left_out = ([entry for one in results for entry in one[key]] for key in ("cases", "left_out"))
        result = results[0] | summary(cases, results[0]["himalaya_settings"], left_out, results[0]["threads"])
    else:
        result = measure_all(options)
    json.dump(result, sys.stdout, indent=1)
    if options.figure:
        draw(result["cases"], options.figure, "processor" if result["threads"] == 1 else "wall")
    if options.docs:
        write_between_markers(options.docs, markdown(result))


if __name__ == "__main__":
    main()
