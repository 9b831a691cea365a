"""The command's frame: which commands there are, and what every one of them has."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from .boundary import run
from .options import shared_options

#: Command -> (module, what ``--help`` says). A module is imported when its command is used, so that help is quick.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "Make a project in an empty folder, or adopt a folder of notebooks."),
    "inspect": ("inspect", "Show how a notebook is understood: roles, slices, model, hashes."),
    "tag": ("tag", "Suggest tags for a notebook's cells, or write them."),
    "lint": ("lint", "Audit notebooks."),
    "convert": ("convert", "Generate the scripts of a notebook."),
    "diff": ("convert", "Compare generated scripts with what stands on disk."),
    "plan": ("plan", "Show what training would send, cost and need; changes nothing."),
    "train": ("train", "Train an experiment: scripts and model."),
    "deploy": ("train", "Deploy the newest model of an experiment, or a given one."),
    "jobs": ("jobs", "List training jobs."),
    "logs": ("jobs", "Print what a training job, or an endpoint, printed."),
    "cancel": ("jobs", "Stop training jobs."),
    "predict": ("endpoints", "Ask an endpoint."),
    "endpoints": ("endpoints", "List endpoints."),
    "rollback": ("endpoints", "Serve the previous version again, or another that is kept."),
    "delete-endpoint": ("endpoints", "Stop endpoints and remove what was made for them."),
    "status": ("status", "Show what each experiment has: code, model, endpoint."),
    "compare": ("workflow", "Compare the metrics of two states of a project."),
    "generate-workflow": ("workflow", "Write a CI file for GitHub Actions or GitLab CI."),
    "explain-traceback": ("convert", "Name notebook, cell and line in a traceback of a script."),
    "doctor": ("doctor", "Check the installation and the project."),
    "edge": (
        "edge",
        "Raspberry Pis that take runs: add, list, provision, deploy, run, logs, shell, doctor, daemon.",
    ),
    "completion": ("completion", "Print the shell completion script."),
}


class CommandGroup(click.Group):
    """Commands that are imported when they are used, behind one error boundary."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which one needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__package__}.{COMMANDS[cmd_name][0]}")
        command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant; a misspelt one names the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command line; with ``standalone_mode`` (the default) end with its exit code."""
        inner: Callable[..., Any] = super().main
        if not standalone_mode:
            return inner(*args, standalone_mode=False, **extra)
        words = args[0] if args else extra.get("args")
        return run(lambda: inner(*args, standalone_mode=False, **extra), words)


@click.group(
    cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="notebooked-dagster", prog_name="notebooked")
@shared_options
def main() -> None:
    """Put notebooks into production with Dagster.

    Exit codes: 0 success, 1 something you can put right, 2 a provider or the network, 3 a fault of ours.
    NOTEBOOKED_DEBUG=1 shows tracebacks.
    """
