"""Training side by side in one process: the compiled epoch, for one seed and three, and a plain PyTorch loop.

    python benchmarks/training.py [--networks mlp nftk] [--fast] [--json FILE|-]

The network is the paper's for MNIST: an MLP or NFT-K MLP with 10 hidden layers of 256 units, batches of 50, the squared
error, SGD with weight decay (two rates, and Omega projected to >= 0 after every step). Inputs are random and about as
long as an image of MNIST. A time is the median of the epochs after the first, which compiles and is timed apart; the
methods take turns, epoch by epoch. "speed" is images a second over those of the faster PyTorch loop, where a network of
every seed counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from nftk_jax.finite.networks import NetworkSettings
from nftk_jax.finite.settings import TrainSettings
from nftk_jax.finite.training import start_training, train
from nftk_jax.kernels.mlp import MLP

SETTINGS = TrainSettings()
NETWORKS = {"mlp": "last", "nftk": "all"}


def ours(network: NetworkSettings, x: np.ndarray, y: np.ndarray, seeds: int) -> Iterator[float]:
    """Seconds of one epoch after another."""
    training = start_training(network, SETTINGS, range(seeds), x.dtype)
    while True:
        settings = dataclasses.replace(SETTINGS, epochs=training.epoch + 1)
        training = train(dataclasses.replace(training, settings=settings), x, y)
        yield float(training.history["seconds"][-1])


def peer(network: NetworkSettings, x: np.ndarray, y: np.ndarray, threads: int | None) -> Iterator[float]:
    """Seconds of one epoch after another of the same network, written as a plain PyTorch loop."""
    import torch

    threads = threads or torch.get_num_threads()
    torch.manual_seed(0)
    depth, nftk = network.mlp.depth, network.readouts == "all"
    sizes = [network.n_inputs] + [network.width] * depth
    hidden = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
    readouts = torch.nn.ModuleList(
        torch.nn.Linear(network.width, network.n_outputs, bias=False) for _ in range(depth if nftk else 1)
    )
    for layer in (*hidden, *readouts):
        torch.nn.init.xavier_normal_(layer.weight)
    omega = torch.nn.Parameter(torch.empty(network.n_outputs, depth))
    torch.nn.init.xavier_normal_(omega)

    def output(rows: torch.Tensor) -> torch.Tensor:
        h, total = rows, 0
        for number, layer in enumerate(hidden):
            h = torch.relu(layer(h))
            if nftk:
                total = total + omega[:, number] * readouts[number](h)
        return total if nftk else readouts[0](h)

    theta = [*hidden.parameters(), *readouts.parameters()]
    optimizers = [torch.optim.SGD(theta, SETTINGS.learning_rate, weight_decay=SETTINGS.weight_decay)]
    if nftk:
        rate = SETTINGS.omega_learning_rate
        optimizers.append(torch.optim.SGD([omega], rate, weight_decay=SETTINGS.weight_decay))
    data, targets = torch.from_numpy(x), torch.from_numpy(y)
    while True:
        torch.set_num_threads(threads)
        clock = time.perf_counter()
        for rows in torch.randperm(len(data)).split(SETTINGS.batch_size):
            loss = (output(data[rows]) - targets[rows]).square().sum(dim=1).mean()
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            with torch.no_grad():
                omega.clamp_(min=0)
        yield time.perf_counter() - clock


def measure(readouts: str, n: int, depth: int, width: int, epochs: int) -> list[dict]:
    """One row per method, taking turns."""
    rng = np.random.default_rng(0)
    x, y = rng.random((n, 784), np.float32) / 2, np.eye(10, dtype=np.float32)[rng.integers(0, 10, n)]
    network = NetworkSettings(MLP(depth), 784, 10, width, readouts=readouts)  # pyright: ignore[reportArgumentType]
    calls: dict[str, Callable[[], Iterator[float]]] = {
        "PyTorch loop, all threads": lambda: peer(network, x, y, None),
        "PyTorch loop, 1 thread": lambda: peer(network, x, y, 1),
        "compiled epoch, 1 seed": lambda: ours(network, x, y, 1),
        "compiled epoch, 3 seeds": lambda: ours(network, x, y, 3),
    }
    running = {name: call() for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + epochs):
        for name, epoch in running.items():
            seconds[name].append(next(epoch))
    rows = []
    for name, times in seconds.items():
        per_second = n * (3 if "3 seeds" in name else 1) / statistics.median(times[1:])
        row = {"method": name, "readouts": readouts, "depth": depth, "width": width, "images": n}
        rows.append(row | {"seconds": times[1:], "first_epoch_seconds": times[0], "images_per_second": per_second})
    best = max(row["images_per_second"] for row in rows if "PyTorch" in row["method"])
    for row in rows:
        row["speed"] = row["images_per_second"] / best
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time training side by side with PyTorch.")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--fast", action="store_true", help="small sizes: a check that the benchmark runs")
    parser.add_argument("--json", metavar="FILE", help="write every measurement there; - for the standard output")
    options = parser.parse_args(arguments)
    sizes = (500, 3, 32, 1) if options.fast else (5000, 10, 256, 3)
    rows = []
    for name in options.networks:
        for row in measure(NETWORKS[name], *sizes):
            rows.append(row)
            if options.json != "-":
                print(f"{name:<6} {row['method']:<24} {row['images_per_second']:10.0f} images/s {row['speed']:6.2f}x")
    result = {"schema": 1, "jax": jax.__version__, "device": jax.devices()[0].device_kind, "measurements": rows}
    if options.json == "-":
        json.dump(result, sys.stdout, indent=1)
    elif options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
