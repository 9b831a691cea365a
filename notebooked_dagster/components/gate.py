"""The metric gate: what a model has to reach, or has to beat, before it may be deployed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from notebooked_dagster.config import MetricGate
from notebooked_dagster.config.experiment import lower_is_better
from notebooked_dagster.errors import EndpointNotFoundError
from notebooked_dagster.providers.base import BaseProvider

from .reporting import metric_metadata
from .spec import ExperimentSpec

GATE = "metric_gate"
# Between two trainings of the same, metrics differ by about so much.
_NOISE = 0.01


def gate_text(gate: MetricGate) -> str:
    """A gate in words."""
    parts = []
    if gate.min is not None:
        parts.append(f"{gate.metric} >= {gate.min:g}")
    if gate.max is not None:
        parts.append(f"{gate.metric} <= {gate.max:g}")
    if gate.better_than is not None:
        sign = ">=" if gate.higher_is_better else "<="
        slack = f" within {gate.tolerance:g}" if gate.tolerance else ""
        parts.append(f"{gate.metric} {sign} the champion's{slack}")
    return " and ".join(parts)


def gate_problems(
    gate: MetricGate, metrics: Mapping[str, float], champion: Mapping[str, float] | None
) -> list[str]:
    """Why a model does not pass; empty where it does. A metric that is not a number does not pass."""
    value = metrics.get(gate.metric)
    if value is None:
        there = ", ".join(sorted(metrics)) or "none"
        return [f"training reported no metric {gate.metric!r}; it reported: {there}"]
    if math.isnan(value):
        return [f"{gate.metric} is not a number"]
    problems = []
    if gate.min is not None and value < gate.min:
        problems.append(f"{gate.metric} = {value:.6g} is below {gate.min:g}")
    if gate.max is not None and value > gate.max:
        problems.append(f"{gate.metric} = {value:.6g} is above {gate.max:g}")
    before = champion.get(gate.metric) if champion is not None else None
    if gate.better_than is not None and before is not None and not math.isnan(before):
        good = value >= before - gate.tolerance if gate.higher_is_better else value <= before + gate.tolerance
        if not good:
            problems.append(f"{gate.metric} = {value:.6g} is worse than the champion's {before:.6g}")
    return problems


def gate_result(
    spec: ExperimentSpec, metrics: Mapping[str, float], champion: Mapping[str, float] | None
) -> dg.AssetCheckResult:
    """The gate's evaluation of a model."""
    problems = [text for gate in spec.config.metric_gate for text in gate_problems(gate, metrics, champion)]
    return dg.AssetCheckResult(
        check_name=GATE,
        passed=not problems,
        description=(
            f"Not deployed: {'; '.join(problems)}."
            if problems
            else "; ".join(gate_text(gate) for gate in spec.config.metric_gate) + "."
        ),
        metadata={
            **metric_metadata(
                {
                    gate.metric: metrics[gate.metric]
                    for gate in spec.config.metric_gate
                    if gate.metric in metrics
                }
            ),
            **({"champion": dg.MetadataValue.json(dict(champion))} if champion else {}),
        },
    )


def champion_metrics(
    spec: ExperimentSpec, provider: BaseProvider, partition: str | None
) -> Mapping[str, float] | None:
    """As ``served_metrics``, where the gate compares with them; else None, and nobody is asked."""
    compares = any(gate.better_than for gate in spec.config.metric_gate)
    return served_metrics(spec, provider, partition) if compares else None


def served_metrics(
    spec: ExperimentSpec, provider: BaseProvider, partition: str | None
) -> Mapping[str, float] | None:
    """The metrics of what the endpoint serves now; None where nothing is served or nothing is known of it."""
    try:
        endpoint = provider.endpoint(spec.endpoint_name(partition))
    except EndpointNotFoundError:
        return None
    served = next((item for item in endpoint.deployments if item.role == "champion"), None)
    if served is None:
        return None
    if (kept := served.labels.get("metrics")) is not None:
        return {str(name): float(value) for name, value in json.loads(kept).items()}
    try:
        document = json.loads((Path(served.model_uri) / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {str(name): float(value) for name, value in document.get("metrics", {}).items()}


def worse_than(metrics: Mapping[str, float], before: Mapping[str, float]) -> str:
    """How a model is worse than another, by the metrics both have and whose better direction their name tells; empty if not."""
    found = []
    for name in sorted(name for name in metrics.keys() & before.keys() if lower_is_better(name) is not None):
        gate = MetricGate(metric=name, better_than="champion", tolerance=abs(before[name]) * _NOISE)
        if gate_problems(gate, metrics, before):
            found.append(f"{name} {metrics[name]:.4g}, before {before[name]:.4g}")
    return "; ".join(found)
