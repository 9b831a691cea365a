"""What every command takes, and how it answers: ``--json``, ``--project``, ``-v``."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from notebooked_dagster.core.root import find_project_root
from notebooked_dagster.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from notebooked_dagster.core.settings import Settings
    from notebooked_dagster.notebook.tags import TagVocabulary

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(slots=True)
class Session:
    """One invocation of the command.

    Attributes:
        json: One JSON document on stdout instead of text.
        project: The project's folder; found from the working folder where None.
        verbose: How often ``-v`` was given.
    """

    json: bool = False
    project: Path | None = None
    verbose: int = 0

    def settings(self) -> Settings:
        """The project's settings."""
        from notebooked_dagster.core.settings import Settings

        return Settings(project_root=self.project) if self.project else Settings()

    def root(self) -> Path:
        """The project's folder; as in the settings, which cost 0.2 s to load."""
        told = self.project or os.environ.get("NOTEBOOKED_PROJECT_ROOT")
        return Path(told).expanduser().resolve() if told else find_project_root(Path.cwd())

    def emit(self, data: Any, text: Callable[[], object]) -> None:
        """Answer: ``data`` with ``--json``; else ``text()`` shows it, or returns what is to be shown."""
        if self.json:
            click.echo(json.dumps(data, indent=2, default=str, ensure_ascii=False))
            return
        shown = text()
        if shown is not None:
            click.echo(shown)

    def note(self, message: str, level: int = 0) -> None:
        """Say something beside the answer, on stderr."""
        if self.verbose >= level:
            click.echo(message, err=True)

    @staticmethod
    def console() -> Console:
        """Where tables go."""
        from rich.console import Console

        # What is shown comes from errors, files and users: brackets in it are brackets.
        console = Console(highlight=False, markup=False)
        # A pipe has no width: wide tables are better than cut ones.
        return console if console.is_terminal else Console(highlight=False, markup=False, width=160)


def session() -> Session:
    """The current invocation's session."""
    return click.get_current_context().ensure_object(Session)


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value:
        setattr(ctx.find_root().ensure_object(Session), str(param.name), value)


def shared_options(function: Function) -> Function:
    """Add the options that may stand before or behind the command's name."""
    for option in (
        click.option("-v", "--verbose", count=True, expose_value=False, callback=_store, help="Say more."),
        click.option(
            "--project", type=click.Path(exists=True, file_okay=False, path_type=Path), expose_value=False,
            callback=_store, help="The project's folder.", metavar="DIR",
        ),
        click.option(
            "--json", is_flag=True, expose_value=False, callback=_store, help="Answer as one JSON document.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


NOTEBOOK = click.Path(path_type=Path)


def vocabulary_options(function: Function) -> Function:
    """Add the options that say what cell tags mean; they come to the command as ``vocabulary``."""
    for option in (
        click.option(
            "--extra-tag", "vocabulary_extra", multiple=True, metavar="WORD=TAG",
            help="A word of yours and the tag it stands for; repeatable.",
        ),
        click.option("--prefix", "vocabulary_prefix", metavar="PREFIX", help="Prefix that marks our tags, such as nb:."),
    ):  # fmt: skip
        function = option(function)

    @functools.wraps(function)
    def command(
        *args: Any, vocabulary_prefix: str | None, vocabulary_extra: tuple[str, ...], **more: Any
    ) -> Any:
        return function(*args, vocabulary=_vocabulary(vocabulary_prefix, vocabulary_extra), **more)

    return command  # type: ignore[return-value]


def _vocabulary(prefix: str | None, extra: tuple[str, ...]) -> TagVocabulary:
    """What was told, else what ``defaults`` of the project's config.yaml says."""
    from notebooked_dagster.notebook.model import Tag
    from notebooked_dagster.notebook.tags import TagVocabulary

    root = session().root()
    defaults: Mapping[str, Any] = {}
    if (root / "config.yaml").exists():
        from notebooked_dagster.config import project_or_default

        defaults = project_or_default(root).defaults
    words = dict(defaults.get("extra_tags") or {})
    for word, meaning in words.items():
        if meaning not in list(Tag):
            raise ConfigError(
                f"{word!r} stands for {meaning!r}, which is no tag.",
                path=root / "config.yaml",
                key="defaults.extra_tags",
                hint=f"The tags are {', '.join(Tag)}.",
            )
    for text in extra:
        word, found, meaning = text.partition("=")
        if not found or meaning not in list(Tag):
            raise click.BadParameter(
                f"{text!r} is not WORD=TAG; the tags are {', '.join(Tag)}.", param_hint="--extra-tag"
            )
        words[word] = meaning
    told = prefix if prefix is not None else str(defaults.get("tag_prefix") or "")
    return TagVocabulary(told, tuple(sorted(words.items())))
