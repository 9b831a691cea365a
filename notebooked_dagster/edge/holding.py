"""Patience for runs that start, or stop, slower than Dagster's run monitoring allows."""

from __future__ import annotations

import time

from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus


class Holding:
    """Says again, in time, that a run starts or is being stopped.

    Dagster's run monitoring gives up a run that has been starting, or stopping, for longer than a time that is meant for
    machines that answer; it counts from the last event that says so.

    Args:
        instance: The central instance.
    """

    def __init__(self, instance: DagsterInstance) -> None:
        self._instance = instance
        self._told: dict[str, float] = {}

    def hold(self, run: DagsterRun, reason: str) -> None:
        """To be called every now and then for as long as the reason holds."""
        kind, limit = {
            DagsterRunStatus.STARTING: (
                DagsterEventType.PIPELINE_STARTING,
                self._instance.run_monitoring_start_timeout_seconds,
            ),
            DagsterRunStatus.CANCELING: (
                DagsterEventType.PIPELINE_CANCELING,
                self._instance.run_monitoring_cancel_timeout_seconds,
            ),
        }.get(run.status, (None, 0))
        if kind is None or not limit or not self._instance.run_monitoring_enabled:
            self._told.pop(run.run_id, None)
            return
        now = time.monotonic()
        if now - self._told.setdefault(run.run_id, now) > limit / 3:
            self._told[run.run_id] = now
            self._instance.report_dagster_event(
                DagsterEvent(kind.value, run.job_name, message=reason), run_id=run.run_id
            )
