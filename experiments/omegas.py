"""What the Omegas of Table 1 are evidence of: their zeros, their start, other seeds, dropped layers, related digits.

    python experiments/omegas.py [--table1 FILE.json] [--sparsity FILE.json]

Reads the results of `experiments/table1.py` (the rows named nftk) and of `experiments/sparsity.py`, and trains nothing.
The start of each Omega is drawn again from its seed.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import store
from scipy import stats
from table1 import ROWS, Row

from nftk_jax.assessment.agreement import compare_omegas
from nftk_jax.assessment.identifiability import normalise_rows
from nftk_jax.assessment.metrics import wilson_interval
from nftk_jax.datasets import load_dataset
from nftk_jax.finite.networks import NetworkSettings
from nftk_jax.finite.training import start_training
from nftk_jax.kernels.mlp import MLP

DRAWS = 9999
#: Cells of Omega and, as the paper reports them, zeros among them, by row of Table 1.
PAPER_ZEROS = {
    name: (n_cells, round(n_cells * row.zeros / 100))
    for name, row in ROWS.items()
    if row.zeros is not None
    for n_cells in [(10 if row.dataset == "mnist" else 2) * row.depth]
}
CLIPPED = "xavier, clip"


def describe_zeros(sparsity: dict[str, Any]) -> dict[str, Any]:
    """The paper's zeros, all networks together, beside a start that is half negative and the end of clipped runs."""
    cells, zeros = (sum(column) for column in zip(*PAPER_ZEROS.values(), strict=True))
    clipped, size = sparsity[CLIPPED], 10 * sparsity[CLIPPED]["flags"]["depth"]
    starts, ends = (
        np.rint(size * np.array(rows)).astype(int)
        for rows in (clipped["zeros_at_initialisation"], clipped["zeros_by_epoch"][-1])
    )
    start, end, n = int(starts.sum()), int(ends.sum()), size * len(ends)
    # Zeros of a clipped run: half of the start, and those of the other half that training adds.
    expected = 0.5 + 0.5 * (end - start) / (n - start)
    return {
        "paper": {"zeros": zeros, "cells": cells, "interval": wilson_interval(zeros, cells)},
        "p_paper_is_half": float(stats.binomtest(zeros, cells, 0.5).pvalue),
        "clipped_end": {"zeros": end, "cells": n, "interval": wilson_interval(end, n)},
        "p_clipped_end_is_half": float(stats.binomtest(end, n, 0.5).pvalue),
        "p_paper_is_clipped_end": float(stats.fisher_exact([[zeros, cells - zeros], [end, n - end]]).pvalue),
        "clipped_added": {"zeros": end - start, "positive_at_the_start": n - start},
        "expected_share_of_clipped_runs": expected,
        "p_paper_is_that_share": float(stats.binomtest(zeros, cells, expected).pvalue),
    }


def draw_starts(row: Row, shape: tuple[int, ...]) -> np.ndarray:
    """Omega of a row's networks before training, half of it negative, shape (S, C, L)."""
    # The draw of Omega depends on its shape alone, so that the network may have one input and one unit.
    network = NetworkSettings(MLP(shape[2]), 1, shape[1], 1, readouts="all")
    (omega,) = jax.tree.leaves(start_training(network, row.settings, range(shape[0]), np.float32).params.omega)
    return np.asarray(omega, float)


def describe_start(starts: np.ndarray, omegas: np.ndarray) -> dict[str, Any]:
    """Rank correlation over cells of each trained Omega with its own start, and with the starts of other seeds."""
    own = [_rank_correlation(start, end) for start, end in zip(starts, omegas, strict=True)]
    others = [
        float(stats.spearmanr(starts[i].ravel(), omegas[j].ravel()).statistic)
        for i, j in itertools.permutations(range(len(omegas)), 2)
    ]
    return {"own": own, "of_other_seeds": others}


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Spearman's over all cells, with Fisher's 95 % interval."""
    found = stats.pearsonr(stats.rankdata(a), stats.rankdata(b))
    return {"correlation": float(found.statistic), "interval": [float(end) for end in found.confidence_interval()]}


def describe_seeds(omegas: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Whether seeds agree on layers (means over classes) and on cells of Omega_n; intervals: bootstrap over classes."""
    normal = np.array([normalise_rows(omega) for omega in omegas])
    means, raw = normal.mean(axis=1), omegas.mean(axis=1)
    draws = (rng.integers(normal.shape[1], size=normal.shape[1]) for _ in range(999))
    resampled = [concordance(normal[:, rows].mean(axis=1)) for rows in draws]
    interval = [float(end) for end in np.quantile(resampled, [0.025, 0.975])]
    cells = [compare_omegas(normal[i], normal[j], rng) for i in range(len(normal)) for j in range(i)]
    return {
        "layers": {"kendall_w": concordance(means), "interval": interval, "p": concordance_p(means, rng)},
        "layers_of_omega_itself": {"kendall_w": concordance(raw), "p": concordance_p(raw, rng)},
        "layer_means": means.tolist(),
        "cells": {"kendall_w": concordance(normal.reshape(len(normal), -1))},
        "cells_by_pair": [{"correlation": c.correlation, "interval": c.interval} for c in cells],
        "cells_without_layer_means": _residual_agreement(normal, rng),
    }


def concordance(ratings: np.ndarray) -> float:
    """Kendall's W of raters in rows: 1 where all rank the columns alike, 0 where their rank sums are equal."""
    chi2 = stats.friedmanchisquare(*ratings.T).statistic
    return float(chi2 / (len(ratings) * (ratings.shape[1] - 1)))


def concordance_p(ratings: np.ndarray, rng: np.random.Generator) -> float:
    """Share of draws, in which every rater's row is permuted, with a W at least as large."""
    ranks = stats.rankdata(ratings, axis=1)
    spread = ranks.sum(axis=0).var()
    draws = rng.permuted(np.broadcast_to(ranks, (DRAWS, *ranks.shape)), axis=2).sum(axis=1).var(axis=1)
    return float((1 + (draws >= spread - 1e-9).sum()) / (1 + DRAWS))


def _residual_agreement(normal: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """W over cells from which each seed's layer means are taken: what is left for classes to differ in."""
    rest = (normal - normal.mean(axis=1, keepdims=True)).reshape(len(normal), -1)
    return {"kendall_w": concordance(rest), "p": concordance_p(rest, rng)}


def describe_dropped() -> dict[str, Any]:
    """How likely columns of zeros are in a start of which each cell is negative with probability 1/2."""
    found = {}
    for name, (n_cells, zeros) in PAPER_ZEROS.items():
        depth = ROWS[name].depth
        classes = n_cells // depth
        whole = 0.5**classes
        given = [columns_given_zeros(classes, depth, zeros, k) for k in range(depth + 1)]
        found[name] = {
            "p_exactly_two": float(stats.binom.pmf(2, depth, whole)),
            "p_two_or_more": float(stats.binom.sf(1, depth, whole)),
            "p_exactly_two_given_the_zeros": given[2],
            "p_two_or_more_given_the_zeros": sum(given[2:]),
        }
    return found


def columns_given_zeros(classes: int, depth: int, zeros: int, k: int) -> float:
    """Probability that exactly k columns of an Omega (classes, depth) are zero, given its number of zeros."""
    left = zeros - k * classes
    total = sum(
        (-1) ** j * math.comb(depth - k, j) * math.comb((depth - k - j) * classes, left - j * classes)
        for j in range(depth - k + 1)
        if left - j * classes >= 0
    )
    return math.comb(depth, k) * total / math.comb(classes * depth, zeros)


def describe_digits(omegas: np.ndarray, images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list:
    """By seed, whether digits that look alike have Omegas that are alike.

    The likeness of two digits is the correlation of their mean images; that of Omegas is Omega_n Omega_n'. The p value
    and the interval are Mantel's: of draws in which the digits of one of the two are permuted.
    """
    means = np.stack([images[labels == digit].mean(axis=0) for digit in range(10)])
    alike, pairs = np.corrcoef(means), np.triu_indices(10, 1)
    found = []
    for omega in omegas:
        normal = normalise_rows(omega)
        similar = normal @ normal.T
        value = stats.spearmanr(alike[pairs], similar[pairs]).statistic
        draws = []
        for _ in range(DRAWS):
            order = rng.permutation(10)
            draws.append(stats.spearmanr(alike[pairs], similar[np.ix_(order, order)][pairs]).statistic)
        rank = 1 + int((similar[pairs] > similar[4, 9]).sum())
        found.append(
            {
                "correlation": float(value),
                "permuted_digits": [float(end) for end in np.quantile(draws, [0.025, 0.975])],
                "p": float((1 + (np.abs(draws) >= abs(value)).sum()) / (1 + DRAWS)),
                "rank_of_4_and_9": rank,
            }
        )
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the Omegas of Table 1 are evidence of.")
    parser.add_argument("--table1", type=Path, default=Path("experiments/results/table1.json"))
    parser.add_argument("--sparsity", type=Path, default=Path("experiments/results/sparsity.json"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/omegas.json"))
    options = parser.parse_args(arguments)

    def write(name: str, entry: Any) -> None:
        store.write(options.results, name, entry)
        print(name, entry, flush=True)

    write("zeros", describe_zeros(store.read(options.sparsity)))
    write("dropped layers", describe_dropped())
    mnist = load_dataset("mnist")
    for name, entry in store.read(options.table1).items():
        row = ROWS.get(name.split(",")[0])
        if row is None or row.readouts != "all":
            continue
        omegas, rng = np.array(entry["omega"]), np.random.default_rng(0)
        write(f"start {name}", describe_start(draw_starts(row, omegas.shape), omegas))
        if len(omegas) > 2:
            write(f"seeds {name}", describe_seeds(omegas, rng))
        if row.dataset == "mnist":
            write(f"digits {name}", describe_digits(omegas, mnist.x_train, mnist.y_train, rng))


if __name__ == "__main__":
    main()
