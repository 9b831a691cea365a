"""The daemon's figures for Prometheus, read from its counters when somebody asks; counting itself costs no lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figures(Collector):
    """What ``/metrics`` says."""

    def __init__(self, snapshot: Callable[[], dict[str, Any]]) -> None:
        self._snapshot = snapshot
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on what was configured."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every figure."""
        now = self._snapshot()
        counters = now["counters"]
        yield _counter("received", "Events that came in.", ["source"], counters["received"])
        yield _counter("handled", "Events that went past the rules.", ["source"], counters["handled"])
        yield _counter(
            "dropped", "Events that were lost on the way in.", ["source", "reason"], counters["dropped"]
        )
        yield _counter("actions", "Actions carried out.", ["rule", "action"], counters["actions"])
        yield _counter(
            "refused", "Actions that could not be carried out.", ["rule", "reason"], counters["refused"]
        )
        yield _counter("sent", "MIDI messages sent.", ["port"], counters["sent"])
        connected = GaugeMetricFamily(
            "notebooked_edge_port_connected", "Whether anything is at the other end.", labels=["port", "kind"]
        )
        for port in now["ports"]:
            connected.add_metric([port["name"], port["kind"]], float(port["connected"]))
        yield connected
        yield GaugeMetricFamily("notebooked_edge_queue", "Events that wait.", value=counters["waiting"])
        yield GaugeMetricFamily(
            "notebooked_edge_run_requests",
            "Runs that Dagster has not been asked for yet.",
            value=now["requests"],
        )
        if now["clock"] is not None:
            clock = now["clock"]
            yield GaugeMetricFamily("notebooked_edge_bpm", "The tempo.", value=clock["bpm"])
            late = GaugeMetricFamily(
                "notebooked_edge_clock_late_seconds", "How late clocks are.", labels=["quantile"]
            )
            for quantile, value in zip(("0.5", "0.99", "1"), clock["late_us"], strict=True):
                late.add_metric([quantile], value / 1e6)
            yield late
            yield CounterMetricFamily(
                "notebooked_edge_clock_skipped", "Clocks left out after a sleep.", value=clock["skipped"]
            )
        if now["recorder"] is not None:
            recorder = now["recorder"]
            yield GaugeMetricFamily(
                "notebooked_edge_recording",
                "Whether a take is recorded.",
                value=float(recorder["take"] is not None),
            )
            yield CounterMetricFamily(
                "notebooked_edge_recorded", "Messages recorded.", value=recorder["recorded"]
            )
            yield CounterMetricFamily(
                "notebooked_edge_recorder_lost", "Messages that no take has.", value=recorder["lost"]
            )
            yield GaugeMetricFamily(
                "notebooked_edge_recorder_failed",
                "Whether the disk takes nothing.",
                value=float(bool(recorder["failed"])),
            )
        yield GaugeMetricFamily(
            "notebooked_edge_dispatch_seconds",
            "From arrival to handled, the slowest of the last minute.",
            value=now["slowest_ms"] / 1e3,
        )


def _counter(name: str, text: str, labels: list[str], values: Iterable[list[Any]]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"notebooked_edge_{name}", text, labels=labels)
    for *key, count in values:
        family.add_metric([str(part) for part in key], float(count))
    return family
