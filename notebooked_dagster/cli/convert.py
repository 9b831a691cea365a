"""``notebooked convert``, ``diff`` and ``explain-traceback``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from notebooked_dagster.errors import ConfigError

from .options import NOTEBOOK, session, shared_options

if TYPE_CHECKING:
    from notebooked_dagster.codegen import GeneratedScripts


@click.command("convert")
@click.argument("notebook", type=NOTEBOOK)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the scripts go; scripts/<notebook> of the project where not given.",
)
@click.option("--force", is_flag=True, help="Overwrite scripts that were edited by hand.")
@click.option("--model", "model_name", help="The name that holds the model, where it is not found.")
@click.option("--allow-unsupported", is_flag=True, help="Leave out cells such as %%bash instead of refusing.")
@shared_options
def convert_command(
    notebook: Path, output: Path | None, force: bool, model_name: str | None, allow_unsupported: bool
) -> None:
    """Generate the scripts of a notebook."""
    from notebooked_dagster.codegen import write_scripts

    scripts = _generated(notebook, model_name, allow_unsupported)
    folder = output or session().settings().scripts / notebook.stem
    report = write_scripts(scripts, folder, force=force)
    data = {
        "notebook": str(notebook),
        "folder": str(folder),
        "files": sorted(scripts.files),
        "report": _plain(report),
    }

    def text() -> str:
        lines = [f"{folder}: {', '.join(sorted(scripts.files))}"]
        lines += [f"{f.severity.value} {f.rule}: {f.message}" for f in scripts.findings]
        return "\n".join(lines)

    session().emit(data, text)


@click.command("diff")
@click.argument("notebook", metavar="NOTEBOOK|EXPERIMENT", type=NOTEBOOK)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the scripts are; scripts/<notebook> of the project where not given.",
)
@click.option("--model", "model_name", help="The name that holds the model, where it is not found.")
@click.option("--allow-unsupported", is_flag=True, help="Leave out cells such as %%bash instead of refusing.")
@shared_options
def diff_command(
    notebook: Path, output: Path | None, model_name: str | None, allow_unsupported: bool
) -> None:
    """Compare what would be generated now, what was generated, and what stands on disk."""
    from notebooked_dagster.codegen import report

    name = notebook.stem
    if notebook.suffix != ".ipynb" and not notebook.exists():
        notebook = notebook_of(str(notebook), session().settings().assets)
    folder = output or session().settings().scripts / name
    drift = report(folder, _generated(notebook, model_name, allow_unsupported))
    session().emit({"folder": str(folder), "drift": _plain(drift)}, lambda: str(drift))


@click.command("explain-traceback")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
@click.option(
    "--scripts",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="The folder with source_map.json.",
)
@shared_options
def explain_traceback_command(file: Any, scripts: Path) -> None:
    """Rewrite a traceback, or a log that holds one, to name notebook, cell and line."""
    from notebooked_dagster.codegen.traceback import remap

    text = remap(file.read(), scripts)
    session().emit({"text": text}, lambda: text.rstrip("\n"))


def notebook_of(experiment: str, assets: Path) -> Path:
    """The notebook that ``assets/<experiment>/defs.yaml`` names. Raises ConfigError."""
    import yaml

    path = assets / experiment / "defs.yaml"
    if not path.exists():
        raise ConfigError(
            f"There is no notebook and no experiment {experiment!r}.",
            path=path,
            hint="Name a notebook, or an experiment that has a folder in assets/.",
        )
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return path.parents[2] / Path(document["attributes"]["notebook"])
    except (yaml.YAMLError, KeyError, TypeError) as problem:
        raise ConfigError(
            "The file names no notebook.",
            path=path,
            key="attributes.notebook",
            hint="Add the notebook's path.",
        ) from problem


def _generated(notebook: Path, model_name: str | None, allow_unsupported: bool) -> GeneratedScripts:
    from notebooked_dagster.codegen import GenerateOptions, generate
    from notebooked_dagster.notebook.analysis import AnalysisOptions, analyse_path

    options = AnalysisOptions(model_name=model_name, allow_unsupported=allow_unsupported)
    analysis = analyse_path(notebook, options)
    return generate(analysis, GenerateOptions(model_name=model_name, allow_unsupported=allow_unsupported))


def _plain(value: Any) -> Any:
    return (
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
    )
