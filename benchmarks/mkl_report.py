"""What `mkl.py` makes of its measurements: comparisons at equal loss, a figure, and the table of the documentation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from mkl_methods import time_to_reach

PEERS = {"himalaya_random": "random search", "himalaya_hyper_gradient": "hyper-gradient"}
NAMES = {name: f"himalaya, {solver}" for name, solver in PEERS.items()}
NAMES["kernel_ridge_grid"] = "scikit-learn, `KernelRidge` grid"
CLOCKS = {"wall": "seconds", "processor": "processor_seconds"}
BEGIN, END = "<!-- bench-mkl: begin -->", "<!-- bench-mkl: end -->"


def compare(rows: dict[str, dict]) -> dict[str, dict]:
    """Ours against each of himalaya's solvers that has a result.

    Returns:
      `speedup_to_equal_loss`: the peer's time in all over our time to the loss that it ends with, on both clocks, 0
      where we never reach it; `speedup_in_all`: the ratio of the times in all; `final_loss_ratio`: ours over theirs, by
      the oracle. The loss that a peer ends with is the least that it saw itself, or the oracle's where that is lower.
      Our own losses are moved by what the oracle says of the last one.
    """
    found: dict[str, dict] = {"speedup_to_equal_loss": {}, "speedup_in_all": {}, "final_loss_ratio": {}}
    mine = rows.get("ours", {})
    for name in PEERS:
        peer = rows.get(name, {})
        if "kfold_loss" not in mine or "kfold_loss" not in peer:
            continue
        level = min(peer["kfold_loss"], *peer["history"]["loss"])
        losses = np.array(mine["history"]["loss"])
        losses += mine["kfold_loss"] - losses[-1]
        found["speedup_to_equal_loss"][name] = {
            clock: peer[key] / time_to_reach(np.array(mine["history"][key]), losses, level)
            for clock, key in CLOCKS.items()
        }
        found["speedup_in_all"][name] = {clock: peer[key] / mine[key] for clock, key in CLOCKS.items()}
        found["final_loss_ratio"][name] = mine["kfold_loss"] / peer["kfold_loss"]
    return found


def by_case(cases: list[dict], what: str) -> dict[str, Any]:
    """One of the comparisons of every case, by its name."""
    return {case["name"]: case[what] for case in cases}


def cuts(cases: list[dict]) -> list[str]:
    """One line for every method that its budget cut short."""
    lines = []
    for case in cases:
        for name, row in case["methods"].items():
            if "cut" in row:
                lines.append(f"{case['name']}: {NAMES.get(name, name)}: no result, {row['cut']}")
            elif "compilation included" in row.get("note", ""):
                lines.append(f"{case['name']}: {NAMES.get(name, name)}: no second call, compilation is included")
            elif row.get("planned"):
                lines.append(f"{case['name']}: {NAMES[name]}: {row['iterations']} of {row['planned']} iterations")
    return lines


def draw(cases: list[dict], path: Path, clock: str) -> None:
    """Loss against time, one panel a case."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    columns = min(4, len(cases))
    figure = Figure(figsize=(4.2 * columns, 3.2 * math.ceil(len(cases) / columns)), layout="constrained")
    axes = figure.subplots(math.ceil(len(cases) / columns), columns, squeeze=False).ravel()
    for axis, case in zip(axes, cases, strict=False):
        for name, row in case["methods"].items():
            if "history" in row:
                seconds, losses = row["history"][CLOCKS[clock]], row["history"]["loss"]
                axis.plot(seconds, losses, marker="o", markersize=3, label=NAMES.get(name, name).replace("`", ""))
        axis.set(xscale="log", title=case["name"], xlabel=f"{clock} seconds", ylabel="5-fold mean squared error")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in axes[len(cases) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=120)


def markdown(result: dict) -> str:
    """The tables of the documentation, from what `mkl.py` prints as JSON."""
    threads = result["threads"] or "all"
    solvers = "".join(f" {name}, s | iterations | loss | speed-up |" for name in PEERS.values())
    lines = [
        f"himalaya {result['himalaya']}, JAX {result['jax']}, threads: {threads} of {result['cpu_count']} cores. "
        "Pairs are of wall and of processor seconds.",
        "",
        f"| case | ours, s | loss | MiB |{solvers}",
        "|---|---|---|---|" + "---|---|---|---|" * len(PEERS),
    ]
    for case in result["cases"]:
        rows, speedup = case["methods"], case["speedup_to_equal_loss"]
        cells = [case["name"], *_cells(rows.get("ours"), "{seconds} | {loss} | {memory}")]
        for name in PEERS:
            times = "" if name not in speedup else " / ".join(f"{speedup[name][clock]:.3g}" for clock in CLOCKS)
            cells += [*_cells(rows.get(name), "{seconds} | {steps} | {loss}"), times]
        lines.append("| " + " | ".join(cells) + " |")
    lines += _classifiers(result["cases"])
    stopped = cuts(result["cases"]) + result["left_out"]
    if stopped:
        lines += ["", "What the time limit cut:", "", *(f"- {line}" for line in stopped)]
    return "\n".join(lines)


def _cells(row: dict | None, form: str) -> list[str]:
    if row is None or "cut" in row:
        return [("cut" if row else "") + " |" * form.count("|")]
    return [
        form.format(
            seconds=f"{row['seconds']:.1f} / {row['processor_seconds']:.1f}",
            loss=f"{row['kfold_loss']:.5f}",
            memory=f"{row['peak_memory_mib']:,.0f}",
            steps=row["iterations"],
        )
    ]


def _classifiers(cases: list[dict]) -> list[str]:
    """Where labels are known: test accuracies, and the peers that have nothing else."""
    lines = []
    for case in cases:
        for name, row in case["methods"].items():
            if "test_accuracy" in row:
                loss = f"{row['kfold_loss']:.5f}" if "kfold_loss" in row else "none"
                accuracy = f"{100 * row['test_accuracy']:.1f} %"
                lines.append(
                    f"| {case['name']} | {NAMES.get(name, name)} | {row['seconds']:.1f} | {loss} | {accuracy} |"
                )
    return ["", "| case | method | seconds | loss | test accuracy |", "|---|---|---|---|---|", *lines] if lines else []


def write_between_markers(page: Path, text: str, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Replace what stands between the markers of a page.

    Raises:
      ValueError: the page has no such markers.
    """
    first, last = markers
    before, begin, rest = page.read_text().partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"{page} must hold the lines {first} and {last}; add them where the tables go")
    page.write_text(f"{before}{first}\n{text}\n{last}{after}")
