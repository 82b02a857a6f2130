"""What `rivals.py` makes of its measurements: equal accuracy, a figure, and the table of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARKERS = ("<!-- bench-rivals: begin -->", "<!-- bench-rivals: end -->")
NAMES = {
    "nftk_jax": "nftk_jax",
    "eigenpro": "EigenPro 2",
    "falkon": "Falkon",
    "nystroem": "scikit-learn, Nystroem",
    "gpytorch": "GPyTorch",
    "keops": "KeOps",
    "askotch": "ASkotch",
}
KERNEL_NAMES = {"depths": "ten depths, learned", "laplace": "Laplace", "rbf": "RBF"}
#: What two accuracies may differ by and count as equal: standard errors are of this size.
SLACK = 0.001
STYLES = {"depths": "-", "laplace": "--", "rbf": ":"}


def first_at(points: list[dict[str, Any]], accuracy: float) -> float | None:
    """Processor seconds of the quickest point that is at least so accurate; None where there is none."""
    return min((point["processor_s"] for point in points if point["accuracy"] >= accuracy), default=None)


def points_of(case: dict[str, Any], method: str, kernel: str | None = None) -> list[dict[str, Any]]:
    """All points of one method at one size, of one kernel or of all."""
    rows = (row for row in case["methods"].values() if row["method"] == method and kernel in (None, row["kernel"]))
    return [point for row in rows for point in row.get("points", ())]


def markdown(result: dict[str, Any]) -> str:
    """One table for every size, and what was not run."""
    blocks = []
    for size, case in sorted(result["sizes"].items(), key=lambda item: int(item[0])):
        blocks += [
            f"{int(size):,} training rows:",
            "",
            "| method | kernel | most accurate | almost so after, s | nftk_jax, same kernel | nftk_jax, any kernel |",
            "|---|---|---|---|---|---|",
        ]
        left = []
        for row in sorted(case["methods"].values(), key=lambda row: (list(NAMES).index(row["method"]), row["kernel"])):
            name, kernel = NAMES[row["method"]], KERNEL_NAMES[row["kernel"]]
            if not row.get("points"):
                left.append(f"- {name}, {kernel}: {row.get('cut', row.get('note'))}")
                continue
            best = max(point["accuracy"] for point in row["points"])
            level = best - SLACK
            same = points_of(case, "nftk_jax", row["kernel"])
            cells = [f"{100 * best:.2f} %", _seconds(row["points"], level)]
            if row["method"] == "nftk_jax":
                cells += ["", ""]
            else:
                cells += [_seconds(points, level) for points in (same, points_of(case, "nftk_jax"))]
            blocks.append("| " + " | ".join([name, kernel, *cells]) + " |")
        blocks += ["", *left, *([""] if left else [])]
    return "\n".join(blocks).strip()


def _seconds(points: list[dict[str, Any]], accuracy: float) -> str:
    found = first_at(points, accuracy)
    return "never" if found is None else f"{found:.1f}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Accuracy against processor seconds, one panel a size; a method has a colour, a kernel a line style."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter

    sizes = sorted(result["sizes"].items(), key=lambda item: int(item[0]))
    figure = Figure(figsize=(4.2 * len(sizes), 4.2), layout="constrained")
    axes = figure.subplots(1, len(sizes), squeeze=False).ravel()
    colours = {name: f"C{place}" for place, name in enumerate(NAMES)}
    seen: set[str] = set()
    for axis, (size, case) in zip(axes, sizes, strict=True):
        tops = []
        for row in case["methods"].values():
            points = sorted(row.get("points", ()), key=lambda point: point["processor_s"])
            if not points:
                continue
            seen.add(row["method"])
            tops.append(max(point["accuracy"] for point in points))
            axis.plot(
                [point["processor_s"] for point in points],
                [100 * point["accuracy"] for point in points],
                STYLES[row["kernel"]],
                marker="o",
                markersize=3,
                linewidth=1.8 if row["method"] == "nftk_jax" else 1.1,
                color=colours[row["method"]],
            )
        top = 100 * max(tops, default=1)
        axis.set(xscale="log", ylim=(top - 2.5, top + 0.15), title=f"n = {int(size):,}", xlabel="processor seconds")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3, which="both", linewidth=0.4)
    axes[0].set_ylabel("test accuracy, %")
    lines = [Line2D([], [], color=colours[name], label=label) for name, label in NAMES.items() if name in seen]
    lines += [Line2D([], [], color="0.3", linestyle=STYLES[name], label=label) for name, label in KERNEL_NAMES.items()]
    figure.legend(handles=lines, fontsize=8, ncols=5, loc="outside lower center")
    figure.savefig(path, dpi=130)
