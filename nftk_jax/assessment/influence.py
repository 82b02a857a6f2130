"""Which training rows argue for a prediction, and which of them look mislabelled: exact, by leaving rows out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nftk_jax.datasets import Dataset
from nftk_jax.model import NFTKModel
from nftk_jax.model.left_out import joint_influences, output_influences
from nftk_jax.model.systems import keeping_factors
from nftk_jax.path_kernels.influence import choose_queries, excerpt, strongest
from nftk_jax.solvers.solver import Report

#: Training rows that are listed because the others contradict them.
SUSPECTS = 20
#: Columns of a table that are shown of a row.
SHOWN_COLUMNS = 40

#: Of the training and the test rows.
Texts = tuple[Sequence[str], Sequence[str]]


def explain(
    dataset: Dataset, model: NFTKModel, count: int, report: Report, *, texts: Texts | None = None
) -> dict[str, Any]:
    """What metrics.json holds as `influence`.

    A row adds to an output what the output loses without the row, at fixed Omega, ridge, scaling and centring.

    Args:
      dataset: the data of the fit, with its test rows.
      model: fitted on all training rows, without landmarks.
      count: how many test rows are explained: the first of every class, two that are wrong, then the first of all.
      report: called with a stage's name, what is done and the total.
      texts: that the rows were made of, where they were.

    Returns:
      `predictions`, a dictionary for every explained row: query, label, output (the number of the largest one), value,
      `positive_sum` and `negative_sum` of what rows add, the lists `positive` and `negative` of {sample, label, term},
      strongest first, and `without`: what the output would be without the rows of `positive`, and the label then.
      `suspects`, training rows that the model without them contradicts most: sample, label, looks_like, loss, by
      how much the best other label is ahead, or the error in standard deviations of the target, and the output that
      this is about with its prediction by the model without the row. Every row has its
      `text`, the start of it, or its `values` by column, of the first `SHOWN_COLUMNS` columns of a table. Without
      classes it also has its `target`, of the output that is explained.
    """
    labels = None if dataset.classes is None else dataset.y_train
    query_labels = None if dataset.classes is None else dataset.y_test
    scores = model.decision_function(dataset.x_test)
    queries = choose_queries(scores, query_labels, count)
    report("influence", 0, 3)
    x, output = dataset.x_test[queries], scores[queries].argmax(axis=1)
    with keeping_factors(model):
        found = [strongest(-change, labels) for change in output_influences(model, x, output)]
        report("influence", 1, 3)
        groups = [np.array([entry["sample"] for entry in one["positive"]], int) for one in found]
        less = scores[queries] + joint_influences(model, x, groups)
        report("influence", 2, 3)
        suspects = _suspects(dataset, model, texts)
    then = None if labels is None else model.logits(less).argmax(axis=1)
    predictions = [
        {
            "query": query,
            "label": None if query_labels is None else int(query_labels[query]),
            "output": int(output[number]),
            "value": float(scores[query, output[number]]),
            **_content(dataset, texts, 1, query, int(output[number])),
            **found[number],
            "without": {
                "value": float(less[number, output[number]]),
                "output": None if then is None else int(then[number]),
            },
        }
        for number, query in enumerate(queries)
    ]
    for one in predictions:
        for entry in (*one["positive"], *one["negative"]):
            entry |= _content(dataset, texts, 0, entry["sample"], one["output"])
    report("influence", 3, 3)
    return {"predictions": predictions, "suspects": suspects}


def _content(dataset: Dataset, texts: Texts | None, part: int, row: int, output: int) -> dict[str, Any]:
    """What a person sees of a training row (part 0) or a test row (part 1)."""
    found: dict[str, Any] = {}
    if dataset.classes is None:
        target = float((dataset.y_train, dataset.y_test)[part].reshape(-1, dataset.n_outputs)[row, output])
        found["target"] = target if np.isfinite(target) else None
    if texts is not None:
        found["text"] = excerpt(texts[part][row])
    elif dataset.table is not None:
        values = dataset.table.decode((dataset.x_train, dataset.x_test)[part][row])
        found["values"] = dict(list(values.items())[:SHOWN_COLUMNS])
    return found


def _suspects(dataset: Dataset, model: NFTKModel, texts: Texts | None) -> list[dict[str, Any]]:
    left_out = model.loo_predictions()
    everyone = np.arange(len(left_out))
    if dataset.classes is None:
        error = np.abs(dataset.y_train.reshape(left_out.shape) - left_out) / model.target_scale
        error = np.nan_to_num(error)  # NaN where a target is missing
        loss, output, looks_like = error.max(axis=1), error.argmax(axis=1), None
    else:
        logits = model.logits(left_out)
        own = logits[everyone, dataset.y_train].copy()
        logits[everyone, dataset.y_train] = -np.inf
        loss, looks_like = logits.max(axis=1) - own, logits.argmax(axis=1)
        output = looks_like
    rows = np.argsort(-loss, kind="stable")[:SUSPECTS]
    return [
        {
            "sample": int(row),
            "label": None if looks_like is None else int(dataset.y_train[row]),
            "looks_like": None if looks_like is None else int(looks_like[row]),
            "loss": float(loss[row]),
            "output": int(output[row]),
            "prediction": float(left_out[row, output[row]]),
            **_content(dataset, texts, 0, int(row), int(output[row])),
        }
        for row in rows
        if loss[row] > 0
    ]
