"""A span around what a step of a run does, with the names that OpenTelemetry has for pipelines."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import dagster as dg

from notebooked_dagster.core import tracing
from notebooked_dagster.core.logs import about


@contextlib.contextmanager
def traced(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
    asset: str,
    kind: Literal["build", "deploy", "test"],
) -> Iterator[None]:
    """Trace the work on an asset; our logs name the trace meanwhile.

    Args:
        context: Of the step.
        asset: As Dagster shows it: ``digits/model``.
        kind: Of task, as the conventions for CI/CD have it.
    """
    if not tracing.wanted():
        yield
        return
    run = context.run
    attributes = {
        "cicd.pipeline.name": run.job_name,
        "cicd.pipeline.run.id": run.run_id,
        "cicd.pipeline.task.name": asset,
        "cicd.pipeline.task.run.id": f"{run.run_id}/{context.op_execution_context.get_step_execution_context().step.key}",
        "cicd.pipeline.task.type": kind,
        "notebooked.partition": context.partition_key if context.has_partition_key else None,
    }
    with tracing.span(asset, attributes, run_id=run.run_id) as span, about(trace=span.trace_id):
        try:
            yield
        except Exception:
            span.set("cicd.pipeline.task.run.result", "failure")
            raise
        except BaseException:
            # Dagster interrupts a step that somebody terminates.
            span.set("cicd.pipeline.task.run.result", "cancellation")
            raise
        span.set("cicd.pipeline.task.run.result", "success")
