"""The model: a provider trains it, and its metric gate decides whether it may be deployed."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from notebooked_dagster.config import MetricGate
from notebooked_dagster.core.logs import about
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.errors import CapabilityError, ConfigError, JobNotFoundError, UserError
from notebooked_dagster.providers.base import BaseProvider, Capability, Experiment, JobStatus, TrainingJob
from notebooked_dagster.resources import ProviderResource, TrackingResource
from notebooked_dagster.resources.code_state import code_state, versions

from .reporting import folder_size, latest, metadata_value, metric_metadata, plots, reported
from .spec import PROVIDER, TRACKING, ExperimentSpec

GATE = "metric_gate"
_SEED = dg.Field(
    dg.Noneable(int), default_value=None, is_required=False, description="Of the random numbers."
)
FINGERPRINT = "training fingerprint"
SUBMITTED = "submitted job"
# Tags of a run whose jobs nobody waits for: whether there are any, and each by its experiment.
OPEN = "notebooked/open_jobs"
OPEN_JOB = "notebooked/job/"


def model_asset(spec: ExperimentSpec) -> dg.AssetsDefinition:
    """The trained model."""
    config = spec.config
    checks = []
    if config.metric_gate:
        checks.append(
            dg.AssetCheckSpec(
                GATE,
                asset=spec.key("model"),
                blocking=True,
                description="; ".join(gate_text(gate) for gate in config.metric_gate),
            )
        )

    @dg.multi_asset(
        name=f"{spec.name}__model",
        specs=[
            spec.asset(
                "model",
                deps=[spec.key("training_code")],
                description=f"What `train.py` leaves, trained by the provider `{config.provider}`.",
                automation_condition=spec.automation(latest_only=True),
                partitions_def=spec.partitions,
            )
        ],
        check_specs=checks,
        # The gate alone judges the model there is; and without a model there is nothing to judge yet.
        can_subset=True,
        config_schema=run_config(spec),
        required_resource_keys={PROVIDER, TRACKING},
        retry_policy=dg.RetryPolicy(max_retries=config.retries, delay=5) if config.retries else None,
    )
    def model(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        with reported(), about(run=context.run.run_id, asset=f"{spec.name}/model"):
            if spec.key("model") in context.selected_asset_keys:
                made = train(spec, context)
                if made is not None:
                    yield made
            else:
                yield judged_again(spec, context)

    return model


def judged_again(spec: ExperimentSpec, context: dg.AssetExecutionContext) -> dg.AssetCheckResult:
    """The gate's verdict on the newest model, without training."""
    partition = context.partition_key if context.has_partition_key else None
    newest = latest(context.instance, spec.key("model"), partition)
    if newest is None:
        raise UserError(
            f"There is no model of {spec.name} yet.", hint=f"Materialize {spec.name}/model first."
        )
    providers: ProviderResource = getattr(context.resources, PROVIDER)
    provider = providers.get(metadata_value(newest, "provider") or spec.config.provider)
    return gate_result(
        spec, metadata_value(newest, "metrics") or {}, champion_metrics(spec, provider, partition)
    )


def run_config(spec: ExperimentSpec) -> dict[str, Any]:
    """What the Launchpad offers, with the declaration's values as defaults."""
    config = spec.config
    return {
        "hyperparameters": dg.Field(
            dg.Permissive({name: _field(value) for name, value in config.hyperparameters.items()}),  # type: ignore[no-untyped-call]
            # Without a default for the whole, the Launchpad would not show what is in it.
            default_value=dict(config.hyperparameters),
            is_required=False,
            description="By name; those of the notebook that are not listed may be added.",
        ),
        "data_path": dg.Field(
            dg.Noneable(str),
            default_value=config.data_path,
            is_required=False,
            description="File, folder or URI.",
        ),
        "provider": dg.Field(
            str,
            default_value=config.provider,
            is_required=False,
            description="Where it trains and is served.",
        ),
        "seed": _SEED,
        "wait": dg.Field(
            bool,
            default_value=config.wait,
            is_required=False,
            description="Stay until training has ended; else the sensor `training_jobs` makes the model when it has.",
        ),
        "only_if_changed": dg.Field(
            bool,
            default_value=False,
            is_required=False,
            description="Keep the last model where code, hyperparameters and data are what it was trained with.",
        ),
    }


def _field(value: Any) -> dg.Field:
    kinds: dict[type, Any] = {bool: bool, int: int, float: float, str: str}
    return dg.Field(kinds.get(type(value), dg.Any), default_value=value, is_required=False)


def train(spec: ExperimentSpec, context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any] | None:
    """Train, and describe what came of it; None where the job was only submitted."""
    asked: Mapping[str, Any] = context.op_execution_context.op_config
    partition = context.partition_key if context.has_partition_key else None
    providers: ProviderResource = getattr(context.resources, PROVIDER)
    tracking: TrackingResource = getattr(context.resources, TRACKING)
    provider = providers.get(asked["provider"])
    experiment = experiment_of(
        spec, asked, tracking.address, partition, run_id=context.run.run_id, attempt=context.retry_number
    )
    experiment = _taken_up(context, provider, experiment)
    fingerprint = training_fingerprint(spec, experiment, asked["provider"])
    if asked["only_if_changed"]:
        kept = _kept(spec, context.instance, provider, fingerprint, partition)
        if kept is not None:
            context.log.info("Nothing that trains %s has changed; its last model is kept.", experiment.name)
            return _again(spec, context, kept, provider, partition)
    context.log.info("Training %s with provider %s.", experiment.name, provider.name)
    if not asked["wait"]:
        if Capability.TRAIN_NO_WAIT not in provider.capabilities:
            raise CapabilityError(
                f"Provider {provider.name!r} cannot train without somebody waiting.",
                key="wait",
                hint="Set `wait: true`.",
            )
        job = provider.train(experiment, wait=False)
        facts = {**lineage(spec, context, experiment), FINGERPRINT: fingerprint}
        context.log_event(submission(spec, job, partition, context.run.run_id, facts))
        mark_open(context, spec, job, partition)
        context.log.info("Submitted %s; the sensor training_jobs makes the model when it has ended.", job.id)
        return None
    # The lines go to the step's captured output; an event for each would fill the event log.
    job = provider.train(experiment, wait=True, on_log=lambda line: print(REDACTOR.redact(line), flush=True))
    context.log.info(
        "Trained: %s.", ", ".join(f"{name} = {value:.6g}" for name, value in job.metrics.items()) or job.id
    )
    page = tracking.run_page(job.mlflow_run_id) if job.mlflow_run_id else None
    return dg.MaterializeResult(
        asset_key=spec.key("model"),
        data_version=dg.DataVersion(job.id),
        metadata={
            **model_metadata(job, page),
            **lineage(spec, context, experiment),
            FINGERPRINT: fingerprint,
        },
        check_results=_verdicts(spec, context, job.metrics, provider, partition),
    )


def _taken_up(
    context: dg.AssetExecutionContext, provider: BaseProvider, experiment: Experiment
) -> Experiment:
    """Where an earlier attempt of this step left a job that runs (its process died, the network went), go on with that one.

    A job of an earlier attempt that succeeded is taken as it is, too; of the run that this one repeats only one that runs:
    who repeats a run that has ended wants to train again.
    """
    run, rest = context.run, str(experiment.idempotency_token).partition("/")[2].rpartition("/")[0]
    earlier = [(run.run_id, number) for number in range(context.retry_number - 1, -1, -1)]
    if run.parent_run_id is not None:
        earlier.append((run.parent_run_id, 0))
    for run_id, number in earlier:
        token = f"{run_id}/{rest}/{number}"
        job = provider.job_of(experiment.name, token)
        if job is None or (
            job.status.finished and (run_id != run.run_id or job.status is not JobStatus.SUCCEEDED)
        ):
            continue
        context.log.info("Job %s of an earlier attempt is %s; it is taken up.", job.id, job.status.value)
        return dataclasses.replace(experiment, idempotency_token=token)
    return experiment


def mark_open(
    context: dg.AssetExecutionContext, spec: ExperimentSpec, job: TrainingJob, partition: str | None
) -> None:
    """Let the sensor ``training_jobs`` find a job."""
    name = f"{OPEN_JOB}{spec.name}" + (f"/{partition}" if partition is not None else "")
    context.instance.add_run_tags(context.run.run_id, {OPEN: "true", name: f"{job.provider}/{job.id}"})


def submission(
    spec: ExperimentSpec, job: TrainingJob, partition: str | None, run_id: str, facts: Mapping[str, Any]
) -> dg.AssetObservation:
    """What a run that does not wait leaves behind: which job the sensor is to look at, and what it was made from."""
    return dg.AssetObservation(
        spec.key("model"),
        description="Training was submitted; nobody waits for it.",
        partition=partition,
        metadata={**facts, SUBMITTED: job.id, "provider": job.provider, "run": run_id},
    )


def training_fingerprint(spec: ExperimentSpec, experiment: Experiment, provider: str) -> str:
    """A digest of all that decides what training yields: code, hyperparameters, data, provider."""
    code = versions(code_state(spec.notebook, spec.config, spec.place.state), spec.config).training
    data = lineage_of_data(experiment.data_path)
    parts = [code, sorted(experiment.hyperparameters.items()), data, provider, experiment.instance_type]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:24]


def lineage_of_data(path: str | None) -> str | None:
    """The hash of local data; the address itself of data elsewhere, whose changes cannot be seen from here."""
    if path is None or "://" in path or not Path(path).exists():
        return path
    from notebooked_dagster.tracking.lineage import data_hash

    return data_hash(Path(path))


def _kept(
    spec: ExperimentSpec,
    instance: dg.DagsterInstance,
    provider: BaseProvider,
    fingerprint: str,
    partition: str | None,
) -> dg.AssetMaterialization | None:
    """The last model, where it was trained from the same and is still there."""
    last = latest(instance, spec.key("model"), partition)
    if last is None or metadata_value(last, FINGERPRINT) != fingerprint:
        return None
    try:
        job = provider.status(str(metadata_value(last, "job")))
    except JobNotFoundError:
        return None
    uri = job.model_uri or ""
    return last if job.status is JobStatus.SUCCEEDED and ("://" in uri or Path(uri).is_dir()) else None


def _again(
    spec: ExperimentSpec,
    context: dg.AssetExecutionContext,
    kept: dg.AssetMaterialization,
    provider: BaseProvider,
    partition: str | None,
) -> dg.MaterializeResult[Any]:
    """The same model once more: same data version, so that nothing downstream becomes stale."""
    metrics = metadata_value(kept, "metrics") or {}
    return dg.MaterializeResult(
        asset_key=spec.key("model"),
        data_version=dg.DataVersion(str(metadata_value(kept, "job"))),
        metadata={**kept.metadata, "kept": True},
        check_results=_verdicts(spec, context, metrics, provider, partition),
    )


def _verdicts(
    spec: ExperimentSpec,
    context: dg.AssetExecutionContext,
    metrics: Mapping[str, float],
    provider: BaseProvider,
    partition: str | None,
) -> list[dg.AssetCheckResult]:
    """The gate's verdict, where there is a gate and the run is to ask it."""
    if GATE not in {key.name for key in context.selected_asset_check_keys}:
        return []
    return [gate_result(spec, metrics, champion_metrics(spec, provider, partition))]


def experiment_of(
    spec: ExperimentSpec,
    asked: Mapping[str, Any],
    tracking_uri: str,
    partition: str | None,
    *,
    run_id: str,
    attempt: int = 0,
) -> Experiment:
    """What the provider is handed."""
    config = spec.config
    data_path = asked.get("data_path")
    if data_path is not None and partition is not None:
        data_path = data_path.replace("{partition}", partition)
    elif data_path is not None and "{partition}" in data_path:
        raise ConfigError(
            "The data path needs a partition.",
            key="data_path",
            hint="Choose one in the UI or with --partition.",
        )
    if data_path is not None and "://" not in data_path:
        data_path = str(spec.place.root / Path(data_path).expanduser())
    # Declared values are the scripts' own defaults already; naming them again shows them in MLflow and the log.
    values = {**config.hyperparameters, **asked.get("hyperparameters", {})}
    if asked.get("seed") is not None:
        values["seed"] = asked["seed"]
    attempt_of = f"{run_id}/{spec.name}/{partition or ''}/{attempt}"
    return Experiment(
        name=config.name,
        scripts=spec.scripts,
        hyperparameters=values,
        data_path=data_path,
        notebook=spec.notebook,
        instance_type=config.instance_type,
        instance_count=config.instance_count,
        options=config.options,
        environment={**config.environment, **(spec.place.tracking_environment if config.tracking else {})},
        own_environment=config.own_environment,
        timeout=config.timeout,
        memory_limit=config.memory_limit,
        tags={
            "dagster_run": run_id,
            "experiment": spec.name,
            **({"partition": partition} if partition else {}),
        },
        tracking_uri=tracking_uri if config.tracking else None,
        autolog=config.autolog if config.tracking else False,
        registered_model=config.model_registry_name,
        idempotency_token=attempt_of,
    )


def model_metadata(job: TrainingJob, page: str | None) -> dict[str, Any]:
    """What the UI shows of a trained model."""
    found: dict[str, Any] = {
        "model_uri": job.model_uri or "",
        "job": job.id,
        "provider": job.provider,
        **metric_metadata(job.metrics),
        "metrics": dg.MetadataValue.json(dict(job.metrics)),
    }
    if job.started_at is not None and job.finished_at is not None:
        found["training time (s)"] = round((job.finished_at - job.started_at).total_seconds(), 3)
    if job.mlflow_run_id is not None:
        found["mlflow_run_id"] = job.mlflow_run_id
    if page is not None:
        found["MLflow run"] = dg.MetadataValue.url(page)
    if job.model_version is not None:
        found["model_version"] = job.model_version
    if job.log is not None:
        found["log"] = dg.MetadataValue.path(job.log)
    for name, value in job.facts.items():
        is_page = isinstance(value, str) and value.startswith("https://")
        found[name] = dg.MetadataValue.url(str(value)) if is_page else value
    # Where the model is elsewhere, a copy may lie beside the job's log.
    if job.model_uri is not None and "://" not in job.model_uri:
        folder: Path | None = Path(job.model_uri)
    else:
        folder = Path(job.log).parent / "model" if job.log is not None else None
    if folder is not None and folder.is_dir():
        found["size (bytes)"] = folder_size(folder)
        found.update(_described(folder / "model.json"))
        found.update(plots(folder.parent / "output"))
    return found


def _described(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found: dict[str, Any] = {}
    for name in ("framework", "model_class"):
        if isinstance(document.get(name), str):
            found[name] = document[name]
    for name in ("signature", "hyperparameters", "packages"):
        if isinstance(document.get(name), dict):
            found[name] = dg.MetadataValue.json(document[name])
    return found


def lineage(
    spec: ExperimentSpec, context: dg.AssetExecutionContext, experiment: Experiment
) -> dict[str, Any]:
    """Where the model came from, for people: the code, the data, the notebook."""
    code = latest(context.instance, spec.key("training_code"))
    found: dict[str, Any] = {
        "notebook": dg.MetadataValue.path(str(spec.notebook)),
        "scripts": dg.MetadataValue.path(str(spec.scripts)),
        "stage hashes": dg.MetadataValue.json(metadata_value(code, "stage hashes") or {}),
        "changed stages": metadata_value(code, "changed stages") or "unknown",
    }
    if experiment.data_path is not None:
        found["data"] = dg.MetadataValue.path(experiment.data_path)
    return found


# The gate


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
    problems = []
    if gate.min is not None and not value >= gate.min:
        problems.append(f"{gate.metric} = {value:.6g} is below {gate.min:g}")
    if gate.max is not None and not value <= gate.max:
        problems.append(f"{gate.metric} = {value:.6g} is above {gate.max:g}")
    before = champion.get(gate.metric) if champion is not None else None
    if gate.better_than is not None and before is not None:
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
    """The metrics of what the endpoint serves now; None where nothing is served or nothing is known of it."""
    if not any(gate.better_than for gate in spec.config.metric_gate):
        return None
    from notebooked_dagster.errors import EndpointNotFoundError

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
