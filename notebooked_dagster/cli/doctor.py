"""``notebooked doctor``."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.core.secrets import load_dotenv
from notebooked_dagster.core.settings import Settings
from notebooked_dagster.errors import EXIT_USER, NotebookedError

from .boundary import from_database
from .options import Session, session, shared_options

if TYPE_CHECKING:
    from notebooked_dagster.resources import Workplace

_NEEDED = ("dagster", "pydantic", "orjson", "click", "rich", "fastapi", "uvicorn", "mlflow-skinny")
_OPTIONAL = {
    "dagster-webserver": "ui", "mlflow": "mlflow", "papermill": "runbooks", "scikit-learn": "samples",
    "torch": "torch", "boto3": "aws", "azure-identity": "azure", "google-cloud-aiplatform": "gcp",
    "opentelemetry-exporter-otlp-proto-http": "otel", "kubernetes": "kubernetes",
    "databricks-sdk": "databricks",
}  # fmt: skip
_LEAST_SPACE = 1 << 30
_UI_PORT = 3000


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        state: ``ok``, ``warning`` or ``error``.
        message: What was found.
        fix: What to do; empty where it is ok.
    """

    name: str
    state: str
    message: str
    fix: str = ""


@click.command("doctor")
@shared_options
def doctor_command() -> None:
    """Check the installation and the project. Exits 1 where something does not work."""
    checks = list(examine(session()))
    data = {"checks": [asdict(check) for check in checks], "ok": all(c.state != "error" for c in checks)}
    session().emit(data, lambda: "\n".join(_line(check) for check in checks))
    if not data["ok"]:
        click.get_current_context().exit(EXIT_USER)


def examine(found: Session) -> Iterator[Check]:
    """Every check, in order; one that fails does not stop the others."""
    # First, and before the settings are made: what follows sees the project as every other command does.
    yield from _guarded("dotenv", _dotenv(found.root()))
    settings = found.settings()
    examiners: tuple[Callable[[Settings], Iterator[Check]], ...] = (
        _python, _packages, _dagster, _project, _tracked_keys, _disk, _databases, _mlflow, _traces, _port, _endpoints,
    )  # fmt: skip
    for examiner in examiners:
        yield from _guarded(examiner.__name__.strip("_"), examiner(settings))


def _guarded(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    try:
        yield from checks
    except NotebookedError as problem:
        place = f"{problem.where}: " if problem.where else ""
        yield Check(name, "error", f"{place}{problem.message}", problem.hint or "")
    except OSError as problem:
        yield Check(name, "error", str(problem), "Check the file and its permissions.")
    except Exception as problem:
        refused = from_database(problem)
        if refused is None:
            raise
        yield Check(
            name, "error", refused.message, "Free some space, or see to the file that is named below."
        )


def _dotenv(root: Path) -> Iterator[Check]:
    added = load_dotenv(root)
    REDACTOR.add_environment(os.environ)
    if added:
        yield Check(".env", "ok", f"sets {', '.join(added)}")


def _python(settings: Settings) -> Iterator[Check]:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Check("python", "ok" if good else "error", found, "" if good else "Install Python 3.11 or newer.")


def _packages(settings: Settings) -> Iterator[Check]:
    for name in _NEEDED:
        found = _version(name)
        fix = "" if found else "Reinstall: pip install notebooked-dagster"
        yield Check(name, "ok" if found else "error", found or "not installed", fix)
    for name, extra in _OPTIONAL.items():
        found = _version(name)
        yield Check(name, "ok", found or f"not installed (pip install 'notebooked-dagster[{extra}]')")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _dagster(settings: Settings) -> Iterator[Check]:
    home = os.environ.get("DAGSTER_HOME", "")
    if not home and (settings.root / "dagster.yaml").is_file():
        yield Check(
            "DAGSTER_HOME", "ok",
            f"not set: `notebooked` and `dagster dev` use {settings.root}; export it for `dagster job execute` and the like",
        )  # fmt: skip
        home = str(settings.root)
    elif not home:
        yield Check(
            "DAGSTER_HOME", "warning", "not set: runs are forgotten when the process ends",
            f"export DAGSTER_HOME={settings.root}",
        )  # fmt: skip
        return
    folder = Path(home)
    if not folder.is_absolute() or not folder.is_dir():
        yield Check(
            "DAGSTER_HOME", "error", f"{home} is no absolute path of a folder", "Point it at the project."
        )
        return
    import yaml
    from dagster import DagsterError, DagsterInstance

    try:
        with _at(home, settings.root), DagsterInstance.get() as instance:
            count = instance.get_runs_count()
            storage = type(instance.run_storage).__name__
    except (DagsterError, yaml.YAMLError) as problem:
        said = " ".join(str(problem).split()) if isinstance(problem, yaml.YAMLError) else str(problem)
        yield Check("dagster instance", "error", said.split("\n")[0], f"Check {folder / 'dagster.yaml'}.")
        return
    yield Check("dagster instance", "ok", f"{folder}, {storage}, {count} runs")


@contextlib.contextmanager
def _at(home: str, root: Path) -> Iterator[None]:
    """As our other commands look at an instance: its storage may be relative to the project's folder."""
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = home
    try:
        with contextlib.chdir(root):
            yield
    finally:
        if before is None:
            os.environ.pop("DAGSTER_HOME", None)
        else:
            os.environ["DAGSTER_HOME"] = before


def _project(settings: Settings) -> Iterator[Check]:
    import yaml

    files = sorted(settings.assets.glob("*/defs.yaml"))
    if not files:
        yield Check("assets", "warning", f"no experiment in {settings.assets}", "notebooked init makes some.")
    for path in files:
        name = str(path.relative_to(settings.root)) if path.is_relative_to(settings.root) else str(path)
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as problem:
            yield Check(name, "error", f"not YAML: {' '.join(str(problem).split())}", "Correct the file.")
            continue
        attributes = document.get("attributes") if isinstance(document, dict) else None
        notebook = attributes.get("notebook") if isinstance(attributes, dict) else None
        if isinstance(notebook, str) and not any(
            (base / notebook).exists() for base in (settings.root, path.parent)
        ):
            yield Check(name, "error", f"there is no notebook {notebook}", "Correct attributes.notebook.")
        else:
            yield Check(name, "ok", "valid YAML" if notebook is None else f"notebook {notebook}")


def _tracked_keys(settings: Settings) -> Iterator[Check]:
    from notebooked_dagster.core import tracked

    files = tracked.tracked_files(settings.root)
    if files is None:
        yield Check("keys in git", "ok", "not looked for: no git, or no repository of it")
        return
    found = list(tracked.leaks(settings.root, files))
    for leak in found:
        yield Check(f"keys in git: {leak.path}", "error", leak.message, leak.fix)
    for name in files:
        if tracked.holds_settings(name) and name not in {leak.path for leak in found}:
            yield Check(
                f"keys in git: {name}", "warning", "Under version control, with nothing secret in it yet.",
                f"`git rm --cached {name}` and add it to .gitignore before somebody puts a key into it.",
            )  # fmt: skip
    if not found:
        yield Check("keys in git", "ok", f"none in {len(files)} files")


def _disk(settings: Settings) -> Iterator[Check]:
    free = shutil.disk_usage(settings.root).free
    good = free >= _LEAST_SPACE
    fix = "" if good else f"Free some space; {settings.state} can be made again."
    yield Check("disk space", "ok" if good else "warning", f"{free / (1 << 30):.1f} GB free", fix)


def _databases(settings: Settings) -> Iterator[Check]:
    for path in sorted(settings.state.rglob("*.db")):
        with path.open("rb") as stream:
            start = stream.read(16)
        # One that nothing was written into yet is empty.
        if start not in (b"", b"SQLite format 3\0"):
            yield Check(
                f"database {path}", "error", "damaged: it is no SQLite database",
                "Restore it from a backup, or move it away: a new one is made, without what this one knew.",
            )  # fmt: skip


def _place(settings: Settings) -> Workplace:
    from notebooked_dagster.config import project_or_default
    from notebooked_dagster.resources import Workplace

    return Workplace(settings, project_or_default(settings.root))


def _mlflow(settings: Settings) -> Iterator[Check]:
    from notebooked_dagster.tracking.access import shown

    uri = _place(settings).tracking_uri
    if not uri.startswith(("http://", "https://")):
        yield Check("mlflow", "ok", shown(uri))
        return
    import httpx

    try:
        reply = httpx.get(f"{uri.rstrip('/')}/health", timeout=3)
        good, told = reply.is_success, f"answers {reply.status_code}"
    except httpx.HTTPError as problem:
        good, told = False, type(problem).__name__
    fix = "" if good else "Start the server, or correct `mlflow.tracking_uri` or MLFLOW_TRACKING_URI."
    yield Check("mlflow", "ok" if good else "error", f"{shown(uri)}: {told}", fix)


def _traces(settings: Settings) -> Iterator[Check]:
    from notebooked_dagster.core import tracing

    if not tracing.wanted():
        yield Check("traces", "ok", "off: no OTEL_EXPORTER_OTLP_ENDPOINT")
    elif (problem := tracing.problem()) is not None:
        yield Check("traces", "warning", "wanted, and not made", problem)
    else:
        yield Check("traces", "ok", "sent by OTLP over HTTP")


def _port(settings: Settings) -> Iterator[Check]:
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", _UI_PORT)) == 0
    state = "taken: a Dagster UI may be running, or start it with -p" if taken else "free"
    yield Check(f"port {_UI_PORT}", "ok", state)


def _endpoints(settings: Settings) -> Iterator[Check]:
    from notebooked_dagster.definitions import project_experiments
    from notebooked_dagster.providers.base import EndpointStatus

    place = _place(settings)
    used = {spec.config.provider for spec in project_experiments(place)} if _declares(settings) else set()
    for name in sorted(used | {"local"}):
        try:
            found = place.provider(name).list_endpoints()
        except NotebookedError as problem:
            yield Check(f"provider {name}", "error", problem.message, problem.hint or "")
            continue
        for endpoint in found:
            good = endpoint.status is EndpointStatus.HEALTHY
            fix = "" if good else f"Deploy it again, or: notebooked delete-endpoint {endpoint.name}"
            message = f"{endpoint.status.value} {endpoint.message}".strip()
            yield Check(f"endpoint {endpoint.name}", "ok" if good else "warning", message, fix)


def _declares(settings: Settings) -> bool:
    return any(settings.assets.glob("*/defs.yaml")) or (settings.root / "config.yaml").is_file()


def _line(check: Check) -> str:
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    text = f"{click.style(f'{check.state:8}', fg=colours[check.state])}{check.name}: {check.message}"
    return f"{text}\n        {check.fix}" if check.fix else text
