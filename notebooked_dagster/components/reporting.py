"""Errors as Dagster's UI shows them, and the pieces of metadata that several assets share."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from notebooked_dagster.core.redaction import REDACTOR, RedactingFilter
from notebooked_dagster.errors import NotebookedError, ProviderError, TrainingKilledError, from_os
from notebooked_dagster.notebook.model import Finding, Notebook
from notebooked_dagster.providers.base import TrainingJob

_PREVIEW_LINES = 120
_PREVIEW_CHARACTERS = 12_000
_LARGEST_PLOT = 200_000
_MOST_PLOTS = 6
_MASKED = RedactingFilter()
_IMAGES = (".png", ".svg", ".jpg", ".jpeg")


@contextlib.contextmanager
def reported(log: logging.Logger) -> Iterator[None]:
    """Turn an error of ours into a ``dagster.Failure`` whose description says what is wrong and what to do.

    Dagster keeps what a step logs, and the stack of its failure with all that led to it. Secrets stay out of both.

    Args:
        log: The step's.
    """
    log.addFilter(_MASKED)
    try:
        yield
    except Exception as error:
        ours = (
            error
            if isinstance(error, NotebookedError)
            else from_os(error)
            if isinstance(error, OSError)
            else None
        )
        stack = "".join(traceback.format_exception(error))
        masked = REDACTOR.redact(stack).rstrip()
        if masked == stack.rstrip():
            if ours is None:
                raise
            raise failure_of(ours) from error
        failure = failure_of(ours) if ours is not None else dg.Failure(masked.rpartition("\n")[2])
        raise dg.Failure(
            failure.description,
            {"stack": code_block(masked, "text", last=True), **failure.metadata},
            allow_retries=failure.allow_retries,
        ) from None


def failure_of(error: NotebookedError) -> dg.Failure:
    """The failure of a step."""
    metadata: dict[str, Any] = {"error": type(error).__name__}
    for name in ("hint", "cell", "line", "key"):
        if (value := getattr(error, name)) is not None:
            metadata[name] = _masked(value)
    if error.path is not None:
        metadata["file"] = dg.MetadataValue.path(str(error.path))
    first, _, rest = error.message.partition("\n")
    if rest.strip():
        metadata["traceback"] = code_block(REDACTOR.redact(rest.strip("\n")), "text", last=True)
    for name, value in error.details.items():
        told = _masked(value)
        metadata[name] = told if isinstance(told, str | int | float) else dg.MetadataValue.json(told)
    # A wrong declaration does not become right by trying again; a network may.
    return dg.Failure(
        description=REDACTOR.redact(
            str(error)
            if not rest
            else f"{first}\n{rest}".rstrip() + (f"\n{error.hint}" if error.hint else "")
        ),
        metadata=metadata,
        allow_retries=isinstance(error, ProviderError | TrainingKilledError),
    )


def _masked(value: Any) -> Any:
    """A plain value without the secrets in it."""
    return json.loads(REDACTOR.redact(json.dumps(value, default=str)))


def code_block(text: str, language: str, *, last: bool = False) -> dg.MarkdownMetadataValue:
    """Text as a fenced block that its own content cannot close, shortened to what a page takes."""
    lines = text.splitlines()
    kept = lines[-_PREVIEW_LINES:] if last else lines[:_PREVIEW_LINES]
    body = "\n".join(kept)[:_PREVIEW_CHARACTERS]
    left_out = len(lines) - len(kept)
    fence = "`" * max(3, _longest_run(body) + 1)
    note = f"\n\n… {left_out} more lines" if left_out else ""
    return dg.MetadataValue.md(f"{fence}{language}\n{body}\n{fence}{note}")


def _longest_run(text: str) -> int:
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest


def notebook_preview(notebook: Notebook) -> dg.MarkdownMetadataValue:
    """The notebook's cells as Markdown, without outputs; HTML in its prose is shown, not rendered."""
    parts: list[str] = []
    size = 0
    for cell in notebook.cells:
        if not cell.source.strip():
            continue
        if cell.kind == "markdown":
            text = cell.source.replace("<", "&lt;").strip()
        else:
            fence = "`" * max(3, _longest_run(cell.source) + 1)
            text = f"{fence}python\n{cell.source.rstrip()}\n{fence}"
        if size + len(text) > _PREVIEW_CHARACTERS:
            parts.append(f"… {len(notebook.cells) - cell.index} more cells")
            break
        parts.append(text)
        size += len(text)
    return dg.MetadataValue.md("\n\n".join(parts) or "*The notebook is empty.*")


def findings_table(findings: list[Finding]) -> dg.TableMetadataValue:
    """Findings as a table."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "rule": f"{finding.rule} {finding.name}",
                    "severity": finding.severity.value,
                    "cell": "" if finding.cell is None else str(finding.cell + 1),
                    "message": finding.message,
                    "fix": finding.fix,
                }
            )
            for finding in findings[:200]
        ],
        schema=dg.TableSchema(
            [dg.TableColumn(name) for name in ("rule", "severity", "cell", "message", "fix")]
        ),
    )


def plots(folder: Path) -> dict[str, Any]:
    """The pictures a training left in its output folder, small enough to be kept with the event."""
    if not folder.is_dir():
        return {}
    found: dict[str, Any] = {}
    for path in sorted(item for item in folder.rglob("*") if item.suffix.lower() in _IMAGES)[:_MOST_PLOTS]:
        if path.stat().st_size > _LARGEST_PLOT:
            found[f"plot {path.name}"] = dg.MetadataValue.path(str(path))
            continue
        kind = {".svg": "svg+xml", ".jpg": "jpeg"}.get(path.suffix.lower(), path.suffix.lower()[1:])
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        found[f"plot {path.name}"] = dg.MetadataValue.md(f"![{path.stem}](data:image/{kind};base64,{data})")
    return found


def metric_metadata(metrics: Mapping[str, float]) -> dict[str, dg.FloatMetadataValue]:
    """Metrics as numbers, which the UI plots over time."""
    return {f"metric {name}": dg.MetadataValue.float(float(value)) for name, value in sorted(metrics.items())}


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(item.stat().st_size for item in folder.rglob("*") if item.is_file()) if folder.is_dir() else 0


def model_copy(job: TrainingJob) -> Path | None:
    """The model's folder on this machine: the model itself, or the copy of one elsewhere that lies beside the job's log."""
    if job.model_uri is not None and "://" not in job.model_uri:
        folder: Path | None = Path(job.model_uri)
    else:
        folder = Path(job.log).parent / "model" if job.log is not None else None
    return folder if folder is not None and folder.is_dir() else None


def latest(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None = None
) -> dg.AssetMaterialization | None:
    """The last materialization of an asset, or of one of its partitions."""
    if partition is None:
        event = instance.get_latest_materialization_event(key)
        return event.asset_materialization if event is not None else None
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
    ).records
    return records[0].asset_materialization if records else None


def metadata_value(event: dg.AssetMaterialization | None, name: str) -> Any:
    """A plain value from an event's metadata; None where it is not there."""
    found = event.metadata.get(name) if event is not None else None
    return found.value if found is not None else None
