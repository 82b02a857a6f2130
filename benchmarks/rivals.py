"""Accuracy against seconds at scale: nftk_jax and other solvers of kernel ridge regression, on the same rows of MNIST.

    python benchmarks/rivals.py --rivals-python ENVIRONMENT/bin/python [--sizes 5000 20000 60000] [--only METHOD ...]
                                [--kernels KERNEL ...] [--limit SECONDS] [--data-dir DIR] [--fast]
                                [--json FILE] [--figure FILE.png] [--docs PAGE.md]

The rivals are not part of this repository: install what you want of them into an environment of your own (what is not
there is named, with the command that installs it, and left out) and give its Python. nftk_jax runs in the Python of
this command. Every method has a process and one thread, and the same inputs and targets. RBF and Laplace have the width
and the ridge that do best on a third of 3,000 training rows, which is held out: the choice that nftk_jax makes for its
own baselines. The clocks start when the data are loaded and what is compiled has been compiled, and stand still while
accuracy is measured on all test rows. `--limit` is for one fit of a rival, in seconds of the processor.

With --json, what the file has of other sizes, methods and kernels is kept: `--only nftk_jax` measures nftk_jax again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from mkl import environment, say
from mkl_report import write_between_markers
from rivals_methods import METHODS, Task
from rivals_report import MARKERS, draw, markdown

SCHEMA, SIZES = "nftk_jax.rivals/1", (5000, 20_000, 60_000)
#: Kernels of each method; nftk_jax also learns its mix of ten depths.
KERNELS = {name: ("laplace", "rbf") for name in METHODS} | {
    "nftk_jax": ("depths", "laplace", "rbf"),
    "nystroem": ("rbf",),  # its Laplace kernel is of the sum of absolute differences, entry by entry
}
#: Most rows of each method, and why.
LARGEST = {
    "gpytorch": (20_000, "it keeps the kernel of all pairs, 14.4 GB"),
    "keops": (5000, "a pass evaluates every pair anew in 784 features by a loop, not by a product of matrices"),
    "askotch": (5000, "it evaluates kernels by KeOps, and every class by itself"),
}
#: The module of each rival, and how to install it.
INSTALL = {
    "eigenpro": ("eigenpro2", "pip install torch git+https://github.com/EigenPro/EigenPro-pytorch"),
    "falkon": (
        "falkon",
        "pip install torch wheel && FORCE_ONLY_CPU=1 pip install --no-build-isolation "
        "git+https://github.com/FalkonML/falkon",
    ),
    "nystroem": ("sklearn", "pip install scikit-learn"),
    "gpytorch": ("gpytorch", "pip install gpytorch"),
    "keops": ("pykeops", "pip install torch pykeops"),
    "askotch": ("fast_krr", "pip install git+https://github.com/pratikrathore8/fast_krr"),
}


def load_task(options: argparse.Namespace, n: int) -> Task:
    """The rows that `nftk fit --dataset mnist --n-train n` draws, from 0 to 1."""
    from nftk_jax.datasets import load_dataset

    sizes = {} if options.n_test is None else {"n_test": options.n_test}
    data = load_dataset(options.dataset, data_dir=options.data_dir, n_train=n, **sizes)
    x, x_test = (np.asarray(rows / np.float32(255), np.float32) for rows in (data.x_train, data.x_test))
    return Task(x, data.y_train, x_test, data.y_test)


def choose(task: Task) -> dict[str, dict[str, float]]:
    """Width and ridge of both distance kernels on held-out rows, as for the baselines of nftk_jax."""
    import jax.numpy as jnp

    from nftk_jax.assessment.baselines import choose_distance_kernel
    from nftk_jax.kernels.distance import square_distances_within
    from nftk_jax.mkl.problem import SearchProblem
    from nftk_jax.parts import TrainingRows, draw_search
    from nftk_jax.settings import LearnSettings

    rows = TrainingRows(task.x, task.labels, np.arange(task.y.shape[1]), images=True)
    positions, splits = draw_search(rows, LearnSettings(), 1)
    squares = square_distances_within(jnp.asarray(task.x[positions]))
    problem, found = SearchProblem(squares[None], jnp.asarray(task.y[positions]), splits), {}
    for name in ("laplace", "rbf"):
        kernel, ridge = choose_distance_kernel(name, squares, problem, shared_ridge=True)
        found[name] = {"width": float(kernel.width), "ridge": float(ridge[0])}
    return found


def missing(python: str, methods: list[str]) -> list[str]:
    """The methods whose module this Python does not find; each is named with what installs it."""
    code = "import sys, importlib.util as u; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    modules = {name: INSTALL[name][0] for name in methods if name in INSTALL}
    done = subprocess.run([python, "-c", code, *modules.values()], capture_output=True, text=True, check=True)
    absent = [name for name, module in modules.items() if module in done.stdout.split()]
    for name in absent:
        say(f"{name} is left out: {python} does not find {modules[name]}; {INSTALL[name][1]}")
    return absent


def run(method: str, task: Path, settings: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What a method measured in a process of its own, or why it did not."""
    script, result = Path(__file__).with_name("rivals_methods.py"), task.with_name("result.json")
    result.unlink(missing_ok=True)
    python = sys.executable if method == "nftk_jax" else options.rivals_python
    # KeOps compiles for any processor unless it is told
    flags = {"CXXFLAGS": "-march=native -ffast-math", "KEOPS_CACHE_FOLDER": str(task.parent)}
    command = [python, str(script), method, str(task), str(result), json.dumps(settings)]
    done = subprocess.run(command, env=environment(1) | flags, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return json.loads(result.read_text())
    return {"cut": (done.stderr.strip().splitlines() or ["?"])[-1][:200] + f" (exit status {done.returncode})"}


def measure(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Every method and kernel at every size; the result is written after each."""
    chosen = [name for name in METHODS if name in options.only]
    absent = missing(options.rivals_python, chosen)
    for n in options.sizes:
        begin = time.process_time()
        task, case = load_task(options, n), result["sizes"].setdefault(str(n), {"methods": {}})
        case["load_s"] = time.process_time() - begin
        if "chosen" not in case:
            begin = time.process_time()
            case["chosen"] = choose(task)
            case["choose_s"] = time.process_time() - begin
            say(f"n = {n:,}: {case['chosen']}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "task.npz"
            task.save(path)
            for method in chosen:
                largest, why = LARGEST.get(method, (n, ""))
                for kernel in (kernel for kernel in KERNELS[method] if kernel in options.kernels):
                    if method in absent:
                        continue
                    key, facts = f"{method}, {kernel}", {"method": method, "kernel": kernel, "processor": processor()}
                    if n > largest:
                        case["methods"][key] = facts | {"cut": f"not run above {largest:,} rows: {why}"}
                    else:
                        settings = {"kernel": kernel, "limit": options.limit} | case["chosen"].get(kernel, {})
                        case["methods"][key] = facts | run(method, path, settings, options)
                    say(f"n = {n:,}: {key}: {line(case['methods'][key])}")
                    if options.json:
                        options.json.write_text(json.dumps(result, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    if "cut" in row:
        return row["cut"]
    steps = (f"{100 * p['accuracy']:.2f} % at {p['processor_s']:.1f} s ({p['step']})" for p in row["points"][-3:])
    return "; ".join([*steps, *([row["note"]] if row["note"] else [])])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kernels = sorted({kernel for names in KERNELS.values() for kernel in names})
    parser.add_argument("--rivals-python", default=sys.executable, metavar="PYTHON", help="which finds the rivals")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help=f"training rows (default {SIZES})")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    parser.add_argument("--kernels", nargs="+", choices=kernels, default=kernels, help="default: all")
    parser.add_argument(
        "--limit", type=float, default=1e6, metavar="SECONDS", help="of the processor, for one fit of a rival"
    )
    parser.add_argument("--dataset", choices=["mnist", "mnist-small"], default="mnist")
    parser.add_argument("--data-dir", help="where MNIST's files are")
    parser.add_argument("--n-test", type=int, help="test rows (default all)")
    parser.add_argument("--fast", action="store_true", help="a check that the benchmark runs: 100 rows of mnist-small")
    parser.add_argument("--read", action="store_true", help="measure nothing: take what --json has")
    parser.add_argument("--json", type=Path, metavar="FILE", help="read and write the measurements there")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw accuracy against seconds (needs matplotlib)")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the tables between the markers of this page")
    options = parser.parse_args(arguments)
    if options.fast:
        options.dataset, options.sizes, options.n_test = "mnist-small", [100], 200
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    result: dict[str, Any] = {"schema": SCHEMA, "sizes": {}}
    if options.json and options.json.exists():
        result = read(options.json)
    if not options.read:
        result |= {"dataset": options.dataset, "cpu_count": os.cpu_count()}
        measure(options, result)
    if options.figure:
        draw(result, options.figure)
    if options.docs:
        write_between_markers(options.docs, markdown(result), MARKERS)
    print(markdown(result))


def read(path: Path) -> dict[str, Any]:
    """What an earlier run wrote."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise SystemExit(f"{path} must be what this command wrote (schema {SCHEMA}); give --json another file")
    return found


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [row.split(":")[1].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
