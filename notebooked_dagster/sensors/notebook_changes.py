"""The sensor that looks at the notebooks, says what changed, and asks for what is stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from notebooked_dagster.resources import Workplace

from .watch import Change, Look, NotebookWatch, Recorded, Watched

NAME = "notebook_changes"
_DATA_VERSION = "dagster/data_version"
_PARTS = {"code": ("training_code", "inference_code"), "model": ("model",), "endpoint": ("endpoint",)}


def notebook_changes_sensor(
    place: Workplace,
    experiments: Sequence[Watched],
    jobs: Mapping[str, Any],
    default_status: dg.DefaultSensorStatus,
) -> dg.SensorDefinition:
    """Edits of notebooks become observations; edits of their code become runs of what is stale, and of nothing else.

    Args:
        place: The project.
        experiments: Whose notebooks are watched.
        jobs: By name. What is stale runs as part of its experiment's own job, with that job's executor and tags.
        default_status: Whether it is on without anybody switching it on.
    """
    watched = [item for item in experiments if item.config.automation]
    watch = NotebookWatch(watched, place.state, place.root / "notebooks")
    bootstrap = place.project.automation.bootstrap

    def evaluate(context: dg.SensorEvaluationContext) -> Any:
        look = watch.look(context.cursor, _recorded(context.instance))
        for text in look.problems:
            context.log.error(text)
        for path in look.undeclared:
            context.log.info("%s has no declaration; `notebooked init` writes one.", path)
        requests = [
            request
            for change in look.changes
            if (request := _request(change, bootstrap, context.cursor or "")) is not None
        ]
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else dg.SkipReason(_reason(look, bootstrap)),
            asset_events=[_observation(change) for change in look.changes],
            cursor=look.generation,
        )

    return dg.SensorDefinition(
        name=NAME,
        evaluation_fn=evaluate,
        jobs=[jobs[_job(item)] for item in watched],
        minimum_interval_seconds=place.project.automation.interval,
        default_status=default_status,
        description=(
            "Looks at every declared notebook. An edit of prose, outputs or plots asks for nothing; of inference code, "
            "for a deployment; of training code, for training and a deployment."
        ),
    )


def _job(item: Watched) -> str:
    return f"{item.name}_job"


def _recorded(instance: dg.DagsterInstance) -> Callable[[Watched], Recorded]:
    def version(key: dg.AssetKey) -> str | None:
        event = instance.get_latest_materialization_event(key)
        found = event.asset_materialization if event is not None else None
        return (found.tags or {}).get(_DATA_VERSION) if found is not None else None

    def recorded(item: Watched) -> Recorded:
        def key(part: str) -> dg.AssetKey:
            return dg.AssetKey([item.name, part])

        endpoint = not item.config.endpoint.enabled or not item.config.endpoint.auto_deploy
        return Recorded(
            training=version(key("training_code")),
            inference=version(key("inference_code")),
            has_model=instance.get_latest_materialization_event(key("model")) is not None,
            has_endpoint=endpoint or instance.get_latest_materialization_event(key("endpoint")) is not None,
        )

    return recorded


def _request(change: Change, bootstrap: bool, before: str) -> dg.RunRequest | None:
    """The run that a change asks for.

    Args:
        change: What a look saw.
        bootstrap: Whether what never ran is asked for as well.
        before: The cursor that the look started from. It is in the run's key: a daemon that dies before it has stored the
            new cursor looks from the same one again and asks once; an edit that is taken back and made again asks again.
    """
    config = change.experiment.config
    if not change.stale or (change.first and not bootstrap):
        return None
    wanted = [
        part
        for part in change.stale
        if part != "endpoint" or (config.endpoint.enabled and config.endpoint.auto_deploy)
    ]
    if config.partitions is not None:
        # Which partitions of the model follow is for the automation conditions to say.
        wanted = [part for part in wanted if part == "code"]
    keys = [dg.AssetKey([change.experiment.name, name]) for part in wanted for name in _PARTS[part]]
    if not keys:
        return None
    why = ",".join(change.stages) or ("first look" if change.first else "declaration")
    return dg.RunRequest(
        run_key="/".join(
            (change.experiment.name, before, *map(str, change.state.stamp), *change.versions_text)
        ),
        job_name=_job(change.experiment),
        asset_selection=keys,
        asset_check_keys=_checks(change, wanted),
        tags={"notebooked/experiment": change.experiment.name, "notebooked/changed": why},
    )


def _checks(change: Change, wanted: Sequence[str]) -> list[dg.AssetCheckKey]:
    """The checks that go with what is asked for; parity trains twice and is only run when asked for."""
    config, name = change.experiment.config, change.experiment.name
    found = []
    if "model" in wanted and config.metric_gate:
        found.append(dg.AssetCheckKey(dg.AssetKey([name, "model"]), "metric_gate"))
    if "model" in wanted and config.parity.enabled and config.parity.with_job:
        found.append(dg.AssetCheckKey(dg.AssetKey([name, "model"]), "parity"))
    if "endpoint" in wanted:
        found.extend(
            dg.AssetCheckKey(dg.AssetKey([name, "endpoint"]), check)
            for check in ("smoke_prediction", "endpoint_health")
        )
    return found


def _observation(change: Change) -> dg.AssetObservation:
    return dg.AssetObservation(
        asset_key=dg.AssetKey([change.experiment.name, "notebook"]),
        metadata={
            "stage hashes": dg.MetadataValue.json(dict(change.state.stages)),
            "changed stages": "first look" if change.first else ", ".join(change.stages) or "none",
            "asked for": ", ".join(change.stale) or "nothing",
            "notebook": dg.MetadataValue.path(str(change.experiment.path)),
            "size": change.state.stamp[1],
        },
        tags={_DATA_VERSION: change.versions.notebook},
    )


def _reason(look: Look, bootstrap: bool) -> str:
    if look.problems:
        return " ".join(look.problems)
    new = [change for change in look.changes if change.first and change.stale]
    if new and not bootstrap:
        return (
            f"{_names(new)} never ran, and `automation.bootstrap` is off: materialize the first time by hand."
        )
    if look.changes:
        return f"{_names(look.changes)}: saved; the code means what it meant before."
    if look.undeclared:
        return f"{len(look.undeclared)} notebooks have no declaration."
    return "No notebook changed."


def _names(changes: Sequence[Change]) -> str:
    names = [change.experiment.name for change in changes]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
