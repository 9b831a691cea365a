"""``notebooked generate-workflow`` and ``notebooked compare``."""

from __future__ import annotations

from pathlib import Path

import click

from notebooked_dagster.errors import ConfigError

from .options import session, shared_options

_PLATFORMS = ("github", "gitlab")
_PROVIDERS = ("local", "sagemaker", "azure", "gcp", "kubernetes", "databricks", "pi")
_FORMATS = ("text", "markdown", "json", "openmetrics")


@click.command("generate-workflow")
@click.option(
    "--platform", type=click.Choice(_PLATFORMS), default="github", show_default=True, help="Whose CI."
)
@click.option(
    "--provider", type=click.Choice((*_PROVIDERS, "vertex")), default="local", show_default=True,
    help="Where the experiments train and serve: how CI identifies itself there.",
)  # fmt: skip
@click.option("--branch", default="main", show_default=True, help="The branch that is deployed.")
@click.option("--python", default="3.11", show_default=True, help="Version of Python.")
@click.option(
    "--requirements",
    default="requirements.txt",
    show_default=True,
    help="The file that installs the project.",
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Where to write it; the platform's own place where not given, - for standard output.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite a file that is there and differs.")
@click.option(
    "--check", is_flag=True, help="Write nothing; exit 1 where the file is not what would be written."
)
@shared_options
def generate_workflow_command(
    platform: str,
    provider: str,
    branch: str,
    python: str,
    requirements: str,
    output: Path | None,
    force: bool,
    check: bool,
) -> None:
    """Write a CI file: check notebooks, train, gate on metrics, compare on pull requests, deploy from a branch."""
    from notebooked_dagster.core.files import write_atomic
    from notebooked_dagster.workflows import PLATFORMS, WorkflowOptions, generate_workflow

    from .project import Project

    project = Project(session())
    everything = project.experiments()
    # A run of one of these needs a partition; its schedule and its sensors choose it.
    specs = [spec for spec in everything if spec.partitions is None]
    root = project.place.root
    text = generate_workflow(
        WorkflowOptions(
            experiments=[spec.name for spec in specs],
            notebooks=[_relative(spec.notebook, root) for spec in specs],
            platform=platform,
            # One cloud by two names, as in a declaration.
            provider="gcp" if provider == "vertex" else provider,
            branch=branch,
            python=python,
            requirements=requirements,
        )
    )
    if output is not None and str(output) == "-":
        click.echo(text, nl=False)
        return
    path = output if output is not None else root / PLATFORMS[platform]
    present = path.read_text(encoding="utf-8") if path.exists() else None
    if check and present != text:
        raise ConfigError(
            "The workflow is not what would be generated now.",
            path=path,
            hint="Run `notebooked generate-workflow` with the options in its first line and --force.",
        )
    if not check and present not in (None, text) and not force:
        raise ConfigError(
            "The file is there and differs; nothing was overwritten.",
            path=path,
            hint="--force overwrites it, -o writes elsewhere, `-o -` shows it.",
        )
    if not check:
        write_atomic(path, text)
    if not (root / requirements).is_file():
        session().note(
            f"There is no {requirements}, by which CI installs the project; commit one that names notebooked-dagster with the "
            "extras you use and what the notebooks import."
        )
    left_out = [spec.name for spec in everything if spec.partitions is not None]
    session().emit(
        {"path": str(path), "experiments": [spec.name for spec in specs], "left_out": left_out},
        lambda: (
            f"{path}: {len(specs)} experiment{'' if len(specs) == 1 else 's'}."
            + (f" Left out, because a partition has to be chosen: {', '.join(left_out)}." if left_out else "")
        ),
    )


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


@click.command("compare")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("head", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(_FORMATS), default="text", show_default=True, help="How.")
@click.option("--fail-on-worse", is_flag=True, help="Exit 1 where a metric is worse than it was.")
@shared_options
def compare_command(base: Path, head: Path, form: str, fail_on_worse: bool) -> None:
    """Compare the metrics of two states: files, or folders of files, that `notebooked --json status` wrote.

    A BASE that is not there is no error: the first time there is nothing to compare with.
    """
    from notebooked_dagster.workflows import compare, read_metrics, render

    if not head.exists():
        raise ConfigError(
            "There is no such file or folder.",
            path=head,
            hint="Write it with `notebooked --json status > FILE`.",
        )
    rows = compare(read_metrics(base), read_metrics(head))
    click.echo(render(rows, "json" if session().json else form))
    if fail_on_worse and any(row.verdict == "worse" for row in rows):
        click.get_current_context().exit(1)
