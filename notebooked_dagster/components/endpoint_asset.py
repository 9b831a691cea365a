"""The endpoint: the model that passed its gate, served; and the checks that ask it."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import dagster as dg

from notebooked_dagster.core.logs import about
from notebooked_dagster.errors import GateError, NotebookedError, UserError
from notebooked_dagster.providers.base import BaseProvider, Endpoint, EndpointStatus
from notebooked_dagster.resources import PROVIDER, TRACKING, ProviderResource, TrackingResource
from notebooked_dagster.sensors.endpoints import served_by
from notebooked_dagster.tracking import Tracking

from .gate import champion_metrics, gate_problems, served_metrics, worse_than
from .model_asset import experiment_of
from .reporting import code_block, latest, metadata_value, reported
from .spec import ExperimentSpec
from .traced import traced

SMOKE = "smoke_prediction"
HEALTH = "endpoint_health"
# Metadata: how the model is worse than the one it replaced, as a sentence.
WORSE = "worse than before"


def endpoint_asset(spec: ExperimentSpec) -> dg.AssetsDefinition:
    """The live endpoint."""
    config = spec.config
    mapping = (
        dg.LastPartitionMapping()
        if spec.partitions is not None and spec.endpoint_partitions is None
        else None
    )
    model = (
        dg.AssetDep(spec.key("model"), partition_mapping=mapping)
        if mapping is not None
        else spec.key("model")
    )

    @dg.multi_asset(
        name=f"{spec.name}__endpoint",
        specs=[
            spec.asset(
                "endpoint",
                deps=[model, spec.key("inference_code")],
                description=f"`{config.endpoint_name}` at the provider `{config.provider}`: healthy before traffic moves to it.",
                automation_condition=spec.automation() if config.endpoint.auto_deploy else None,
                partitions_def=spec.endpoint_partitions,
            )
        ],
        config_schema=_deployment_config(config.endpoint.weight),
        required_resource_keys={PROVIDER, TRACKING},
    )
    def endpoint(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        with reported(context.log), about(run=context.run.run_id, asset=f"{spec.name}/endpoint"):
            with traced(context, f"{spec.name}/endpoint", "deploy"):
                made = deploy(spec, context)
            yield made

    return endpoint


@cache
def _deployment_config(weight: int) -> dict[str, dg.Field]:
    # One for all experiments of a weight: Dagster takes half a millisecond to make one.
    return {
        "model_uri": dg.Field(
            dg.Noneable(str),
            default_value=None,
            is_required=False,
            description="Another model than the newest: a folder, `models:/name@alias`, `runs:/id`.",
        ),
        "weight": dg.Field(
            int,
            default_value=weight,
            is_required=False,
            description="Percent of the traffic; below 100 it is the challenger.",
        ),
    }


def deploy(spec: ExperimentSpec, context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
    """Deploy the newest model, or the one that was asked for."""
    asked: Mapping[str, Any] = context.op_execution_context.op_config
    partition = context.partition_key if context.has_partition_key and spec.endpoint_partitions else None
    providers: ProviderResource = getattr(context.resources, PROVIDER)
    tracking: TrackingResource = getattr(context.resources, TRACKING)
    newest = newest_model(spec, context.instance, partition)
    uri = asked["model_uri"] or metadata_value(newest, "model_uri")
    if not uri:
        raise UserError(
            f"There is no model of {spec.name}{f' for {partition}' if partition else ''} yet.",
            hint=f"Materialize {spec.name}/model first: `notebooked train {spec.config.name}`.",
        )
    provider_name = metadata_value(newest, "provider") or spec.config.provider
    provider = providers.get(provider_name)
    metrics = metadata_value(newest, "metrics") or {}
    if asked["model_uri"] is None:
        _check_gate(spec, metrics, provider, partition)
    before = served_metrics(spec, provider, partition)
    experiment = experiment_of(
        spec, {"provider": provider_name}, tracking.address, partition, run_id=context.run.run_id
    )
    version = _registered_version(spec, tracking.of(spec.config.name), uri)
    labels = {
        "experiment": spec.name,
        "project": spec.place.project_id,
        **({"model_version": version} if version is not None else {}),
        "dagster_run": context.run.run_id,
        # Those of the newest model belong to no other.
        **({"metrics": json.dumps(metrics)} if asked["model_uri"] is None else {}),
        **{
            name: str(value)
            for name in ("model_version", "mlflow_run_id", "job")
            if asked["model_uri"] is None and (value := metadata_value(newest, name))
        },
    }
    live = provider.deploy(
        experiment, uri, spec.endpoint_name(partition), weight=asked["weight"], labels=labels
    )
    context.log.info("%s serves at %s (%s).", live.name, live.url, live.status.value)
    if (problem := follow_champion(spec, tracking.of(spec.config.name), live)) is not None:
        context.log.warning(problem)
    metadata = endpoint_metadata(live, uri, labels, tracking)
    if asked["model_uri"] is None and (worse := worse_than(metrics, before or {})):
        context.log.warning("This model is worse than the one it replaces: %s.", worse)
        metadata[WORSE] = worse
    return dg.MaterializeResult(asset_key=spec.key("endpoint"), metadata=metadata)


def _registered_version(spec: ExperimentSpec, tracking: Tracking, uri: str) -> str | None:
    """The version in the registry that ``models:/name/version`` or ``models:/name@alias`` names; None for anything else."""
    name = spec.config.model_registry_name
    found = re.fullmatch(rf"models:/{re.escape(name or '')}(?:/(\d+)|@(.+))", uri)
    if name is None or found is None:
        return None
    if found[1] is not None:
        return found[1]
    with contextlib.suppress(NotebookedError):
        registered = tracking.models.find(name, found[2])
        return registered.version if registered is not None else None
    return None


def follow_champion(spec: ExperimentSpec, tracking: Tracking, live: Endpoint) -> str | None:
    """Let the registry's alias ``champion`` be the version that the endpoint's champion serves.

    Returns:
        Why that could not be done, as a sentence; None where it was, or where there is nothing to do. The endpoint serves
        all the same.
    """
    name = spec.config.model_registry_name
    champion = next((item for item in live.deployments if item.role == "champion"), None)
    version = champion.labels.get("model_version") if champion is not None else None
    # One model a data set has one endpoint each; none of them is the champion of all.
    if name is None or version is None or spec.endpoint_partitions is not None:
        return None
    try:
        tracking.promote(name, version)
    except NotebookedError as error:
        return f"The alias `champion` of model {name!r} still names another version: {error.message}"
    return None


def newest_model(
    spec: ExperimentSpec, instance: dg.DagsterInstance, partition: str | None
) -> dg.AssetMaterialization | None:
    """The last model; of daily data, that of the newest day that has one."""
    key = spec.key("model")
    if spec.partitions is None or partition is not None:
        return latest(instance, key, partition)
    done = instance.get_materialized_partitions(key)
    return latest(instance, key, max(done)) if done else None


def _check_gate(
    spec: ExperimentSpec,
    metrics: Mapping[str, float],
    provider: BaseProvider,
    partition: str | None,
) -> None:
    """A model that did not pass is not deployed by asking for the endpoint alone, either."""
    champion = champion_metrics(spec, provider, partition)
    problems = [text for gate in spec.config.metric_gate for text in gate_problems(gate, metrics, champion)]
    if problems:
        raise GateError(
            f"The newest model of {spec.name} does not pass its gate: {'; '.join(problems)}.",
            hint="Train a better one, or deploy this one on purpose: run config `model_uri`.",
        )


def endpoint_metadata(
    live: Endpoint, uri: str, labels: Mapping[str, str], tracking: TrackingResource
) -> dict[str, Any]:
    """What the UI shows of an endpoint."""
    found: dict[str, Any] = {
        "URL": dg.MetadataValue.url(live.url),
        "status": live.status.value,
        "model_uri": uri,
        "provider": live.provider,
        "deployments": dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "version": item.version,
                        "role": item.role,
                        "traffic": f"{item.weight} %",
                        "status": item.status.value,
                        "model": item.labels.get("model_version", item.model_uri),
                    }
                )
                for item in live.deployments
            ],
            schema=dg.TableSchema(
                [dg.TableColumn(name) for name in ("version", "role", "traffic", "status", "model")]
            ),
        ),
        "ask it": code_block(
            f"curl -s {live.url}/invocations -H 'Content-Type: application/json' -d '{{\"inputs\": …}}'",
            "bash",
        ),
    }
    for name in ("model_version", "job"):
        if name in labels:
            found[name] = labels[name]
    if (run := labels.get("mlflow_run_id")) is not None:
        found["MLflow run"] = dg.MetadataValue.url(tracking.run_page(run))
    return found


def endpoint_checks(spec: ExperimentSpec) -> dg.AssetChecksDefinition:
    """The checks that ask a live endpoint; they can be run at any time."""

    @dg.multi_asset_check(
        name=f"{spec.name}__endpoint_checks",
        specs=[
            dg.AssetCheckSpec(
                SMOKE, asset=spec.key("endpoint"), description="It answers the model's own input example."
            ),
            dg.AssetCheckSpec(HEALTH, asset=spec.key("endpoint"), description="It is healthy."),
        ],
        can_subset=True,
        required_resource_keys={PROVIDER},
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        wanted = {key.name for key in context.selected_asset_check_keys}
        providers: ProviderResource = getattr(context.resources, PROVIDER)
        with reported(context.log):
            provider = providers.get(served_by(context.instance, spec.config, spec.config.endpoint_name))
            for name in endpoint_names(spec, context.instance):
                with traced(context, f"{spec.name}/endpoint checks", "test"):
                    results = list(_asked(spec, provider, name, wanted))
                yield from results

    return checks


def _asked(
    spec: ExperimentSpec, provider: BaseProvider, name: str, wanted: set[str]
) -> Iterator[dg.AssetCheckResult]:
    """The results of the wanted checks; one that cannot be asked has failed, and says nothing of the other."""
    try:
        live = provider.endpoint(name)
    except NotebookedError as error:
        yield from (_failed(spec, check, str(error)) for check in sorted(wanted))
        return
    if HEALTH in wanted:
        yield health_result(spec, live)
    if SMOKE in wanted:
        try:
            yield smoke_result(spec, live, provider)
        except NotebookedError as error:
            yield _failed(spec, SMOKE, str(error))


def endpoint_names(spec: ExperimentSpec, instance: dg.DagsterInstance) -> list[str]:
    """The endpoint, or the last deployed one of several data sets: a check has one result."""
    if spec.endpoint_partitions is None:
        return [spec.config.endpoint_name]
    event = latest(instance, spec.key("endpoint"))
    partition = event.partition if event is not None else None
    return [spec.endpoint_name(partition)]


def health_result(spec: ExperimentSpec, live: Endpoint) -> dg.AssetCheckResult:
    """Whether the provider says that it is healthy."""
    return dg.AssetCheckResult(
        check_name=HEALTH,
        asset_key=spec.key("endpoint"),
        passed=live.status is EndpointStatus.HEALTHY,
        description=f"{live.name} is {live.status.value}. {live.message}".strip(),
        metadata={"URL": dg.MetadataValue.url(live.url)},
    )


def smoke_result(spec: ExperimentSpec, live: Endpoint, provider: BaseProvider) -> dg.AssetCheckResult:
    """Send the input example of the model that has most of the traffic."""
    example = provider.input_example(live)
    if example is None:
        return dg.AssetCheckResult(
            check_name=SMOKE,
            asset_key=spec.key("endpoint"),
            passed=True,
            severity=dg.AssetCheckSeverity.WARN,
            description="Not asked: the model keeps no input example.",
        )
    import time

    started = time.perf_counter()
    answer = provider.predict(live.name, example)
    took = (time.perf_counter() - started) * 1000
    predictions = answer.get("predictions") if isinstance(answer, dict) else None
    return dg.AssetCheckResult(
        check_name=SMOKE,
        asset_key=spec.key("endpoint"),
        passed=bool(predictions),
        description=f"It answered in {took:.1f} ms." if predictions else "It answered without predictions.",
        metadata={
            "latency (ms)": round(took, 2),
            "request": code_block(json.dumps(example)[:2000], "json"),
            "answer": code_block(json.dumps(answer)[:2000], "json"),
        },
    )


def _failed(spec: ExperimentSpec, check: str, text: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=check, asset_key=spec.key("endpoint"), passed=False, description=text
    )
