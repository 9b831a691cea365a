"""Spans around what providers do: a training, a deployment, a request to an endpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

from notebooked_dagster.core import tracing
from notebooked_dagster.core.tracing import Span

# What OpenTelemetry calls the clouds.
CLOUDS: Final = {"sagemaker": "aws", "azure": "azure", "vertex": "gcp"}


@contextlib.contextmanager
def training(provider: str, experiment: str) -> Iterator[Span]:
    """A training, from before it is submitted until nobody waits for it any more."""
    attributes = {"notebooked.experiment": experiment, **_where(provider)}
    with tracing.span(f"train {experiment}", attributes) as span:
        yield span


@contextlib.contextmanager
def deployment(provider: str, endpoint: str, experiment: str) -> Iterator[Span]:
    """A deployment, until the endpoint serves what was asked."""
    attributes = {"deployment.name": endpoint, "notebooked.experiment": experiment, **_where(provider)}
    with tracing.span(f"deploy {endpoint}", attributes) as span:
        try:
            yield span
        except BaseException:
            span.set("deployment.status", "failed")
            raise
        span.set("deployment.status", "succeeded")


@contextlib.contextmanager
def request(
    provider: str, endpoint: str, name: str, attributes: Mapping[str, str] | None = None
) -> Iterator[Span]:
    """A request to an endpoint in a cloud.

    Args:
        provider: The provider's name.
        endpoint: The endpoint's name.
        name: Of the operation, as OpenTelemetry has it: ``POST /score``.
        attributes: Likewise.
    """
    told = {**(attributes or {}), "notebooked.endpoint": endpoint, **_where(provider)}
    with tracing.span(name, told, client=True) as span:
        yield span


def _where(provider: str) -> dict[str, str | None]:
    return {"notebooked.provider": provider, "cloud.provider": CLOUDS.get(provider)}
