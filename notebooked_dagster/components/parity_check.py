"""The check that the script does what the notebook does: both train with one seed, then they are compared."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.resources import PROVIDER, ProviderResource
from notebooked_dagster.resources.code_state import analysis_options, generate_options

from .model_asset import experiment_of
from .reporting import model_copy, reported
from .spec import ExperimentSpec

if TYPE_CHECKING:
    from notebooked_dagster.codegen import GeneratedScripts


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
        with reported(context.log):
            yield compare(spec, context)

    return parity


def compare(spec: ExperimentSpec, context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Train both on the notebook's own data, and compare."""
    from notebooked_dagster.codegen import write_scripts
    from notebooked_dagster.runbooks.parity import run_notebook

    settings = spec.config.parity
    providers: ProviderResource = getattr(context.resources, PROVIDER)
    with tempfile.TemporaryDirectory(prefix="notebooked-parity-") as folder:
        work = Path(folder)
        scripts = generated(spec)
        write_scripts(scripts, work / "scripts")
        asked = {"data_path": None, "seed": settings.seed}
        # Beside the real models: neither MLflow nor the registry hears of it.
        experiment = replace(
            experiment_of(spec, asked, "", None, run_id=f"{context.run.run_id}/parity"),
            scripts=work / "scripts",
            tracking_uri=None,
            registered_model=None,
        )
        job = providers.get(spec.config.provider).train(
            experiment, wait=True, on_log=lambda line: print(REDACTOR.redact(line), flush=True)
        )
        ran = run_notebook(
            spec.notebook,
            work,
            hyperparameters=overrides_by_cell(scripts, spec.config.hyperparameters, settings.seed),
            metrics=tuple(job.metrics),
            model_dir=model_copy(job) or Path(),
            seed=settings.seed,
            timeout=settings.timeout,
        )
    problems, compared = differences(
        job.metrics, ran.metrics, ran.script_predictions, ran.predictions, settings.tolerance
    )
    if not compared:
        problems.append(
            f"nothing could be compared ({ran.problem or 'no metric of a common name, no predictions'})"
        )
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
            **({"predictions": ran.problem} if ran.problem else {}),
        },
    )


def generated(spec: ExperimentSpec) -> "GeneratedScripts":
    """The scripts as the notebook is now."""
    from notebooked_dagster.codegen import generate
    from notebooked_dagster.notebook.analysis import analyse_path

    return generate(analyse_path(spec.notebook, analysis_options(spec.config)), generate_options(spec.config))


def overrides_by_cell(
    scripts: "GeneratedScripts", hyperparameters: Mapping[str, Any], seed: int
) -> dict[int, dict[str, Any]]:
    """What the script sets otherwise than the notebook, by the cell that assigns it there."""
    wanted = {**hyperparameters, "seed": seed}
    found: dict[int, dict[str, Any]] = {}
    for item in scripts.hyperparameters:
        if item.name in wanted:
            found.setdefault(item.cell, {})[item.name] = wanted[item.name]
    return found


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
