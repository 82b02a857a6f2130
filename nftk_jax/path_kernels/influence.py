"""Reading the terms of a path: which samples made a prediction, which classes and which layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from nftk_jax.path_kernels.path_kernel import PathTerms

#: Characters that are kept of a text.
EXCERPT = 400


def influences(
    terms: PathTerms,
    labels: np.ndarray | None,
    query_labels: np.ndarray | None,
    *,
    queries: list[int],
    most: int = 6,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """The samples with the largest terms, positive and negative, in the largest output of some queries.

    Args:
      terms: of all queries.
      labels, query_labels: class indices of samples and queries, shapes (n,) and (n_queries,); None for regression.
      queries: rows of the queries to explain.
      most: samples to list on each side.
      texts: of samples and queries, where they have some.

    Returns:
      For every query a dictionary: query, label, output (number of the largest one), value, start, regulariser,
      sum_of_terms, completeness_error (of the three against the value), positive_sum, negative_sum, and the lists
      `positive` and `negative` of {sample, label, term}, largest first. With `texts`, queries and samples have a text,
      its first `EXCERPT` characters.
    """
    found = []
    for query in queries:
        output = int(terms.output[query].argmax())
        shares = terms.terms[query, :, output]
        parts = (terms.start[query, output], terms.regulariser[query, output], shares.sum())
        found.append(
            {
                "query": query,
                "label": None if query_labels is None else int(query_labels[query]),
                "output": output,
                "value": float(terms.output[query, output]),
                "start": float(parts[0]),
                "regulariser": float(parts[1]),
                "sum_of_terms": float(parts[2]),
                "completeness_error": float(abs(sum(parts) - terms.output[query, output])),
                **strongest(shares, labels, most, texts),
                **({} if texts is None else {"text": excerpt(texts[1][query])}),
            }
        )
    return found


def strongest(
    shares: np.ndarray,
    labels: np.ndarray | None,
    most: int = 6,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
) -> dict[str, Any]:
    """What all samples add to an output on either side, and those that add most: parts of `influences`.

    Args:
      shares: what each sample adds, shape (n,).
      labels, most, texts: see `influences`.
    """
    order = np.argsort(shares, kind="stable")

    def listed(rows: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {"sample": int(i), "label": None if labels is None else int(labels[i]), "term": float(shares[i])}
            | ({} if texts is None else {"text": excerpt(texts[0][i])})
            for i in rows
        ]

    return {
        "positive_sum": float(shares[shares > 0].sum()),
        "negative_sum": float(shares[shares < 0].sum()),
        "positive": listed([i for i in order[::-1][:most] if shares[i] > 0]),
        "negative": listed([i for i in order[:most] if shares[i] < 0]),
    }


def excerpt(text: str) -> str:
    """The first `EXCERPT` characters of a text, cut between words."""
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT].rsplit(maxsplit=1)[0]} ..."


def choose_queries(output: np.ndarray, query_labels: np.ndarray | None, count: int) -> list[int]:
    """Queries to explain: the first of every class, then the first that are wrong, then the first of all.

    Args:
      output: of all queries, shape (n_queries, n_outputs).
      query_labels: class indices, shape (n_queries,); None for regression.
      count: how many at most.
    """
    everyone = np.arange(len(output))
    if query_labels is None:
        return everyone[:count].tolist()
    first = np.sort(np.unique(query_labels, return_index=True)[1])
    wrong = np.flatnonzero(output.argmax(axis=1) != query_labels)
    order = np.concatenate([first[: max(1, count - 2)], wrong[:2], first, everyone])
    return order[np.sort(np.unique(order, return_index=True)[1])][:count].tolist()


def between_classes(terms: PathTerms, labels: np.ndarray, query_labels: np.ndarray, n_classes: int) -> np.ndarray:
    """How the samples of one class moved the true output of the queries of another.

    Args:
      terms: of all queries; output c belongs to class c.
      labels, query_labels: class indices, shapes (n,) and (n_queries,).
      n_classes: number of classes C.

    Returns:
      Shape (C, C): entry (c, j) is the mean, over queries of class c, of the sum of the terms of all samples of class j
      in output c; NaN where no query is of class c.
    """
    true = terms.terms[np.arange(len(query_labels)), :, query_labels]
    by_class = true @ np.eye(n_classes)[labels]
    counts = np.bincount(query_labels, minlength=n_classes)[:, None]
    sums = np.eye(n_classes)[query_labels].T @ by_class
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def by_layer(terms: PathTerms, query_labels: np.ndarray | None) -> tuple[list[str], np.ndarray]:
    """What the movement of every layer's parameters contributed to the outputs, all samples together.

    A layer is the first word of its parameters' names: ``['hidden_1']['weight']`` belongs to hidden_1.

    Args:
      terms: of all queries.
      query_labels: class indices, shape (n_queries,): an output is averaged over the queries of its class. None
        averages every output over all queries.

    Returns:
      The layers' names, and their contributions, shape (n_layers, n_outputs); NaN where there is no such query.
    """
    layers = [(re.findall(r"[A-Za-z_]\w*", name) or [name])[0] for name in terms.names]
    names = list(dict.fromkeys(layers))
    members = np.array([[layer == name for layer in layers] for name in names], float)
    sums = np.einsum("lp,pqc->lqc", members, terms.by_parameter)
    if query_labels is None:
        return names, sums.mean(axis=1)
    chosen = np.eye(sums.shape[2])[query_labels]
    counts = chosen.sum(axis=0)
    total = np.einsum("lqc,qc->lc", sums, chosen)
    return names, np.divide(total, counts, out=np.full_like(total, np.nan), where=counts > 0)
