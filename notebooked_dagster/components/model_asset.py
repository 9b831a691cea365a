"""The model: a provider trains it, and its metric gate decides whether it may be deployed."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from notebooked_dagster.core.logs import about
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.errors import ConfigError, JobNotFoundError, NotebookedError, UserError
from notebooked_dagster.providers.base import BaseProvider, Experiment, JobStatus, TrainingJob
from notebooked_dagster.providers.registry import same_provider
from notebooked_dagster.resources import PROVIDER, TRACKING, ProviderResource, TrackingResource

from .gate import GATE, champion_metrics, gate_result, gate_text
from .pipes import Told, check_specs, context_data, reports, silent, told_by
from .reporting import folder_size, latest, metadata_value, metric_metadata, model_copy, plots, reported
from .spec import ExperimentSpec
from .submission import FINGERPRINT, submit, taken_up
from .traced import traced

_SEED = dg.Field(
    dg.Noneable(int), default_value=None, is_required=False, description="Of the random numbers."
)


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
                # Each partition has a model, and each model a verdict.
                partitions_def=spec.partitions,
            )
        )
    checks.extend(check_specs(spec))

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
        with reported(context.log), about(run=context.run.run_id, asset=f"{spec.name}/model"):
            if spec.key("model") in context.selected_asset_keys:
                with traced(context, f"{spec.name}/model", "build"):
                    made = train(spec, context)
                if made is not None:
                    yield made
            else:
                yield from judged_again(spec, context)

    return model


def judged_again(spec: ExperimentSpec, context: dg.AssetExecutionContext) -> Iterator[dg.AssetCheckResult]:
    """The gate's verdict on the newest model, and what its training reported, without training."""
    partition = context.partition_key if context.has_partition_key else None
    newest = latest(context.instance, spec.key("model"), partition)
    if newest is None:
        raise UserError(
            f"There is no model of {spec.name} yet.",
            hint=f"Materialize {spec.name}/model first: `notebooked train {spec.config.name}`.",
        )
    providers: ProviderResource = getattr(context.resources, PROVIDER)
    provider = providers.get(metadata_value(newest, "provider") or spec.config.provider)
    metrics, job_id = metadata_value(newest, "metrics") or {}, str(metadata_value(newest, "job"))
    asked = {key.name for key in context.selected_asset_check_keys}
    told = told_by(spec, provider, job_id, silent) if asked - {GATE} else None
    yield from _verdicts(spec, context, metrics, provider, partition, told)


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
    experiment = taken_up(context, provider, experiment, attempts=spec.config.retries + 1)
    fingerprint = training_fingerprint(spec, experiment, asked["provider"])
    if asked["only_if_changed"]:
        kept = _kept(spec, context.instance, provider, fingerprint, partition)
        if kept is not None:
            context.log.info("Nothing that trains %s has changed; its last model is kept.", experiment.name)
            return _again(spec, context, kept, provider, partition)
    context.log.info("Training %s with provider %s.", experiment.name, provider.name)
    told: Told | None = None
    if reports(spec, provider):
        told = Told(spec, context.log.log)
        experiment = replace(experiment, pipes=context_data(context, experiment, provider.name))
    elif spec.config.pipes.enabled:
        context.log.info("Jobs of provider %s do not report by Dagster Pipes.", provider.name)
    if not asked["wait"]:
        submit(
            spec,
            context,
            provider,
            experiment,
            partition,
            {
                **lineage(spec, context, experiment),
                FINGERPRINT: fingerprint,
            },
        )
        return None
    # The lines go to the step's captured output; an event for each would fill the event log.
    try:
        job = provider.train(
            experiment,
            wait=True,
            on_log=lambda line: print(REDACTOR.redact(line), flush=True),
            **({"on_message": told.take} if told is not None else {}),
        )
    except NotebookedError:
        if told is not None:
            told.say_checks()
        raise
    context.log.info(
        "Trained: %s.", ", ".join(f"{name} = {value:.6g}" for name, value in job.metrics.items()) or job.id
    )
    page = tracking.run_page(job.mlflow_run_id) if job.mlflow_run_id else None
    return dg.MaterializeResult(
        asset_key=spec.key("model"),
        data_version=dg.DataVersion(job.id),
        metadata={
            **(told.metadata if told is not None else {}),
            **model_metadata(job, page),
            **lineage(spec, context, experiment),
            FINGERPRINT: fingerprint,
        },
        check_results=_verdicts(spec, context, job.metrics, provider, partition, told),
    )


def training_fingerprint(spec: ExperimentSpec, experiment: Experiment, provider: str) -> str:
    """A digest of all that decides what training yields: code, hyperparameters, data, provider."""
    from notebooked_dagster.codegen.digest import training_digest

    # Of the scripts that train, and not of the notebook: they may be older than it, or edited by hand.
    code = training_digest(experiment.scripts)
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
    told = told_by(spec, provider, str(metadata_value(kept, "job")), silent)
    return dg.MaterializeResult(
        asset_key=spec.key("model"),
        data_version=dg.DataVersion(str(metadata_value(kept, "job"))),
        metadata={**kept.metadata, "kept": True},
        check_results=_verdicts(spec, context, metrics, provider, partition, told),
    )


def _verdicts(
    spec: ExperimentSpec,
    context: dg.AssetExecutionContext,
    metrics: Mapping[str, float],
    provider: BaseProvider,
    partition: str | None,
    told: Told | None,
) -> list[dg.AssetCheckResult]:
    """The gate's verdict, and those that the training reported, where the run is to ask for them."""
    asked = {key.name for key in context.selected_asset_check_keys}
    found = told.checks(asked) if told is not None else []
    if GATE in asked:
        found.append(gate_result(spec, metrics, champion_metrics(spec, provider, partition)))
    return found


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
        # They are the declared provider's; another that a run names has none.
        options=config.options if same_provider(asked.get("provider"), config.provider) else {},
        environment=config.environment,
        tracking_credentials=spec.place.tracking_environment if config.tracking else {},
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
        found["trained"] = dg.MetadataValue.timestamp(job.finished_at)
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
    folder = model_copy(job)
    if folder is not None:
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
