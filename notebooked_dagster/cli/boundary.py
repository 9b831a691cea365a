"""The one place where errors become messages and exit codes."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.errors import EXIT_INTERNAL, EXIT_OK, EXIT_USER, NotebookedError, UserError, from_os

EXIT_INTERRUPTED = 130


def run(command: Callable[[], Any], args: Sequence[str] | None) -> NoReturn:
    """Run ``command`` and end the process with the exit code that its outcome has."""
    words = list(sys.argv[1:] if args is None else args)
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        outcome = command()
    except click.exceptions.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as problem:
        _tell_usage(problem, as_json)
        sys.exit(EXIT_USER)
    except NotebookedError as problem:
        _traceback()
        _tell(problem, as_json)
        sys.exit(problem.exit_code)
    except BrokenPipeError:
        # Whoever read us has left (`| head`): nothing more to say, not even when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_USER)
    except OSError as problem:
        _traceback()
        _tell(from_os(problem), as_json)
        sys.exit(EXIT_USER)
    except Exception as problem:
        _traceback()
        refused = from_database(problem)
        if refused is not None:
            _tell(refused, as_json)
            sys.exit(EXIT_USER)
        _tell_internal(problem, as_json)
        sys.exit(EXIT_INTERNAL)
    # Without standalone mode click hands back the code of `ctx.exit()`.
    sys.exit(outcome if isinstance(outcome, int) else EXIT_OK)


def _debug() -> bool:
    return os.environ.get("NOTEBOOKED_DEBUG", "").lower() not in ("", "0", "false", "no")


def _traceback() -> None:
    if _debug():
        click.echo(REDACTOR.redact(traceback.format_exc()), err=True)


def _tell(problem: NotebookedError, as_json: bool) -> None:
    if as_json:
        click.echo(REDACTOR.redact(json.dumps(problem.to_dict(), default=str)), err=True)
        return
    place = f"{problem.where}: " if problem.where else ""
    click.echo(
        f"{click.style('Error', fg='red', bold=True)}: {place}{REDACTOR.redact(problem.message)}", err=True
    )
    if problem.hint:
        click.echo(f"  {REDACTOR.redact(problem.hint)}", err=True)


def _tell_usage(problem: click.ClickException, as_json: bool) -> None:
    if as_json:
        data = {"error": "UsageError", "message": problem.format_message(), "exit_code": EXIT_USER}
        click.echo(json.dumps(data), err=True)
    else:
        problem.show()


def from_database(problem: BaseException | None) -> NotebookedError | None:
    """A database file that cannot be written or read: a full disk, a folder without permission, a damaged file."""
    import sqlite3

    while problem is not None:
        reason = getattr(problem, "orig", None) or problem
        if isinstance(reason, sqlite3.DatabaseError):
            return UserError(
                f"A database of Dagster's or MLflow's cannot be used: {reason}.",
                hint="Is the disk full, the folder read-only, or the file damaged? `notebooked doctor` looks.",
            )
        problem = problem.__cause__ or problem.__context__
    return None


def _tell_internal(problem: Exception, as_json: bool) -> None:
    message = REDACTOR.redact(f"{type(problem).__name__}: {problem}".split("\n")[0])
    hint = "This is a fault of notebooked. NOTEBOOKED_DEBUG=1 shows the traceback; please report it."
    if as_json:
        data = {"error": "InternalError", "message": message, "hint": hint, "exit_code": EXIT_INTERNAL}
        click.echo(json.dumps(data), err=True)
    else:
        click.echo(f"{click.style('Internal error', fg='red', bold=True)}: {message}\n  {hint}", err=True)
