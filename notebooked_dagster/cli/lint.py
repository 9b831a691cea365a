"""``notebooked lint``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from notebooked_dagster.errors import EXIT_USER, ConfigError, NotebookReadError

from .options import NOTEBOOK, session, shared_options, vocabulary_options

if TYPE_CHECKING:
    from notebooked_dagster.notebook.analysis import AnalysisOptions
    from notebooked_dagster.notebook.lint import LintConfig
    from notebooked_dagster.notebook.tags import TagVocabulary

SKIPPED_FOLDERS = frozenset({".ipynb_checkpoints", ".venv", "node_modules", ".git", ".notebooked"})


@click.command("lint")
@click.argument("paths", nargs=-1, required=True, metavar="NOTEBOOK|FOLDER|EXPERIMENT...", type=NOTEBOOK)
@click.option(
    "--format", "format_", type=click.Choice(["text", "json", "sarif", "github"]), help="How to report."
)
@click.option(
    "--select", multiple=True, metavar="RULES", help="Only these rules: ids, prefixes, names; commas."
)
@click.option("--ignore", multiple=True, metavar="RULES", help="Not these rules.")
@click.option(
    "--severity", type=click.Choice(["info", "warning", "error"]), default="info", show_default=True,
    help="Report nothing below it.",
)  # fmt: skip
@click.option(
    "--fail-on", type=click.Choice(["info", "warning", "error", "never"]), default="error", show_default=True,
    help="Exit 1 where something is as bad as this.",
)  # fmt: skip
@click.option(
    "--max-logic-lines", type=click.IntRange(1), default=20, show_default=True, help="Limit of NB401."
)
@vocabulary_options
@shared_options
def lint_command(
    paths: tuple[Path, ...],
    format_: str | None,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    severity: str,
    fail_on: str,
    max_logic_lines: int,
    vocabulary: TagVocabulary,
) -> None:
    """Audit notebooks; a folder stands for all notebooks in it, an experiment for its own, read as it is declared.

    Exits 1 where something is as bad as --fail-on. A file that cannot be read is an error and does not stop the others.
    """
    from notebooked_dagster.notebook.analysis import AnalysisOptions
    from notebooked_dagster.notebook.lint import LintConfig, at_least, render_all
    from notebooked_dagster.notebook.model import Severity

    config = LintConfig(
        select=_rules(select),
        ignore=_rules(ignore),
        threshold=Severity(severity),
        max_logic_lines=max_logic_lines,
    )
    files = _notebooks_in(paths, AnalysisOptions(vocabulary))
    results: list[Any] = []
    unreadable: list[NotebookReadError] = []
    for file, (options, ignored) in files.items():
        try:
            results.append(_audit(file, replace(config, ignore=config.ignore | ignored), options))
        except NotebookReadError as problem:
            unreadable.append(problem)
    if len(files) == 1 and unreadable:
        raise unreadable[0]
    chosen = format_ or ("json" if session().json else "text")
    colour = chosen == "text" and sys.stdout.isatty()
    report = render_all(results, chosen, colour=colour)
    if report:
        click.echo(report)
    for error in unreadable:
        session().note(f"Error: {error}")
    found = [finding for _, findings in results for finding in findings]
    failed = fail_on != "never" and any(at_least(f.severity, Severity(fail_on)) for f in found)
    if failed or unreadable:
        click.get_current_context().exit(EXIT_USER)


def _notebooks_in(
    paths: tuple[Path, ...], options: AnalysisOptions
) -> dict[Path, tuple[AnalysisOptions, frozenset[str]]]:
    """The notebooks that ``paths`` name, folders searched; how each is read, and what its declaration has ignored.

    Raises:
        ConfigError: A path is neither there nor an experiment, or there is no notebook.
    """
    from .project import declared_options, experiment_meant, shown_path

    as_told = (options, frozenset[str]())
    found: dict[Path, tuple[AnalysisOptions, frozenset[str]]] = {}
    for path in paths:
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*.ipynb")) if not SKIPPED_FOLDERS & set(p.parts))
            found.update(dict.fromkeys(inside, as_told))
        elif path.exists():
            found[path] = as_told
        elif (spec := experiment_meant(path)) is not None:
            ignored = frozenset(spec.config.lint.ignore)
            found[shown_path(spec.notebook)] = (declared_options(spec, options), ignored)
        else:
            raise ConfigError("There is no such file or folder.", path=path, hint="Check the path.")
    if not found:
        raise ConfigError(
            "There is no notebook in it.", path=paths[0], hint="Name a folder that holds .ipynb files."
        )
    return found


def _audit(file: Path, config: LintConfig, options: AnalysisOptions) -> Any:
    from notebooked_dagster.notebook.analysis import analyse
    from notebooked_dagster.notebook.lint import lint
    from notebooked_dagster.notebook.reader import read_notebook

    notebook = read_notebook(file, keep_output_text=True)
    return notebook, lint(analyse(notebook, options), config)


def _rules(values: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word for value in values for word in value.replace(",", " ").split())
