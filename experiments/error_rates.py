"""How often the tests and intervals of Omega are wrong: a Monte Carlo study on targets whose weights are known.

    python experiments/error_rates.py [--sizes 100 300 600] [--designs 10] [--targets 20] [--no-intervals] [--docs]

Targets are drawn from a Gaussian process whose kernel is a known sum of the kernels that are tested, plus noise. The
kernels are NTKs of depths 1 to 10 on all features ("depths", nearly collinear) or depth-2 NTKs of five disjoint pairs
of features ("groups", well separated). Classes come from such targets by a threshold, or by the largest of five. Every
cell of the study is written to the results as soon as it is done, and a finished one is not run again with the same
flags. Standard errors are of the means over designs, since targets of one design share their kernels.

`--no-intervals` leaves out the intervals, which take most of the time. `--fast` has fewer draws and n = 100 alone.
`--docs` then writes the tables of docs/error-rates.md and the figure; `--report` writes them from the cells that are
there, and runs none.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import store

from nftk_jax import MLP, RBF, combined_kernel
from nftk_jax.inference.table import Inference, InferenceTable
from nftk_jax.kernels.kernel import KernelLabel
from nftk_jax.kernels.precision import enable_x64
from nftk_jax.reports import figures

TRUTHS = ("noise", "uniform", "two", "one")
OUTPUTS = ("normal", "t3", "two classes", "1:20", "five classes", "rbf")
LEVEL = 0.05
N_FEATURES = 10


@dataclasses.dataclass(frozen=True)
class Cell:
    """One setting of the study.

    Attributes:
      family: "depths" or "groups".
      truth: which kernels the targets need: none, all alike, the first and third, or the first.
      snr: variance of the signal over that of the noise.
      output: noise of real targets, normal or of Student's t with 3 degrees of freedom; classes; or "rbf", real targets
        drawn from RBF kernels of the same features, which are none of those tested.
      n: rows.
    """

    family: str
    truth: str
    snr: float
    output: str
    n: int

    def __str__(self) -> str:
        return f"{self.family}, {self.truth}, snr {self.snr:g}, {self.output}, n {self.n}"


def cells(sizes: list[int]) -> Iterator[Cell]:
    """Every setting, the smallest first."""
    for n, family, truth in itertools.product(sizes, ("groups", "depths"), TRUTHS):
        for snr in (0.0,) if truth == "noise" else (1.0, 10.0):
            yield Cell(family, truth, snr, "normal", n)
    for n, output, truth in itertools.product(sizes, OUTPUTS[1:], TRUTHS):
        yield Cell("groups", truth, 0.0 if truth == "noise" else 10.0, output, n)


def run_cell(cell: Cell, designs: int, targets: int, *, intervals: bool = True) -> dict[str, Any]:
    """Means and standard errors of the rates, by name."""
    rngs = (np.random.default_rng([number, cell.n]) for number in range(designs))
    rates = [_run_design(cell, targets, rng, intervals=intervals and cell.output == "normal") for rng in rngs]
    names = dict.fromkeys(name for rate in rates for name in rate)
    found = {}
    for name in names:
        values = np.array([rate[name] for rate in rates if name in rate])
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        found[name] = {"mean": float(values.mean()), "error": error, "designs": len(values)}
    return found


def _run_design(cell: Cell, targets: int, rng: np.random.Generator, *, intervals: bool) -> dict[str, float]:
    x = rng.standard_normal((cell.n, N_FEATURES))
    k, labels = _kernels(cell.family, x)
    omega = _truth(cell.truth, len(k))
    drawn_from = np.tensordot(omega, _rbf(x) if cell.output == "rbf" else k, 1)
    y = _draw(drawn_from, cell, targets, rng)
    table = Inference(k, y, labels, rng=rng).run([str(one) for one in range(y.shape[1])], intervals=intervals)
    return _rate(table, omega, cell, intervals=intervals)


def _kernels(family: str, x: np.ndarray) -> tuple[np.ndarray, list[KernelLabel]]:
    """Kernels of unit mean diagonal, shape (L, n, n), and their labels."""
    with enable_x64():
        if family == "depths":
            k = np.asarray(combined_kernel(MLP(10), np.eye(10), x))
            labels = [KernelLabel("ntk", depth) for depth in range(1, 11)]
        else:
            pairs = [x[:, start : start + 2] for start in range(0, N_FEATURES, 2)]
            k = np.concatenate([np.asarray(combined_kernel(MLP(2), np.array([[0.0, 1.0]]), pair)) for pair in pairs])
            labels = [KernelLabel("ntk", 2, group) for group in "abcde"]
    return k / np.einsum("lii->l", k)[:, None, None] * len(x), labels


def _rbf(x: np.ndarray) -> np.ndarray:
    """An RBF kernel of every pair of features."""
    with enable_x64():
        pairs = [x[:, start : start + 2] for start in range(0, N_FEATURES, 2)]
        return np.concatenate([np.asarray(combined_kernel(RBF(width=1.5), np.ones((1, 1)), pair)) for pair in pairs])


def _truth(name: str, n_kernels: int) -> np.ndarray:
    omega = np.zeros(n_kernels)
    used = {"noise": [0], "uniform": list(range(n_kernels)), "two": [0, 2], "one": [0]}[name]
    omega[used] = 1 / len(used)
    return omega


def _draw(k: np.ndarray, cell: Cell, targets: int, rng: np.random.Generator) -> np.ndarray:
    """Targets or labels, shape (n, C)."""
    lower = np.linalg.cholesky(k + 1e-9 * np.trace(k) / len(k) * np.eye(len(k)))

    def latent() -> np.ndarray:
        noise = rng.standard_t(3, (cell.n, targets)) / np.sqrt(3) if cell.output == "t3" else None
        noise = rng.standard_normal((cell.n, targets)) if noise is None else noise
        return np.sqrt(cell.snr) * (lower @ rng.standard_normal((cell.n, targets))) + noise

    if cell.output == "five classes":  # one class against the rest
        return (np.stack([latent() for _ in range(5)]).argmax(axis=0) == 0).astype(float)
    y = latent()
    share = {"two classes": 0.5, "1:20": 0.95}.get(cell.output)
    return y if share is None else (y > np.quantile(y, share, axis=0)).astype(float)


def _rate(table: InferenceTable, omega: np.ndarray, cell: Cell, *, intervals: bool) -> dict[str, float]:
    """Rates over the targets of one design."""
    share = np.array([omega[members].sum() for members in table.clusters])
    true = share > 0 if cell.snr > 0 else np.zeros(len(share), bool)
    needed, found = table.cluster_needed, {"clusters": float(len(share))}
    if cell.truth in ("noise", "uniform"):
        found["uniform rejected, wrongly"] = float((table.p_uniform <= LEVEL).mean())
    else:
        found["uniform rejected, rightly"] = float((table.p_uniform <= LEVEL).mean())
    if not true.all():
        found["needed, wrongly"] = float(needed[:, ~true].any(axis=1).mean())
    if true.any():
        found["needed, rightly"] = float(needed[:, true].mean())
    if intervals and cell.snr > 0 and len(share) > 1:
        low, high = table.cluster_interval[:, :, 0], table.cluster_interval[:, :, 1]
        covered = (low <= share + 1e-9) & (share <= high + 1e-9)
        found["row covered"] = float(covered.all(axis=1).mean())
        found["weight covered"] = float(covered.mean())
        found["width"] = float((high - low).mean())
    return found


#: Columns of the tables: what a rate is called there.
COLUMNS = {
    "clusters": "clusters",
    "uniform rejected, wrongly": "equal weights rejected though true",
    "needed, wrongly": "a needless kernel called needed",
    "uniform rejected, rightly": "equal weights rejected, rightly",
    "needed, rightly": "needed kernels found",
    "row covered": "all intervals of a row cover",
    "weight covered": "single intervals cover",
    "width": "mean width",
}
#: What is no share, and has its digits.
PLAIN = {"clusters": 1, "width": 2}


def tabulate(results: dict[str, Any]) -> str:
    """Markdown tables of all cells, in per cent with standard errors; numbers of clusters and widths as they are."""
    found = [(Cell(**entry["cell"]), entry["rates"]) for entry in results.values()]
    found.sort(key=lambda one: (one[0].family, OUTPUTS.index(one[0].output), one[0].n, TRUTHS.index(one[0].truth)))
    tables = []
    for family, title in {"groups": "Groups of features", "depths": "Depths"}.items():
        own = [one for one in found if one[0].family == family and one[0].output == "normal"]
        tables.append((f"{title}, real targets, normal noise:", _table(own, ("n", "truth", "snr"))))
    others = [one for one in found if one[0].output != "normal"]
    tables.append(("Groups of features, other targets:", _table(others, ("output", "n", "truth"))))
    return "\n\n".join(f"{title}\n\n{table}" for title, table in tables if table)


def _table(found: list[tuple[Cell, dict[str, Any]]], keys: tuple[str, ...]) -> str:
    """One line for every cell, with the columns that any of the cells has; empty where there is no cell."""
    if not found:
        return ""
    columns = [name for name in COLUMNS if any(name in rates for _, rates in found)]
    words = {"snr": "signal to noise", "output": "targets"}
    head = [*(words.get(key, key) for key in keys), *(COLUMNS[name] for name in columns)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for cell, rates in found:
        values = [f"{getattr(cell, key):g}" if key in ("n", "snr") else getattr(cell, key) for key in keys]
        values += [_show(rates[name], PLAIN.get(name)) if name in rates else "" for name in columns]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def _show(rate: dict[str, float | None], digits: int | None) -> str:
    mean, error = rate["mean"], rate["error"]
    if digits is not None:
        return f"{mean:.{digits}f}"
    return f"{100 * mean:.1f}" + (f" +- {100 * error:.1f}" if _is_known(error) else "")


def _is_known(error: float | None) -> bool:
    """Whether there was more than one design to take it from."""
    return error is not None and np.isfinite(error)


def draw(results: dict[str, Any]) -> figures.Figure:
    """Errors, power, coverage and widths against n, for real targets with normal noise; bars of two standard errors.

    A point is the mean over the truths.
    """
    figure = figures.new_figure(5.4)
    axes = figure.subplots(2, 3).ravel()
    panels = {
        "uniform rejected, wrongly": ("equal weights rejected though true", (-0.6, 20), 5),
        "needed, wrongly": ("a needless kernel called needed", (-0.6, 20), 5),
        "needed, rightly": ("needed kernels found", (-3, 105), None),
        "row covered": ("all intervals of a row cover", (80, 101), 95),
        "width": ("mean width of an interval", (0, 1.05), None),
    }
    lines = {
        ("groups", 10.0): ("groups, signal to noise 10", "#0072b2"),
        ("groups", 1.0): ("groups, signal to noise 1", "#56b4e9"),
        ("groups", 0.0): ("groups, noise only", "#009e73"),
        ("depths", 10.0): ("depths, signal to noise 10", "#d55e00"),
        ("depths", 1.0): ("depths, signal to noise 1", "#e69f00"),
        ("depths", 0.0): ("depths, noise only", "#cc79a7"),
    }
    cells = [(Cell(**entry["cell"]), entry["rates"]) for entry in results.values()]
    sizes = sorted({cell.n for cell, _ in cells})
    for ax, (name, (title, limits, nominal)) in zip(axes, panels.items(), strict=False):
        unit = 1 if name in PLAIN else 100
        if nominal is not None:
            ax.axhline(nominal, color=figures.MUTED, linewidth=0.8, linestyle="--")
        for number, ((family, snr), (label, colour)) in enumerate(lines.items()):
            own = [one for one in cells if (one[0].family, one[0].snr, one[0].output) == (family, snr, "normal")]
            points = _points([(cell.n, rates[name]) for cell, rates in own if name in rates])
            if points:
                shift = 1 + 0.03 * (number - 2.5)  # beside one another, not on top
                n, mean, error = np.array(points).T
                ax.errorbar(
                    n * shift,
                    unit * mean,
                    2 * unit * error,
                    marker="o",
                    markersize=4,
                    color=colour,
                    linewidth=1.4,
                    elinewidth=1,
                    label=label,
                )
        ax.set_xscale("log")
        ax.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
        ax.set_ylim(*limits)
        figures.set_title(ax, title, "" if unit == 1 else "%")
        figures.name_axes(ax, title, "rows", "")
        ax.set_xticks(sizes, [str(n) for n in sizes])
        ax.minorticks_off()
        ax.locator_params(axis="y", nbins=5)
        ax.tick_params(labelsize=8.5)
        ax.spines[["right", "top"]].set_visible(False)
    axes[-1].axis("off")
    handles = {label: handle for ax in axes[:-1] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    named = [label for label, _ in lines.values() if label in handles]
    axes[-1].legend([handles[label] for label in named], named, loc="center left", frameon=False, fontsize=9)
    return figure


def _points(rates: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, float, float]]:
    """For every n the mean rate of several cells and its standard error, 0 where one of them has none."""
    found = []
    for n in sorted({n for n, _ in rates}):
        own = [rate for size, rate in rates if size == n]
        errors = [rate["error"] if _is_known(rate["error"]) else 0.0 for rate in own]
        found.append((n, float(np.mean([rate["mean"] for rate in own])), float(np.linalg.norm(errors)) / len(own)))
    return found


def write_docs(results: dict[str, Any]) -> None:
    """Put tables and figure into the docs, from the repository's root."""
    page = Path("docs/error-rates.md")
    text = page.read_text()
    start, end = text.index("<!-- rates -->") + len("<!-- rates -->"), text.index("<!-- end of rates -->")
    page.write_text(f"{text[:start]}\n\n{tabulate(results)}\n\n{text[end:]}")
    draw(results).savefig("docs/images/error-rates.png", dpi=figures.DPI, facecolor="white")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Error rates of the tests and intervals of Omega.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 600])
    parser.add_argument("--designs", type=int, default=10)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--no-intervals", action="store_true", help="tests alone")
    parser.add_argument("--fast", action="store_true", help="n = 100, few draws")
    parser.add_argument("--results", type=Path, default=Path("experiments/results/error_rates.json"))
    parser.add_argument("--docs", action="store_true", help="then write the tables and the figure of the docs")
    parser.add_argument("--report", action="store_true", help="write these from the results alone; run nothing")
    options = parser.parse_args(arguments)
    sizes, designs, targets = options.sizes, options.designs, options.targets
    if options.fast:
        sizes, designs, targets = [100], 4, 10
    flags = {"designs": designs, "targets": targets}
    for cell in [] if options.report else cells(sizes):
        before, intervals = store.read(options.results).get(str(cell), {}), not options.no_intervals
        if before.get("flags") == flags and before.get("intervals", True) >= intervals:
            continue
        rates = run_cell(cell, designs, targets, intervals=intervals)
        entry = {"cell": dataclasses.asdict(cell), "flags": flags, "intervals": intervals, "rates": rates}
        store.write(options.results, str(cell), entry)
        print(f"{cell}: " + ", ".join(f"{name} {rate['mean']:.3f}" for name, rate in rates.items()), flush=True)
    if options.docs or options.report:
        results = store.read(options.results)
        write_docs({name: entry for name, entry in results.items() if entry["flags"] == flags})


if __name__ == "__main__":
    main()
