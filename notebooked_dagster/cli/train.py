"""``notebooked train`` and ``notebooked deploy``: through Dagster, so that what they do shows in its UI."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from notebooked_dagster.errors import ConfigError, ProviderError

from .options import session, shared_options
from .project import Project, chosen_partition, run_assets, stale_code, trains_otherwise
from .text import metrics_text

if TYPE_CHECKING:
    import dagster as dg

    from notebooked_dagster.components.spec import ExperimentSpec


@click.command("train")
@click.argument("experiment")
@click.option("--provider", help="Where to train; the declaration's where not given.")
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Run here, or hand the run to the daemon."
)
@click.option(
    "--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A hyperparameter; may be repeated."
)
@click.option("--data-path", help="File or folder with the data.")
@click.option("--seed", type=int, help="Seed of the random numbers.")
@click.option(
    "--only-if-changed", is_flag=True, help="Keep the last model where nothing that trains it has changed."
)
@click.option("--partition", help="Which one, where the experiment is made by partition.")
@shared_options
def train_command(
    experiment: str,
    provider: str | None,
    wait: bool,
    assignments: tuple[str, ...],
    data_path: str | None,
    seed: int | None,
    only_if_changed: bool,
    partition: str | None,
) -> None:
    """Generate an experiment's scripts and train its model."""
    project = Project(session())
    spec = project.experiment(experiment)
    partition = chosen_partition(partition, spec.partitions, spec.config.name)
    given = {"provider": provider, "data_path": data_path, "seed": seed}
    config: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if assignments:
        config["hyperparameters"] = dict(_assignment(text) for text in assignments)
    if only_if_changed:
        config["only_if_changed"] = True
    ops = {f"{spec.name}__model": config}
    job = f"{spec.name}_train_job"
    if not wait:
        _submit(project, job, ops, partition)
        return
    session().note(f"Training {spec.config.name} …")
    run_id = run_assets(project, job, ops, partition=partition)
    with project.instance() as instance:
        submitted = _submitted(spec, instance, run_id, partition)
        facts = _facts(spec, instance, "model", partition) if submitted is None else submitted
    data = {"run_id": run_id, "experiment": spec.config.name, **facts}
    session().emit(data, lambda: _trained(data, submitted is not None))


def _submitted(
    spec: ExperimentSpec, instance: dg.DagsterInstance, run_id: str, partition: str | None
) -> dict[str, Any] | None:
    """The job of a run that did not wait for it (`wait: false`); None where there is a model."""
    from notebooked_dagster.components.submission import submission_of

    found = submission_of(instance, run_id, spec.name, partition)
    return {"submitted": True, "job": found.job_id, "provider": found.provider} if found is not None else None


def _trained(data: dict[str, Any], submitted: bool) -> str:
    name, run = data["experiment"], f"run    {data['run_id']}"
    if submitted:
        said = f"{name}: submitted to {data['provider']}; the sensor training_jobs makes the model when it has ended."
        return f"{said}\njob    {data['job']} (`notebooked logs {data['job']}`)\n{run}"
    said = metrics_text(data.get("metrics")) or "trained"
    if data.get("kept"):
        said = f"nothing that trains it has changed; its model is kept ({said})"
    return f"{name}: {said}\nmodel  {data.get('model_uri')}\n{run}"


@click.command("deploy")
@click.argument("experiment")
@click.option("--model-uri", help="Another model than the newest: a folder, models:/name@alias, runs:/id.")
@click.option(
    "--weight", type=click.IntRange(1, 100), help="Percent of the traffic; below 100 it is the challenger."
)
@click.option("--partition", help="Which one, where each has an endpoint.")
@shared_options
def deploy_command(experiment: str, model_uri: str | None, weight: int | None, partition: str | None) -> None:
    """Deploy an experiment's newest model; traffic moves when it is healthy.

    Where only the notebook's inference code has changed since, it is generated anew first and served with the model.
    """
    from notebooked_dagster.components.endpoint_asset import WORSE
    from notebooked_dagster.components.reporting import latest, metadata_value

    project = Project(session())
    spec = project.experiment(experiment)
    if not spec.config.endpoint.enabled:
        raise ConfigError(
            "This experiment declares that it has no endpoint.",
            path=spec.declared_in,
            key="endpoint.enabled",
            hint="Set it to true.",
        )
    partition = chosen_partition(partition, spec.endpoint_partitions, spec.config.name)
    given = {"model_uri": model_uri, "weight": weight}
    config = {name: value for name, value in given.items() if value is not None}
    automatic = spec.config.endpoint.auto_deploy
    # An endpoint that nothing deploys by itself is in no job of ours, but in Dagster's own of all assets.
    job = f"{spec.name}_job" if automatic else "__ASSET_JOB"
    wanted = ["endpoint"] if model_uri is not None else _with_stale_code(project, spec, partition)
    session().note(f"Deploying {spec.config.name} …")
    ops = {f"{spec.name}__endpoint": config}
    run_id = run_assets(project, job, ops, [spec.key(part) for part in wanted], partition)
    with project.instance() as instance:
        made = latest(instance, spec.key("endpoint"), partition)
    provider = project.provider(metadata_value(made, "provider") or spec.config.provider)
    live = provider.endpoint(spec.endpoint_name(partition))
    worse = metadata_value(made, WORSE)
    takes = example_columns(provider.input_example(live))
    data = {
        "run_id": run_id,
        "endpoint": live.name,
        "url": live.url,
        "status": live.status.value,
        "takes": takes,
        "worse": worse,
    }

    def text() -> str:
        lines = [f"{live.name} serves at {live.url} ({live.status.value})."]
        if worse:
            lines.append(f"worse  {worse}; `metric_gate` in {spec.declared_in.name} would stop that")
        if takes:
            # What the notebook did to its data before the model saw it is not done to a request.
            lines.append(f"takes  {', '.join(takes)} (`notebooked predict {live.name}` sends an example)")
        return "\n".join([*lines, f"run    {run_id}"])

    session().emit(data, text)


def example_columns(example: Any) -> list[str]:
    """The columns that an input example names; empty where it names none."""
    if not isinstance(example, dict):
        return []
    rows = example.get("dataframe_records") or example.get("inputs") or example.get("instances")
    if isinstance(example.get("dataframe_split"), dict):
        return [str(name) for name in example["dataframe_split"].get("columns") or ()]
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        return [str(name) for name in rows[0]]
    return [str(name) for name in rows] if isinstance(rows, dict) else []


def _with_stale_code(project: Project, spec: ExperimentSpec, partition: str | None) -> list[str]:
    """What deploying has to make: inference code that the notebook has newer, but nothing of another training."""
    with project.instance() as instance:
        stale = stale_code(project, spec, instance)
        if not stale:
            return ["endpoint"]
        outdated = trains_otherwise(project, spec, instance, partition)
    if outdated:
        session().note(
            f"{spec.config.name}: the notebook has changed since its model was trained; the model there is gets deployed. "
            f"`notebooked train {spec.config.name}` trains what the notebook says now."
        )
        return ["endpoint"]
    return ["inference_code", "endpoint"] if "inference_code" in stale else ["endpoint"]


def _assignment(text: str) -> tuple[str, Any]:
    """``name=value`` with the value as JSON where it is JSON, else as text."""
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise click.UsageError(f"--set takes NAME=VALUE, not {text!r}.")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), {"None": None, "True": True, "False": False}.get(value, value)


def _facts(
    spec: ExperimentSpec, instance: dg.DagsterInstance, part: str, partition: str | None
) -> dict[str, Any]:
    """What the last materialization of an asset says of itself."""
    from notebooked_dagster.components.reporting import latest

    found = latest(instance, spec.key(part), partition)
    wanted = ("model_uri", "job", "metrics", "mlflow_run_id", "model_version", "kept")
    metadata = found.metadata if found is not None else {}
    return {name: metadata[name].value for name in wanted if name in metadata}


def _location(project: Project) -> list[str]:
    """Where the run's code is, in the words the daemon knows it by: a run of another location's name is never started."""
    import yaml

    path = project.place.root / "workspace.yaml"
    module = "notebooked_dagster.definitions"
    if not path.exists():
        return ["-m", module]
    try:
        entries = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("load_from") or []
    except (yaml.YAMLError, AttributeError) as problem:
        raise ConfigError(f"It cannot be read: {problem}.", path=path, hint="Correct the file.") from problem
    for entry in entries:
        found = entry.get("python_module") if isinstance(entry, dict) else None
        if found == module:
            return ["-w", str(path), "-l", module]
        if isinstance(found, dict) and found.get("module_name") == module:
            return ["-w", str(path), "-l", found.get("location_name") or module]
    return ["-w", str(path)]


def _submit(project: Project, job: str, ops: dict[str, dict[str, Any]], partition: str | None) -> None:
    """Hand a run to the instance, as ``dagster job launch`` does; the daemon starts it."""
    run_id = str(uuid.uuid4())
    config = {"ops": {name: {"config": values} for name, values in ops.items() if values}}
    command = [str(Path(sys.executable).with_name("dagster")), "job", "launch", *_location(project)]
    command += ["-j", job, "--run-id", run_id]
    if partition is not None:
        command += ["--tags", json.dumps({"dagster/partition": partition})]
    with project.instance(), tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        # JSON is YAML.
        json.dump(config if config["ops"] else {}, file)
        file.flush()
        finished = subprocess.run([*command, "-c", file.name], capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise ProviderError(
            "The run was not taken.",
            hint="`dagster definitions validate -w workspace.yaml` says whether the code location loads.",
            details={"output": (finished.stdout + finished.stderr)[-4000:]},
        )
    session().emit(
        {"run_id": run_id, "job": job, "submitted": True},
        lambda: (
            f"Submitted {job} as run {run_id}. The daemon starts it; `make ui` or `dagster dev` runs one."
        ),
    )
