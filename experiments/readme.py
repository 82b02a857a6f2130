"""The README's pictures, and its numbers of 8,000 MNIST images, from its own commands.

    python experiments/readme.py

runs three fits unless `--runs` holds them already, and the README's example. It writes patches.png (contributions of
patches of an image), depths.png (weights of depths), columns.png (contributions of the columns of a simulated table),
bands.png (the example) and report.png (the top of a report) to docs/images, and experiments/results/readme.json. The
report's picture needs Chromium: `playwright install chromium`, or the browser's path as `--chromium`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import store
from playwright.sync_api import sync_playwright

from nftk_jax import OmegaDisplay, load_model

FITS = {"patches": ["--groups", "patches:4x4", "--depths", "2"], "depths": []}
TABLE = ["--target", "diagnosis", "--groups", "columns", "--depths", "2", "--b-std", "1"]
BASELINES = ("uniform", "best_single_depth", "rbf")


def simulate_patients(path: Path) -> None:
    """A table of 500 patients, whose diagnosis depends on age, glucose, smoking and, if glucose is high, body mass."""
    rng, n = np.random.default_rng(3), 500
    age, sex = rng.integers(20, 90, n), rng.choice(["f", "m"], n)
    glucose, iron = rng.normal(5.5, 1.2, n).round(1), rng.normal(15, 4, n).round(1)
    site, smoker = rng.choice(["Ulm", "Bonn", "Kiel"], n), rng.choice(["yes", "no"], n, p=[0.3, 0.7])
    bmi = rng.normal(26, 4, n).round(1)
    risk = 1.3 * (glucose - 5.5) + 0.04 * (age - 55) + 0.9 * (smoker == "yes")
    risk += 0.12 * (bmi - 26) * (glucose > 5.5) + rng.normal(0, 0.7, n)
    columns = {"age": age, "sex": sex, "glucose": glucose, "iron": iron, "site": site, "smoker": smoker, "bmi": bmi}
    table = pd.DataFrame(
        columns | {"diagnosis": np.select([risk > 1.2, risk > 0.2], ["diabetes", "at risk"], "healthy")}
    )
    table.loc[rng.random(n) < 0.08, "iron"] = np.nan
    table.to_csv(path, index=False)


def fit(runs: Path) -> None:
    patients = runs / "patients.csv"
    if not (runs / "columns").exists():
        runs.mkdir(parents=True, exist_ok=True)
        simulate_patients(patients)
    for name, flags in (FITS | {"columns": ["--dataset", str(patients), *TABLE]}).items():
        if not (runs / name).exists():
            subprocess.run([sys.executable, "-m", "nftk_jax.fit", *flags, "--output", str(runs / name)], check=True)


def read(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the README says of a run."""
    result = ("test_accuracy", "test_accuracy_interval", "zeros_in_omega_n", "zeros_under_uniform")
    names = ("test_accuracy", "difference", "difference_interval")
    return {key: metrics[key] for key in result} | {
        "gram_rank": metrics["identifiability"]["gram_rank"],
        "kernels_needed_by_a_class": int(np.any(metrics["inference"]["needed"], axis=0).sum()),
        "baselines": {
            name: {key: entry[key] for key in names}
            for name, entry in metrics["baselines"].items()
            if name in BASELINES
        },
    }


def draw_depths(run: Path, output: Path) -> None:
    """The weights of the depths, with frames around the cells that the tests call needed."""
    metrics, model = read(run), load_model(run)
    display = OmegaDisplay(
        model.omega,
        labels=model.kernel.labels,
        output_names=[str(label) for label in model.classes],
        needed=metrics["inference"]["needed"],
    )
    figure, ax = plt.subplots(figsize=(10, 4.6), layout="constrained")
    display.plot(ax=ax, cmap="Blues")
    ax.set_title("weight of each depth for each digit (frames: depth 1 or 2 is needed)", loc="left")
    figure.savefig(output, dpi=100)
    plt.close(figure)


def run_example(images: Path) -> None:
    """The README's block of Python, which saves bands.png."""
    (block,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    with contextlib.chdir(images):
        exec(compile(block, "README.md", "exec"), {})


def photograph(report: Path, output: Path, chromium: str | None) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page(viewport={"width": 1100, "height": 1000}, color_scheme="light")
        page.goto(report.resolve().as_uri())
        page.screenshot(path=output)
        browser.close()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The README's pictures and numbers.")
    parser.add_argument("--runs", type=Path, default=Path("runs/readme"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/readme.json"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    parser.add_argument("--chromium", help="path of the browser")
    options = parser.parse_args(arguments)
    fit(options.runs)
    for name in FITS:
        store.write(options.results, name, numbers(read(options.runs / name)))
    shutil.copy(options.runs / "patches/figures/contribution_maps.png", options.images / "patches.png")
    shutil.copy(options.runs / "columns/figures/contributions.png", options.images / "columns.png")
    draw_depths(options.runs / "depths", options.images / "depths.png")
    run_example(options.images)
    photograph(options.runs / "depths/report.html", options.images / "report.png", options.chromium)


if __name__ == "__main__":
    main()
