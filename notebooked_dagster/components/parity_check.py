"""The check that the script does what the notebook does: both train with one seed, then they are compared."""

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from notebooked_dagster.resources import ProviderResource

from .model_asset import experiment_of
from .reporting import reported
from .spec import PROVIDER, ExperimentSpec


def parity_check(spec: ExperimentSpec) -> dg.AssetChecksDefinition:
    """Runs the notebook's own training beside the script; slow, so it does not block and is run when asked for."""

    @dg.multi_asset_check(
        name=f"{spec.name}__parity",
        specs=[
            dg.AssetCheckSpec(
                "parity",
                asset=spec.key("model"),
                description="The notebook and the script, trained with one seed, agree in metrics and predictions.",
            )
        ],
        required_resource_keys={PROVIDER},
    )
    def parity(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with reported():
            yield compare(spec, context)

    return parity


def compare(spec: ExperimentSpec, context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Train both in a folder of their own and compare."""
    from notebooked_dagster.runbooks.parity import predict_with_model, run_notebook

    settings = spec.config.parity
    providers: ProviderResource = getattr(context.resources, PROVIDER)
    asked = {"data_path": spec.config.data_path, "seed": settings.seed}
    partition = None
    if spec.partitions is not None:
        keys = context.instance.get_materialized_partitions(spec.key("model"))
        partition = max(keys) if keys else None
    experiment = experiment_of(spec, asked, "", partition, run_id=f"{context.run.run_id}/parity")
    # Beside the real models, and gone afterwards: neither MLflow nor the registry hears of it.
    from dataclasses import replace

    experiment = replace(experiment, tracking_uri=None, registered_model=None)
    job = providers.get(spec.config.provider).train(
        experiment, wait=True, on_log=lambda line: print(line, flush=True)
    )
    work = Path(tempfile.mkdtemp(prefix="notebooked-parity-"))
    try:
        ran = run_notebook(
            spec.notebook,
            work,
            hyperparameters=spec.config.hyperparameters,
            data_path=experiment.data_path,
            metrics=tuple(job.metrics),
            model_dir=Path(job.model_uri or ""),
            seed=settings.seed,
            timeout=settings.timeout,
        )
        script = predict_with_model(Path(job.model_uri or ""), timeout=settings.timeout)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    problems, compared = differences(job.metrics, ran.metrics, script, ran.predictions, settings.tolerance)
    if not compared:
        problems.append("the notebook keeps neither a metric nor a model that could be compared")
    return dg.AssetCheckResult(
        check_name="parity",
        asset_key=spec.key("model"),
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(problems) + "." if problems else f"They agree: {', '.join(compared)}.",
        metadata={
            "script": dg.MetadataValue.json(dict(job.metrics)),
            "notebook": dg.MetadataValue.json(dict(ran.metrics)),
            "seed": settings.seed,
            "tolerance": settings.tolerance,
            "notebook time (s)": round(ran.seconds, 2),
        },
    )


def differences(
    script: Mapping[str, float],
    notebook: Mapping[str, float],
    script_predictions: list[Any] | None,
    notebook_predictions: list[Any] | None,
    tolerance: float,
) -> tuple[list[str], list[str]]:
    """What differs, and what was compared."""
    problems, compared = [], []
    for name in sorted(script.keys() & notebook.keys()):
        compared.append(name)
        if not _close(script[name], notebook[name], tolerance):
            problems.append(f"{name}: {notebook[name]:.6g} in the notebook, {script[name]:.6g} in the script")
    if script_predictions is not None and notebook_predictions is not None:
        compared.append("predictions")
        if len(script_predictions) != len(notebook_predictions):
            problems.append(
                f"{len(notebook_predictions)} predictions in the notebook, {len(script_predictions)} in the script"
            )
        elif not all(
            _same(a, b, tolerance) for a, b in zip(script_predictions, notebook_predictions, strict=True)
        ):
            problems.append("predictions of the same input differ")
    return problems, compared


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return _close(a, b, tolerance)
    return bool(a == b)


def _close(a: float, b: float, tolerance: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
