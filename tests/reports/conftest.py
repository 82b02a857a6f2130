"""Runs that the reports' tests show."""

from __future__ import annotations

import pytest

from tests.reports.samples import SAMPLES, Metrics, make_metrics


@pytest.fixture
def ten_classes() -> Metrics:
    """Ten classes, ten depths, sparse Omega."""
    return make_metrics()


@pytest.fixture(params=list(SAMPLES), scope="module")
def any_metrics(request: pytest.FixtureRequest) -> Metrics:
    """Each of the sample runs in turn; not to be changed by a test."""
    return SAMPLES[request.param]()


@pytest.fixture
def six_classes() -> Metrics:
    """Six classes, three depths: quick to draw."""
    return make_metrics(6, 3)
