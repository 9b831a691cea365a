"""Prometheus figures of one worker, and of all workers of an endpoint on the public port."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LABELS = ("endpoint", "version")

Family = dict[str, Any]


class Metrics:
    """The figures of one model version."""

    def __init__(self, endpoint: str, version: str, *, restarts: int = 0) -> None:
        self.registry = CollectorRegistry()
        labels = (endpoint, version)
        self._labels = labels
        self._requests = Counter(
            "notebooked_requests", "Answered requests.", (*_LABELS, "code"), registry=self.registry
        )
        self._errors = Counter(
            "notebooked_errors",
            "Requests that got no prediction: input, prediction, timeout.",
            (*_LABELS, "kind"),
            registry=self.registry,
        )
        self._fallbacks = Counter(
            "notebooked_fallbacks",
            "Requests for another version that the champion answered because that version failed.",
            _LABELS,
            registry=self.registry,
        )
        self.latency = Histogram(
            "notebooked_request_seconds",
            "From the whole request read to the reply ready.",
            _LABELS,
            buckets=_BUCKETS,
            registry=self.registry,
        ).labels(*labels)
        self.in_flight = Gauge(
            "notebooked_in_flight", "Requests being answered.", _LABELS, registry=self.registry
        ).labels(*labels)
        Gauge(
            "notebooked_restarts", "Restarts of the worker after a crash.", _LABELS, registry=self.registry
        ).labels(*labels).set(restarts)
        self.weight = Gauge(
            "notebooked_traffic_weight", "Share of the traffic, 0 to 100.", _LABELS, registry=self.registry
        ).labels(*labels)
        # A child is looked up once: labels() takes a lock and builds a tuple on every call.
        self._by_code: dict[int, Any] = {}

    def answered(self, code: int, seconds: float) -> None:
        """Count a reply."""
        child = self._by_code.get(code)
        if child is None:
            child = self._by_code[code] = self._requests.labels(*self._labels, str(code))
        child.inc()
        self.latency.observe(seconds)

    def failed(self, kind: str) -> None:
        """Count a request without a prediction."""
        self._errors.labels(*self._labels, kind).inc()

    def fell_back(self, version: str) -> None:
        """Count a request that another version should have answered."""
        self._fallbacks.labels(self._labels[0], version).inc()

    def snapshot(self) -> list[Family]:
        """Everything as plain data, for the worker that answers ``/metrics``."""
        return [
            {
                "name": family.name,
                "documentation": family.documentation,
                "type": family.type,
                "samples": [[sample.name, sample.labels, sample.value] for sample in family.samples],
            }
            for family in self.registry.collect()
        ]


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def render(snapshots: Iterable[list[Family]]) -> bytes:
    """The text format, families of the same name merged, with this process's own figures."""
    merged: dict[str, Metric] = {}
    for family in (family for snapshot in snapshots for family in snapshot):
        metric = merged.setdefault(
            family["name"], Metric(family["name"], family["documentation"], family["type"])
        )
        for name, labels, value in family["samples"]:
            metric.add_sample(name, labels, value)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(merged.values()))
    ProcessCollector(registry=registry)
    return generate_latest(registry)
