"""The notebook and the scripts: what is observed, and what is generated from it."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import dagster as dg

from notebooked_dagster.resources.code_state import (
    CodeState,
    analysis_options,
    code_state,
    generate_options,
    versions,
)

from .reporting import code_block, findings_table, latest, metadata_value, notebook_preview, reported
from .spec import ExperimentSpec

CODE_VERSION = "1"
_SKEW = "NB301"
_CHANGED_BEFORE = "NB302"


def notebook_asset(spec: ExperimentSpec) -> dg.AssetsDefinition:
    """The observable notebook, with the checks that only read it."""
    checks = [
        dg.AssetCheckSpec(
            "skew",
            asset=spec.key("notebook"),
            description="Inference reads what training leaves, and nothing else.",
        )
    ]
    if spec.config.lint.enabled:
        checks.append(
            dg.AssetCheckSpec(
                "lint",
                asset=spec.key("notebook"),
                description="The audit of the notebook: `notebooked lint`.",
            )
        )

    @dg.multi_observable_source_asset(  # type: ignore[untyped-decorator]
        name=f"{spec.name}__notebook",
        specs=[
            spec.asset(
                "notebook",
                description=spec.description or None,
                metadata=spec.places(),
            )
        ],
        check_specs=checks,
    )
    def notebook(context: dg.AssetExecutionContext) -> Iterator[dg.ObserveResult]:
        with reported(context.log):
            yield observe(spec, context)

    made: dg.AssetsDefinition = notebook
    return made


def observe(spec: ExperimentSpec, context: dg.AssetExecutionContext) -> dg.ObserveResult:
    """Read the notebook, audit it, and report what its code means."""
    from notebooked_dagster.notebook.analysis import analyse
    from notebooked_dagster.notebook.lint import LintConfig, at_least, lint
    from notebooked_dagster.notebook.model import Severity
    from notebooked_dagster.notebook.reader import read_notebook

    state = code_state(spec.notebook, spec.config, spec.place.state)
    notebook = read_notebook(spec.notebook, keep_output_text=spec.config.lint.enabled)
    analysis = analyse(
        notebook,
        analysis_options(spec.config),
    )
    before = context.instance.fetch_observations(spec.key("notebook"), limit=1).records
    stages = metadata_value_of_observation(before[0]) if before else {}
    skew = [finding for finding in analysis.findings if finding.rule == _SKEW]
    before = [finding for finding in analysis.findings if finding.rule == _CHANGED_BEFORE]
    results = [
        dg.AssetCheckResult(
            check_name="skew",
            passed=not skew,
            severity=dg.AssetCheckSeverity.WARN,
            description=" ".join(finding.message for finding in [*skew, *before])
            or "Prediction uses the transformers that training fitted, and nothing that training alone has.",
            metadata={"findings": findings_table([*skew, *before])} if skew or before else {},
        )
    ]
    if spec.config.lint.enabled:
        findings = lint(analysis, LintConfig(ignore=frozenset(spec.config.lint.ignore)))
        bad = [item for item in findings if at_least(item.severity, Severity(spec.config.lint.fail_on))]
        results.append(
            dg.AssetCheckResult(
                check_name="lint",
                passed=not bad,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"{len(findings)} findings, {len(bad)} of them at least {spec.config.lint.fail_on}.",
                metadata={"findings": findings_table(findings)} if findings else {},
            )
        )
    return dg.ObserveResult(
        asset_key=spec.key("notebook"),
        data_version=dg.DataVersion(versions(state, spec.config).notebook),
        metadata={**observation_metadata(spec, state, stages), "preview": notebook_preview(notebook)},
        check_results=results,
    )


def metadata_value_of_observation(record: Any) -> dict[str, str]:
    """The stage hashes an observation kept."""
    observation = record.event_log_entry.asset_observation
    found = observation.metadata.get("stage hashes") if observation is not None else None
    return dict(found.value) if found is not None and isinstance(found.value, dict) else {}


def observation_metadata(spec: ExperimentSpec, state: CodeState, before: dict[str, str]) -> dict[str, Any]:
    """What the UI shows of a look at the notebook."""
    changed = state.changed(before) if before else []
    return {
        **spec.places(),
        "title": state.title,
        "stage hashes": dg.MetadataValue.json(dict(state.stages)),
        "changed stages": (", ".join(changed) or "none") if before else "first look",
        "size": state.stamp[1],
    }


def scripts_asset(spec: ExperimentSpec) -> dg.AssetsDefinition:
    """The generated scripts: two assets of one step, because each half has consequences of its own."""
    deps = [spec.key("notebook")]
    common: dict[str, Any] = {
        "deps": deps,
        "code_version": CODE_VERSION,
        "metadata": {"folder": dg.MetadataValue.path(str(spec.scripts))},
    }

    @dg.multi_asset(
        name=f"{spec.name}__scripts",
        # Both are always written; one alone may be asked for, and then only that one is reported.
        can_subset=True,
        specs=[
            spec.asset(
                "training_code",
                description="`preprocess.py` and `train.py`. Its version changes when what trains the model changes.",
                **common,
            ),
            spec.asset(
                "inference_code",
                description="`inference.py`. Its version changes when what answers predictions changes.",
                **common,
            ),
        ],
        config_schema=_scripts_config(),
    )
    def scripts(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        with reported(context.log):
            yield from generate_scripts(
                spec, context, force=bool(context.op_execution_context.op_config["force"])
            )

    return scripts


@cache
def _scripts_config() -> dict[str, dg.Field]:
    # One for all experiments: Dagster takes half a millisecond to make one.
    force = dg.Field(
        bool,
        default_value=False,
        is_required=False,
        description="Overwrite scripts that were edited by hand.",
    )
    return {"force": force}


def generate_scripts(
    spec: ExperimentSpec, context: dg.AssetExecutionContext, *, force: bool
) -> Iterator[dg.MaterializeResult[Any]]:
    """Generate, write, and report each half with its own version."""
    from notebooked_dagster.codegen import generate, write_scripts
    from notebooked_dagster.notebook.analysis import analyse_path

    config = spec.config
    state = code_state(spec.notebook, config, spec.place.state)
    found = versions(state, config)
    analysis = analyse_path(spec.notebook, analysis_options(config))
    made = generate(analysis, generate_options(config))
    write_scripts(made, spec.scripts, force=force)
    for finding in made.findings:
        context.log.warning("%s %s: %s %s", finding.rule, finding.name, finding.message, finding.fix)
    halves = {
        "training_code": (
            found.training,
            ("train.py", "preprocess.py", "requirements-train.txt", "requirements.txt"),
        ),
        "inference_code": (found.inference, ("inference.py", "requirements-inference.txt")),
    }
    last = latest(context.instance, spec.key("training_code"))
    before = metadata_value(last, "stage hashes") or {}
    changed = state.changed(before) if before else []
    context.log.info(
        "Scripts of %s in %s; %s.",
        config.name,
        spec.scripts,
        f"changed since last time: {', '.join(changed) or 'nothing'}"
        if before
        else "generated for the first time",
    )
    if changed:
        context.instance.add_run_tags(context.run.run_id, {"notebooked/changed": ",".join(changed)})
    for part, (version, names) in halves.items():
        if spec.key(part) not in context.selected_asset_keys:
            continue
        yield dg.MaterializeResult(
            asset_key=spec.key(part),
            data_version=dg.DataVersion(version),
            metadata={
                "folder": dg.MetadataValue.path(str(spec.scripts)),
                "source map": dg.MetadataValue.path(str(spec.scripts / "source_map.json")),
                "stage hashes": dg.MetadataValue.json(dict(state.stages)),
                "changed stages": (", ".join(changed) or "none") if before else "first time",
                "framework": made.framework or "unknown",
                "lines": sum(len(made.files[name].splitlines()) for name in names if name in made.files),
                **({"findings": findings_table(list(made.findings))} if made.findings else {}),
                **{
                    name: code_block(made.files[name], "python" if name.endswith(".py") else "text")
                    for name in names
                    if name in made.files
                },
            },
        )
