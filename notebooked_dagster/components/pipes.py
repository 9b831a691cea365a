"""What a training job reports by Dagster Pipes, and what becomes of it in Dagster (docs/decisions/0013-pipes.md).

The job's result makes the model, once. What the job reports is attached to it: log lines to the run that asked for the
training, metadata and metrics by step to the model's materialization, checks that were declared as their evaluations.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import dagster as dg
from dagster._core.pipes.context import build_external_execution_context_data

from notebooked_dagster.config import PipesCheck, PipesConfig
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.errors import CapabilityError
from notebooked_dagster.providers.base import BaseProvider, Capability, Experiment

from .spec import ExperimentSpec

# Each is a write to Dagster's database, and the training is waited for meanwhile.
_MOST_LINES = 200
_MOST_MESSAGES = 50
_MOST_POINTS = 200
_FALLBACK = logging.INFO

Say = Callable[[int, str], None]
"""Takes a line for the log of the run that asked for the training, with its level."""


def check_specs(spec: ExperimentSpec) -> list[dg.AssetCheckSpec]:
    """The checks that the notebook reports."""
    return [
        dg.AssetCheckSpec(
            check.name,
            asset=spec.key("model"),
            description=check.description or f"Reported by the training of {spec.config.name} itself.",
            blocking=check.blocking,
            partitions_def=spec.partitions,
        )
        for check in _declared(spec.config.pipes)
    ]


def _declared(config: PipesConfig) -> tuple[PipesCheck, ...]:
    return config.checks if config.enabled else ()


def reports(spec: ExperimentSpec, provider: BaseProvider) -> bool:
    """Whether a training of the experiment reports.

    Raises:
        CapabilityError: Checks are declared, and the provider's jobs cannot report any.
    """
    config = spec.config.pipes
    if not config.enabled or Capability.PIPES in provider.capabilities:
        return config.enabled
    if config.checks:
        raise CapabilityError(
            f"Jobs of provider {provider.name!r} cannot report checks.",
            key="pipes.checks",
            hint="Remove `pipes` from the declaration, or choose another provider.",
        )
    return False


def context_data(context: dg.AssetExecutionContext, experiment: Experiment, provider: str) -> dict[str, Any]:
    """What the job is told of the run: ``PipesContext`` there has it."""
    extras = {"experiment": experiment.name, "provider": provider, "data_path": experiment.data_path}
    return dict(build_external_execution_context_data(context, extras))


class Told:
    """Everything a job has reported.

    Args:
        spec: The experiment.
        say: Where log lines go.
    """

    def __init__(self, spec: ExperimentSpec, say: Say) -> None:
        self._spec = spec
        self._say = say
        self._lines = 0
        self._curves: dict[str, list[tuple[int, float]]] = {}
        REDACTOR.add_environment(spec.config.environment)
        # The handler wants no more of a context than its log; there is none where a sensor reads.
        stand_in = _Context(_Log(self._logged))
        self._handler = dg.PipesMessageHandler(cast("dg.AssetExecutionContext", stand_in), _HandedOver())

    def take(self, line: str) -> None:
        """A message. One that cannot be read is told of; it is no reason to lose a training."""
        try:
            message = json.loads(REDACTOR.redact(line))
            method, params = message["method"], message["params"] or {}
            if method == "report_custom_message" and _is_metric(params.get("payload")):
                self._metric(**params["payload"])
                return
            if method == "closed":
                # A failure is told by the job itself, with its cell.
                message["params"] = {}
            self._handler.handle_message(message)
        except Exception as error:
            self._logged(
                logging.WARNING, f"A message of the job cannot be read: {type(error).__name__}: {error}"
            )

    def _logged(self, level: int, text: str) -> None:
        self._lines += 1
        if self._lines == _MOST_LINES:
            text = f"The job has reported {_MOST_LINES} lines; the others are in its log."
        if self._lines <= _MOST_LINES:
            self._say(level, text)

    def _metric(self, name: str, value: float, step: int | None = None, **_: Any) -> None:
        if step is None:
            self._logged(logging.INFO, f"{name} = {value:.6g}")
            return
        points = self._curves.setdefault(name, [])
        points.append((int(step), float(value)))
        if _is_round(len(points)):
            self._logged(logging.INFO, f"step {step}: {name} = {value:.6g}")

    @property
    def metadata(self) -> dict[str, Any]:
        """What it told of its model."""
        found: dict[str, Any] = {}
        for result in self._handler.get_reported_results():
            if isinstance(result, dg.MaterializeResult) and result.asset_key == self._spec.key("model"):
                found.update(result.metadata or {})
        messages = self._handler.get_custom_messages()
        if messages:
            found["messages"] = dg.MetadataValue.json(list(messages[-_MOST_MESSAGES:]))
        for name, points in self._curves.items():
            if len(points) > 1:
                found[f"{name} by step"] = dg.MetadataValue.json(_thinned(points))
        return found

    def checks(self, asked: Collection[str] | None = None) -> list[dg.AssetCheckResult]:
        """The last evaluation of each check that was reported; of one that nobody declared a warning is said.

        Args:
            asked: The checks that the run is to evaluate; all where None.
        """
        declared = {check.name: check for check in _declared(self._spec.config.pipes)}
        found: dict[str, dg.AssetCheckResult] = {}
        for result in self._handler.get_reported_results():
            if not isinstance(result, dg.AssetCheckResult) or result.check_name is None:
                continue
            name = result.check_name
            if name in declared and result.asset_key in (None, self._spec.key("model")):
                found[name] = result
            else:
                self._say(
                    logging.WARNING,
                    f"The training reported the check {name!r} ({'passed' if result.passed else 'failed'}) of "
                    f"{result.asset_key.to_user_string() if result.asset_key else 'its model'}, which is not declared: "
                    "add it to `pipes.checks`.",
                )
        wanted = declared.keys() if asked is None else declared.keys() & set(asked)
        for name in sorted(wanted - found.keys()):
            self._say(logging.WARNING, f"The training reported no check {name!r}, which is declared.")
        return [result for name, result in found.items() if name in wanted]

    def say_checks(self) -> None:
        """Log what was checked before a training failed: its verdicts are of no model."""
        for result in self._handler.get_reported_results():
            if isinstance(result, dg.AssetCheckResult):
                verdict = "passed" if result.passed else "failed"
                facts = {name: value.value for name, value in (result.metadata or {}).items()}
                text = f"Before it failed, the check {result.check_name!r} {verdict}. {facts or ''}".strip()
                self._say(logging.WARNING if not result.passed else logging.INFO, text)


def told_by(spec: ExperimentSpec, provider: BaseProvider, job_id: str, say: Say) -> Told | None:
    """Everything that a job that has ended reported; None where its experiment does not."""
    if not reports(spec, provider):
        return None
    told = Told(spec, say)
    for line in provider.messages(job_id)[0]:
        told.take(line)
    return told


def silent(level: int, text: str) -> None:
    """Says nothing: for messages that are read once more."""


def log_of(instance: dg.DagsterInstance, run_id: str) -> Say:
    """The log of a run, be it over."""
    from dagster._core.log_manager import DagsterLogManager

    run = instance.get_run_by_id(run_id)
    if run is None:
        return silent
    manager = DagsterLogManager.create([], instance=instance, dagster_run=run)
    return lambda level, text: manager.log(level, text)


def _is_metric(payload: Any) -> bool:
    return isinstance(payload, Mapping) and payload.get("notebooked") == "metric"


def _is_round(number: int) -> bool:
    """1 to 10, 20, 30, … 100, 200, …: of many steps the log has some."""
    return str(number)[1:].strip("0") == ""


def _thinned(points: list[tuple[int, float]]) -> dict[str, list[Any]]:
    every = max(1, -(-len(points) // _MOST_POINTS))
    kept = points[::every]
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return {"step": [step for step, _ in kept], "value": [value for _, value in kept]}


class _Log:
    """As much of a log as ``PipesMessageHandler`` uses."""

    def __init__(self, say: Say) -> None:
        self._write = say

    def log(self, level: str | int, text: str) -> None:
        number = logging.getLevelName(level.upper()) if isinstance(level, str) else level
        self._write(number if isinstance(number, int) else _FALLBACK, text)

    def info(self, text: str) -> None:
        self._write(logging.INFO, text)

    def warning(self, text: str) -> None:
        self._write(logging.WARNING, text)


class _Context:
    def __init__(self, log: _Log) -> None:
        self.log = log


class _HandedOver(dg.PipesMessageReader):
    """The provider hands the messages over; there is nothing to be opened."""

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, Any]]:
        yield {}

    def no_messages_debug_text(self) -> str:
        return ""
