"""The project that a command works on: its experiments, its Dagster instance, its providers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from notebooked_dagster import errors
from notebooked_dagster.core import logs
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.core.secrets import load_dotenv
from notebooked_dagster.errors import ConfigError, NotebookedError, ProviderError, UserError

from .options import Session, session

if TYPE_CHECKING:
    import dagster as dg

    from notebooked_dagster.components.spec import ExperimentSpec
    from notebooked_dagster.notebook.analysis import AnalysisOptions
    from notebooked_dagster.providers.base import BaseProvider
    from notebooked_dagster.resources import Workplace
    from notebooked_dagster.resources.code_state import Versions

T = TypeVar("T")


def experiment_meant(told: Path) -> ExperimentSpec | None:
    """The experiment that an argument names; None where it is a path. Raises ConfigError where it can be neither."""
    if told.exists() or told.suffix or len(told.parts) != 1:
        return None
    # Other paths of the command are relative to where it was called.
    with contextlib.chdir(Path.cwd()):
        return Project(session()).experiment(str(told))


def notebook_meant(told: Path, options: AnalysisOptions) -> tuple[Path, AnalysisOptions]:
    """A notebook, or an experiment's, and how to read it. Raises ConfigError where there is no such experiment."""
    spec = experiment_meant(told)
    return (told, options) if spec is None else (shown_path(spec.notebook), declared_options(spec, options))


def declared_options(spec: ExperimentSpec, options: AnalysisOptions) -> AnalysisOptions:
    """How an experiment's notebook is read: as its declaration says, unless the command names the model."""
    from notebooked_dagster.resources.code_state import analysis_options

    declared = analysis_options(spec.config)
    return dataclasses.replace(declared, model_name=options.model_name or declared.model_name)


def shown_path(path: Path) -> Path:
    """A path as short as it can be from where the command was called."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


class Project:
    """A project, opened for one command.

    Args:
        session: The invocation; its ``--project`` decides where.
    """

    def __init__(self, session: Session) -> None:
        from notebooked_dagster.resources import Workplace

        self.session = session
        settings = session.settings()
        self._called_in = Path.cwd()
        # dagster.yaml keeps its storage relative to the working folder, and runs read the project from the environment.
        os.chdir(settings.root)
        os.environ["NOTEBOOKED_PROJECT_ROOT"] = str(settings.root)
        load_dotenv(settings.root)
        REDACTOR.add_environment(os.environ)
        logs.configure(level=(logging.WARNING, logging.INFO, logging.DEBUG)[min(session.verbose, 2)])
        if "DAGSTER_HOME" not in os.environ and (settings.root / "dagster.yaml").exists():
            os.environ["DAGSTER_HOME"] = str(settings.root)
        self.place: Workplace = Workplace.here()

    def experiments(self) -> list[ExperimentSpec]:
        """All that are declared. Raises ConfigError where a declaration is wrong."""
        from notebooked_dagster.definitions import project_experiments

        return project_experiments(self.place)

    def experiment(self, name: str) -> ExperimentSpec:
        """One experiment by its name, or by its notebook where it has that for itself. Raises ConfigError."""
        found = self.experiments()
        for spec in found:
            if name in (spec.name, spec.config.name):
                return spec
        file = (self._called_in / name).resolve()
        of_file = [spec for spec in found if spec.notebook.resolve() == file]
        if len(of_file) == 1:
            return of_file[0]
        names = [spec.config.name for spec in found]
        near = get_close_matches(name, names, 1)
        raise ConfigError(
            f"There is no experiment {name!r}.",
            path=self.place.settings.assets,
            hint=f"Did you mean {near[0]}?"
            if near
            else f"There are: {', '.join(names)}."
            if names
            else "`notebooked init` makes declarations for the notebooks of a folder.",
        )

    def provider(self, name: str = "local") -> BaseProvider:
        """A provider with the project's settings."""
        return self.place.provider(name)

    def providers(self, name: str | None = None) -> list[BaseProvider]:
        """The provider of a name; where None, those that the project's experiments use, ``local`` always among them."""
        if name is not None:
            return [self.provider(name)]
        from notebooked_dagster.providers.registry import canonical

        specs = self.experiments()
        used = {
            canonical(found) for found in (*(spec.config.provider for spec in specs), *self._recorded(specs))
        }
        return [self.provider(found) for found in ["local", *sorted(used - {"local"})]]

    def provider_of_endpoint(self, endpoint: str, name: str | None = None) -> BaseProvider:
        """The provider that was named, or that of the experiment which declares the endpoint, or ``local``."""
        if name is None:
            declared = (spec for spec in self.experiments() if endpoint in spec.config.endpoint_names)
            spec = next(declared, None)
            name = self._serving(spec, endpoint) if spec is not None else "local"
        return self.provider(name)

    def _serving(self, spec: ExperimentSpec, endpoint: str) -> str:
        """The provider that an endpoint was last deployed to; the declared one where nothing tells."""
        from notebooked_dagster.sensors.endpoints import served_by

        return self._remembered(
            lambda instance: served_by(instance, spec.config, endpoint), spec.config.provider
        )

    def _recorded(self, specs: Sequence[ExperimentSpec]) -> set[str]:
        """Where the last models and endpoints of experiments are, which may be elsewhere than declared."""
        from notebooked_dagster.components.reporting import latest, metadata_value

        def names(instance: dg.DagsterInstance) -> set[str]:
            events = (latest(instance, spec.key(part)) for spec in specs for part in ("model", "endpoint"))
            found = (metadata_value(event, "provider") for event in events)
            return {str(name) for name in found if name is not None}

        return self._remembered(names, set())

    def _remembered(self, ask: Callable[[dg.DagsterInstance], T], otherwise: T) -> T:
        """What the instance knows beyond the declarations, which will do: endpoints are looked after with the database away."""
        try:
            with self.instance() as instance:
                return ask(instance)
        except ConfigError:
            return otherwise
        except ProviderError as error:
            self.session.note(f"{error.message} What is declared is taken.")
            return otherwise

    def provider_of_job(self, job_id: str, name: str | None = None) -> BaseProvider:
        """The provider that was named, or the first of the project's that knows the job."""
        found = self.providers(name)
        for provider in found[:-1]:
            try:
                provider.status(job_id)
            except errors.JobNotFoundError:
                continue
            return provider
        return found[-1]

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """The Dagster instance. Raises ConfigError where there is none to show runs in."""
        import dagster as dg
        import yaml

        if not os.environ.get("DAGSTER_HOME"):
            raise ConfigError(
                "DAGSTER_HOME is not set and the project has no dagster.yaml.",
                path=self.place.root,
                hint="Set DAGSTER_HOME, or run `notebooked init` to get a dagster.yaml.",
            )
        try:
            found = dg.DagsterInstance.get()
        except (dg.DagsterInvariantViolationError, dg.DagsterInvalidConfigError, yaml.YAMLError) as problem:
            home = Path(os.environ["DAGSTER_HOME"])
            right = home.is_absolute() and home.is_dir()
            raise ConfigError(
                f"The Dagster instance cannot be opened: {' '.join(str(problem).split())}",
                path=home / "dagster.yaml" if right else home,
                hint="Correct the file." if right else "Correct DAGSTER_HOME, or make the folder.",
            ) from problem
        with found as instance:
            yield instance


def stale_code(project: Project, spec: ExperimentSpec, instance: dg.DagsterInstance) -> list[str]:
    """Which of an experiment's generated code is not what the notebook says now."""
    from notebooked_dagster.components.reporting import latest

    try:
        now = _versions_now(project, spec)
    except NotebookedError as error:
        return [f"unreadable: {error.message}"]
    stale = []
    for part, wanted in (("training_code", now.training), ("inference_code", now.inference)):
        made = latest(instance, spec.key(part))
        if ((made.tags or {}) if made is not None else {}).get("dagster/data_version") != wanted:
            stale.append(part)
    return stale


def trains_otherwise(
    project: Project, spec: ExperimentSpec, instance: dg.DagsterInstance, partition: str | None = None
) -> bool:
    """Whether the notebook trains otherwise than it did for the newest model.

    That is what Dagster noted of the model's inputs, and not the code that was generated last: a training that failed
    has generated some too. A notebook that cannot be read trains otherwise.
    """
    from notebooked_dagster.components.reporting import latest

    model = latest(instance, spec.key("model"), partition) or latest(instance, spec.key("training_code"))
    key = spec.key("training_code").to_user_string()
    tags = (model.tags or {}) if model is not None else {}
    before = tags.get(f"dagster/input_data_version/{key}") or tags.get("dagster/data_version")
    try:
        return before != _versions_now(project, spec).training
    except NotebookedError:
        return True


def _versions_now(project: Project, spec: ExperimentSpec) -> Versions:
    """What the notebook's code means now. Raises NotebookedError where it cannot be read."""
    from notebooked_dagster.resources.code_state import code_state, versions

    return versions(code_state(spec.notebook, spec.config, project.place.state), spec.config)


def run_assets(
    project: Project,
    job_name: str,
    config: Mapping[str, Any],
    only: Sequence[dg.AssetKey] | None = None,
    partition: str | None = None,
) -> str:
    """Execute a job of the project in this process, as a run that the UI shows.

    Args:
        project: The project.
        job_name: ``<experiment>_train_job`` and the like.
        config: Run config by op name.
        only: Assets to materialize; all of the job where None.
        partition: Of the assets that have partitions.

    Returns:
        The run's id.

    Raises:
        NotebookedError: What made a step fail, of the kind it had there.
    """
    from notebooked_dagster.definitions import project_definitions

    job = project_definitions(project.place).resolve_job_def(job_name)
    # Dagster tells a failure with its own stack; ours is told once, at the end, in the user's terms.
    level = ("CRITICAL", "INFO", "DEBUG")[min(project.session.verbose, 2)]
    with project.instance() as instance, redirect_stdout(sys.stderr), _ended_with_the_terminal():
        result = job.execute_in_process(
            run_config={
                "ops": {name: {"config": dict(values)} for name, values in config.items() if values},
                "loggers": {"console": {"config": {"log_level": level}}},
            },
            instance=instance,
            raise_on_error=False,
            asset_selection=list(only) if only is not None else None,
            partition_key=partition,
        )
    if not result.success:
        raise _failure([event for event in result.all_events if event.is_step_failure])
    return str(result.run_id)


def chosen_partition(
    asked: str | None, partitions: dg.PartitionsDefinition[str] | None, name: str
) -> str | None:
    """The partition that was asked for. Raises ConfigError where there is none of that name, or one has to be named."""
    if partitions is None:
        if asked is not None:
            raise ConfigError(
                f"{name} has no partitions.",
                key="partition",
                hint="Leave --partition out, or declare `partitions`.",
            )
        return None
    keys = list(partitions.get_partition_keys())
    if asked in keys:
        return asked
    some = ", ".join(keys[-5:]) if keys else "none yet"
    more = f" and {len(keys) - 5} before" if len(keys) > 5 else ""
    near = get_close_matches(asked or "", keys, 1)
    raise ConfigError(
        f"{name} has no partition {asked!r}." if asked is not None else f"{name} is made by partition.",
        key="partition",
        hint=f"Did you mean --partition {near[0]}?" if near else f"Name one with --partition: {some}{more}.",
    )


@contextmanager
def _ended_with_the_terminal() -> Iterator[None]:
    """A closed terminal ends a run as Ctrl-C does; Dagster knows SIGINT and SIGTERM only. `nohup` still prevents it."""
    number = getattr(signal, "SIGHUP", None)
    if number is None or signal.getsignal(number) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(number, before)


def _failure(events: Sequence[dg.DagsterEvent]) -> NotebookedError:
    """The error of the step that failed, with the exit code it has when no Dagster is around."""
    for event in events:
        data = event.step_failure_data
        failure = data.user_failure_data
        if failure is not None:
            metadata = {name: value.value for name, value in failure.metadata.items()}
            kind = getattr(errors, str(metadata.get("error", "")), UserError)
            message = (failure.description or "The run failed.").strip()
            details = {"step": event.step_key}
            if "Traceback (most recent call last):" in message:
                # The log, just printed, has all of it; what is left to say is where in the notebook.
                details["traceback"] = message
                message = _in_the_notebook(message)
            error: NotebookedError = kind(message, details=details)
            return error
        if data.error is not None and data.error.cls_name == "DagsterExecutionInterruptedError":
            raise click.exceptions.Abort  # Ctrl-C: the training is cancelled by now
        if data.error is not None:
            return errors.InternalError(data.error.message.strip(), details={"step": event.step_key})
    return UserError("The run failed.", hint="The run's page in the UI has its log.")


def _in_the_notebook(message: str) -> str:
    """A message without the frames of its traceback that are not of a notebook; as it is where none is."""
    first, *lines = message.splitlines()
    kept: list[str] = []
    ours = False
    for line in lines:
        if line.startswith("  File "):
            ours = '.ipynb", cell ' in line
        elif not line.startswith("    "):
            ours = False
        if ours:
            kept.append(line)
    return "\n".join([first, *kept]) if kept else message
