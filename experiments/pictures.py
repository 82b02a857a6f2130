"""The pictures of the README, from its own commands.

    python experiments/pictures.py

runs two fits unless `--runs` holds them already, and the README's example. It writes patches.png (contributions of
patches of an image), depths.png (weights of depths), bands.png (the example) and report.png (the top of a report) to
docs/images. The last one needs Chromium: `playwright install chromium`, or the browser's path as `--chromium`.
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

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from playwright.sync_api import sync_playwright

from nftk_jax import OmegaDisplay, load_model

FITS = {"patches": ["--groups", "patches:4x4", "--depths", "2"], "depths": []}


def fit(runs: Path) -> None:
    for name, flags in FITS.items():
        if not (runs / name).exists():
            subprocess.run([sys.executable, "-m", "nftk_jax.fit", *flags, "--output", str(runs / name)], check=True)


def draw_depths(run: Path, output: Path) -> None:
    """The weights of the depths, with frames around the cells that the tests call needed."""
    metrics, model = json.loads((run / "metrics.json").read_text()), load_model(run)
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
    parser = argparse.ArgumentParser(description="The pictures of the README.")
    parser.add_argument("--runs", type=Path, default=Path("runs/pictures"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    parser.add_argument("--chromium", help="path of the browser")
    options = parser.parse_args(arguments)
    fit(options.runs)
    shutil.copy(options.runs / "patches/figures/contribution_maps.png", options.images / "patches.png")
    draw_depths(options.runs / "depths", options.images / "depths.png")
    run_example(options.images)
    photograph(options.runs / "depths/report.html", options.images / "report.png", options.chromium)


if __name__ == "__main__":
    main()
