"""Write the reference pages from the code: ``python -m docs.generate``; ``--check`` only says what is out of date.

A page is a function without arguments that returns Markdown. What a page says comes from the object it documents
(a pydantic field's description, a command's help), so that code and page cannot disagree; a test runs ``--check``.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from notebooked_dagster import errors
from notebooked_dagster.core import logs, tracing
from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.core.settings import Settings
from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.resources import launcher, storage

FOLDER = Path(__file__).parent / "reference"
NOTICE = "<!-- Written by `make docs` from the code. Edit the docstrings and descriptions there. -->\n\n"


def errors_page() -> str:
    """The exit codes and the tree of errors."""
    rows = [
        f"| `{error.__name__}` | {error.exit_code} | {first_sentence(error)} |"
        for error in vars(errors).values()
        if inspect.isclass(error) and issubclass(error, NotebookedError) and error is not NotebookedError
    ]
    return "\n".join(
        [
            "# Errors and exit codes\n",
            "0 is success, 1 something you can put right, 2 a provider, a server or the network, 3 a fault of ours.",
            "`NOTEBOOKED_DEBUG=1` shows the traceback; `--json` gives the same error as data.\n",
            "| error | exit code | when |",
            "|---|---|---|",
            *rows,
        ]
    )


def environment_page() -> str:
    """The environment variables of the settings."""
    described = attribute_texts(Settings)
    rows = [f"| `NOTEBOOKED_{name.upper()}` | {described[name]} |" for name in Settings.model_fields]
    # Read where nothing of the settings is loaded yet.
    rows += [
        "| `NOTEBOOKED_DEBUG` | Show tracebacks. |",
        f"| `{storage.VARIABLE}` | Address of the PostgreSQL database that Dagster keeps its runs and events in; SQLite where unset. |",
        "| `OTEL_EXPORTER_OTLP_ENDPOINT` | Where traces are sent to, as OpenTelemetry has it; nothing is traced where it is unset ([Traces](../deployment.md#traces)). |",
        f"| `{tracing.VARIABLE}` | The trace that a process goes on with, as the W3C has it; trainings are handed theirs. |",
        f"| `{launcher.VARIABLE}` | What executes runs: `default` (beside the code location), `kubernetes`, `ecs` or `docker` (a container each), `pi` (those with a device's tag there, all others here). Where it is not set: `pi` beside an `edge.yaml`, else `default`. |",
        "| `NOTEBOOKED_COMMIT` | The commit that MLflow runs name where there is no repository to ask, as in a container. |",
        f"| `{logs.VARIABLE}` | How our loggers write: `text`, or `json` for one object a line. |",
    ]
    return "\n".join(["# Environment variables\n", "| variable | what it does |", "|---|---|", *rows])


def defs_page() -> str:
    """Every key of ``defs.yaml``."""
    from notebooked_dagster.components import Takes
    from notebooked_dagster.config import ExperimentConfig
    from notebooked_dagster.config.loading import PROVIDER_OPTIONS

    options = [
        line
        for provider, model in PROVIDER_OPTIONS.items()
        for line in ("", *model_tables(model, f"options, with provider: {provider}"))
    ]
    return "\n".join(
        [
            "# `assets/<experiment>/defs.yaml`\n",
            "The keys below stand under `attributes:` of `type: notebooked_dagster.NotebookExperiment`.\n",
            *model_tables(ExperimentConfig, "attributes"),
            *options,
            "",
            *model_tables(Takes, "attributes, with type: notebooked_dagster.Takes"),
        ]
    )


def config_page() -> str:
    """Every key of ``config.yaml``."""
    from notebooked_dagster.config import ProjectConfig

    return "\n".join(["# `config.yaml`\n", *model_tables(ProjectConfig, "config.yaml")])


def device_page() -> str:
    """Every key of ``device.yaml``."""
    from notebooked_dagster.realtime.device import DeviceConfig

    return "\n".join(["# `device.yaml`\n", *model_tables(DeviceConfig, "device.yaml")])


def cli_page() -> str:
    """Every command with its options."""
    from notebooked_dagster.cli import main

    # As the command itself does it: the names of the help option are among these settings.
    context = click.Context(main, info_name="notebooked", terminal_width=100, **main.context_settings)
    parts = ["# The `notebooked` command\n", "```text", main.get_help(context), "```"]
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context, terminal_width=100)
        parts += [f"\n## `notebooked {name}`\n", "```text", command.get_help(inner), "```"]
        if isinstance(command, click.Group):
            for part in command.list_commands(inner):
                deeper = command.get_command(inner, part)
                assert deeper is not None
                context_ = click.Context(deeper, info_name=part, parent=inner, terminal_width=100)
                parts += [f"\n### `notebooked {name} {part}`\n", "```text", deeper.get_help(context_), "```"]
    return "\n".join(parts)


def rules_page() -> str:
    """Every rule of the audit."""
    from notebooked_dagster.notebook.lint.catalogue import reference_page

    return reference_page()


def model_tables(model: type[BaseModel], title: str) -> Iterator[str]:
    """A table for a model, then one for each model that its fields hold."""
    seen: set[type[BaseModel]] = set()
    waiting = [(title, model)]
    while waiting:
        heading, current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        yield f"## `{heading}`\n\n{paragraph(current)}\n"
        yield "| key | type | default | what it means |"
        yield "|---|---|---|---|"
        described = attribute_texts(current)
        for name, field in current.model_fields.items():
            key = field.alias or name
            yield f"| `{key}` | {type_text(field.annotation)} | {default_text(field)} | {field.description or described.get(name, '').replace('``', '`')} |"
            nested = f"{key}" if current is model else f"{heading}.{key}"
            waiting += [(nested, inner) for inner in inner_models(field.annotation)]
        yield ""


def type_text(annotation: Any) -> str:
    """A type as a reader writes it: ``str``, ``list of float``, ``a | b``; models by their key's table."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(inner) for inner in arguments if inner is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin in (list, tuple, set, frozenset):
        return f"list of {type_text(arguments[0])}" if arguments else "list"
    if origin is not None and issubclass(origin, typing.Mapping):
        return "mapping"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "mapping, see below"
    return getattr(annotation, "__name__", str(annotation)).replace("NoneType", "null")


def inner_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models inside a type."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from inner_models(inner)


def default_text(field: FieldInfo) -> str:
    """A field's default as YAML would show it."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=False)
    if value is PydanticUndefined or (field.default_factory is not None):
        return ""
    if isinstance(value, BaseModel) or value in (None, "", ()):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def first_sentence(thing: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def paragraph(thing: object) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def attribute_texts(thing: type) -> dict[str, str]:
    """The ``Attributes:`` section of a Google-style docstring, by name, on top of those of the classes it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(thing.__mro__):
        section = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")[2]
        name = ""
        for line in section.splitlines():
            if line.startswith("    ") and not line.startswith("     "):
                name, _, text = line.strip().partition(": ")
                name = name.strip("`")
                found[name] = text
            elif line.strip() and name:
                found[name] += f" {line.strip()}"
    return found


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors_page,
    "environment.md": environment_page,
    "defs.md": defs_page,
    "config.md": config_page,
    "device.md": device_page,
    "cli.md": cli_page,
    "rules.md": rules_page,
}


def out_of_date() -> dict[Path, str]:
    """The pages whose file is not what the code says, with what it should be."""
    wanted = {FOLDER / name: f"{NOTICE}{page().rstrip()}\n" for name, page in PAGES.items()}
    return {
        path: text
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main() -> int:
    """Write what is out of date, or with ``--check`` name it and exit 1."""
    stale = out_of_date()
    for path, text in stale.items():
        if "--check" not in sys.argv:
            write_atomic(path, text)
        print(path.relative_to(FOLDER.parent.parent))
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
