"""Which training rows argue for a prediction, and which of them look mislabelled: exact, by leaving rows out."""

from __future__ import annotations

from typing import Any

import numpy as np

from nftk_jax.datasets import Dataset
from nftk_jax.model import NFTKModel
from nftk_jax.model.left_out import joint_influences, output_influences
from nftk_jax.model.systems import keeping_factors
from nftk_jax.path_kernels.influence import choose_queries, strongest
from nftk_jax.solvers.solver import Report

#: Training rows that are listed because the others contradict them.
SUSPECTS = 20


def explain(dataset: Dataset, model: NFTKModel, count: int, report: Report) -> dict[str, Any]:
    """What metrics.json holds as `influence`.

    A row adds to an output what the output loses without the row, at fixed Omega, ridge, scaling and centring.

    Args:
      dataset: the data of the fit, with its test rows.
      model: fitted on all training rows, without landmarks.
      count: how many test rows are explained: the first of every class, two that are wrong, then the first of all.
      report: called with a stage's name, what is done and the total.

    Returns:
      `predictions`, a dictionary for every explained row: query, label, output (the number of the largest one), value,
      `positive_sum` and `negative_sum` of what rows add, the lists `positive` and `negative` of {sample, label, term},
      strongest first, and `without`: what the output would be without the rows of `positive`, and the label then.
      `suspects`, training rows that the model without them contradicts most: sample, label, looks_like, and loss, by
      how much the best other label is ahead, or the error in standard deviations of the target.
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
        suspects = _suspects(dataset, model)
    then = None if labels is None else model.logits(less).argmax(axis=1)
    predictions = [
        {
            "query": query,
            "label": None if query_labels is None else int(query_labels[query]),
            "output": int(output[number]),
            "value": float(scores[query, output[number]]),
            **found[number],
            "without": {
                "value": float(less[number, output[number]]),
                "output": None if then is None else int(then[number]),
            },
        }
        for number, query in enumerate(queries)
    ]
    report("influence", 3, 3)
    return {"predictions": predictions, "suspects": suspects}


def _suspects(dataset: Dataset, model: NFTKModel) -> list[dict[str, Any]]:
    left_out = model.loo_predictions()
    everyone = np.arange(len(left_out))
    if dataset.classes is None:
        error = np.abs(dataset.y_train.reshape(left_out.shape) - left_out) / model.target_scale
        loss, looks_like = np.nan_to_num(error).max(axis=1), None  # NaN where a target is missing
    else:
        logits = model.logits(left_out)
        own = logits[everyone, dataset.y_train].copy()
        logits[everyone, dataset.y_train] = -np.inf
        loss, looks_like = logits.max(axis=1) - own, logits.argmax(axis=1)
    rows = np.argsort(-loss, kind="stable")[:SUSPECTS]
    return [
        {
            "sample": int(row),
            "label": None if looks_like is None else int(dataset.y_train[row]),
            "looks_like": None if looks_like is None else int(looks_like[row]),
            "loss": float(loss[row]),
        }
        for row in rows
        if loss[row] > 0
    ]
