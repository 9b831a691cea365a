"""Structured logs of our own loggers (``notebooked.*``): text for people, or one JSON object a line.

What a record is about (run, asset, experiment, provider, device) is bound around the work, not passed to every call.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

from notebooked_dagster.errors import ConfigError

from .redaction import REDACTOR, RedactingFilter

VARIABLE = "NOTEBOOKED_LOG_FORMAT"
STYLES = ("text", "json")
_NOTHING: Mapping[str, str] = MappingProxyType({})
_bound: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar(
    "notebooked_log_fields", default=_NOTHING
)


@contextlib.contextmanager
def about(**fields: str | None) -> Iterator[None]:
    """Add fields to every record that is logged inside, in this thread or task; None adds nothing."""
    token = _bound.set(
        {**_bound.get(), **{name: value for name, value in fields.items() if value is not None}}
    )
    try:
        yield
    finally:
        _bound.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, the bound fields, ``error``.

    Of a record of Dagster's (``python_logs.dagster_handler_config`` of ``dagster.yaml``) also ``run``, ``job``, ``step`` and the
    kind of its ``event``; the message is what was said, without Dagster's prefix.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        data: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_bound.get(),
            **_of_dagster(record),
        }
        if record.exc_info:
            data["error"] = record.exc_text or self.formatException(record.exc_info)
        return REDACTOR.redact(json.dumps(data, ensure_ascii=False))


def _of_dagster(record: logging.LogRecord) -> dict[str, str]:
    """What Dagster has put on a record of a run's."""
    known: Mapping[str, Any] | None = getattr(record, "dagster_meta", None)
    if known is None:
        return {}
    event = known.get("dagster_event")
    error = getattr(event and event.event_specific_data, "error", None)
    said = {
        "message": known.get("orig_message"),
        "run": known.get("run_id"),
        "job": known.get("job_name"),
        "step": known.get("step_key"),
        "event": event and event.event_type_value,
        "error": error and error.to_string(),
    }
    return {name: str(value) for name, value in said.items() if value}


class TextFormatter(logging.Formatter):
    """``level message (field=value …)``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback below it."""
        fields = " ".join(f"{name}={value}" for name, value in _bound.get().items())
        text = f"{record.levelname.lower()}: {record.getMessage()}" + (f" ({fields})" if fields else "")
        if record.exc_info:
            text += "\n" + (record.exc_text or self.formatException(record.exc_info))
        return REDACTOR.redact(text)


def configure(
    style: str | None = None, *, level: int = logging.WARNING, stream: TextIO | None = None
) -> None:
    """Send our loggers to a stream; a second call replaces what the first set up. Other loggers are left alone.

    Args:
        style: ``json`` or ``text``; what ``NOTEBOOKED_LOG_FORMAT`` says where None, else text.
        level: The least that is told.
        stream: Standard error where None.

    Raises:
        ConfigError: There is no such style.
    """
    style = style or os.environ.get(VARIABLE) or "text"
    if style not in STYLES:
        raise ConfigError(
            f"There is no log format {style!r}.", key=VARIABLE, hint=f"Set it to {' or '.join(STYLES)}."
        )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    handler.addFilter(RedactingFilter())
    handler.set_name("notebooked")
    logger = logging.getLogger("notebooked")
    for known in list(logger.handlers):
        if known.get_name() == "notebooked":
            logger.removeHandler(known)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
