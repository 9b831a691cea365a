"""``notebooked convert``, ``diff`` and ``explain-traceback``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from notebooked_dagster.errors import EXIT_USER

from .options import NOTEBOOK, Function, session, shared_options, vocabulary_options

if TYPE_CHECKING:
    from notebooked_dagster.codegen import DriftReport, GeneratedScripts
    from notebooked_dagster.notebook.analysis import AnalysisOptions
    from notebooked_dagster.notebook.tags import TagVocabulary


def generator_options(what: str) -> Callable[[Function], Function]:
    """Add the options of the generator; ``what`` says what lies in ``--output``."""

    def added(function: Function) -> Function:
        for option in (
            click.option(
                "--allow-unsupported", is_flag=True, help="Leave out cells such as %%bash instead of refusing."
            ),
            click.option("--model", "model_name", help="The name that holds the model, where it is not found."),
            vocabulary_options,
            click.option(
                "-o", "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
                help=f"Where the scripts {what}; scripts/<notebook> of the project where not given.",
            ),
            click.argument("notebook", metavar="NOTEBOOK|EXPERIMENT", type=NOTEBOOK),
        ):  # fmt: skip
            function = option(function)
        return function

    return added


@click.command("convert")
@generator_options("go")
@click.option("--force", is_flag=True, help="Overwrite scripts that were edited by hand.")
@shared_options
def convert_command(
    notebook: Path,
    output: Path | None,
    force: bool,
    vocabulary: TagVocabulary,
    model_name: str | None,
    allow_unsupported: bool,
) -> None:
    """Generate the scripts of a notebook."""
    from notebooked_dagster.codegen import write_scripts
    from notebooked_dagster.notebook.analysis import AnalysisOptions

    name, scripts = _generated(notebook, AnalysisOptions(vocabulary, model_name), allow_unsupported)
    folder = output or session().settings().scripts / name
    report = write_scripts(scripts, folder, force=force)
    data = {
        "notebook": str(notebook),
        "folder": str(folder),
        "files": sorted(scripts.files),
        "report": _plain(report),
    }

    def text() -> str:
        lines = [f"{folder}: {', '.join(sorted(scripts.files))}"]
        lines += [
            f"{f.severity.value} {f.rule}{'' if f.cell is None else f', cell {f.cell + 1}'}: {f.message} {f.fix}"
            for f in scripts.findings
        ]
        return "\n".join(lines)

    session().emit(data, text)


@click.command("diff")
@generator_options("are")
@click.option(
    "--check",
    is_flag=True,
    help="Exit 1 where scripts on disk are not those of the notebook; none at all will do.",
)
@shared_options
def diff_command(
    notebook: Path,
    output: Path | None,
    vocabulary: TagVocabulary,
    model_name: str | None,
    allow_unsupported: bool,
    check: bool,
) -> None:
    """Compare what would be generated now, what was generated, and what stands on disk."""
    from notebooked_dagster.codegen import report
    from notebooked_dagster.notebook.analysis import AnalysisOptions

    name, scripts = _generated(notebook, AnalysisOptions(vocabulary, model_name), allow_unsupported)
    folder = output or session().settings().scripts / name
    drift = report(folder, scripts)
    patch = drift.cell_patch(scripts.source_map)
    data = {"folder": str(folder), "drift": _plain(drift), "cell_patch": patch}
    session().emit(data, lambda: _three_ways(drift, patch))
    if check and folder.exists() and any(file.state.value != "unchanged" for file in drift.files):
        click.get_current_context().exit(EXIT_USER)


def _three_ways(drift: DriftReport, patch: str) -> str:
    """Each file's state; for an edited one what the hand and what the notebook changed; last the patch of the cells."""
    lines = [f"{file.name:28} {file.state.value}" for file in drift.files]
    for file in drift.drifted:
        lines += ["", f"== {file.name}: edited by hand", file.edits().rstrip("\n")]
        if file.state.value == "edited-and-regenerated":
            lines += ["", f"== {file.name}: changed by the notebook since", file.changes().rstrip("\n")]
    if patch:
        lines += ["", "== proposed for the notebook", patch.rstrip("\n")]
    return "\n".join(lines)


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


def _generated(
    notebook: Path, options: AnalysisOptions, allow_unsupported: bool
) -> tuple[str, GeneratedScripts]:
    """The scripts of a notebook, or of an experiment with what its declaration says; and the folder's name."""
    from notebooked_dagster.codegen import GenerateOptions, generate
    from notebooked_dagster.notebook.analysis import analyse_path
    from notebooked_dagster.resources.code_state import generate_options

    from .project import declared_options, experiment_meant

    spec = experiment_meant(notebook)
    if spec is None:
        asked = GenerateOptions(
            notebook.stem, model_name=options.model_name, allow_unsupported=allow_unsupported
        )
        return notebook.stem, generate(analyse_path(notebook, options), asked)
    asked = generate_options(spec.config)
    asked = dataclasses.replace(
        asked,
        experiment=spec.scripts.name,
        model_name=options.model_name or asked.model_name,
        allow_unsupported=allow_unsupported or asked.allow_unsupported,
        strict=False,
    )
    return spec.scripts.name, generate(analyse_path(spec.notebook, declared_options(spec, options)), asked)


def _plain(value: Any) -> Any:
    return (
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
    )
