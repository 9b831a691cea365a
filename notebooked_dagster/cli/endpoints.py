"""``notebooked endpoints``, ``predict``, ``rollback`` and ``delete-endpoint``: asked of the provider directly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from notebooked_dagster.errors import ConfigError, DataError, DeploymentError, NotebookedError

from .options import session, shared_options
from .project import Project

if TYPE_CHECKING:
    from notebooked_dagster.providers.base import BaseProvider, Endpoint

_PROVIDER = click.option(
    "--provider", help="Whose endpoints; those of the experiments' own providers where not given."
)


@click.command("endpoints")
@_PROVIDER
@shared_options
def endpoints_command(provider: str | None) -> None:
    """List endpoints."""
    found = [
        endpoint for source in Project(session()).providers(provider) for endpoint in source.list_endpoints()
    ]
    session().emit([as_data(endpoint) for endpoint in found], lambda: _table(found))


@click.command("predict")
@click.argument("endpoint")
@click.option(
    "--data", metavar="JSON|@FILE|-", help="The request; the model's own input example where not given."
)
@_PROVIDER
@shared_options
def predict_command(endpoint: str, data: str | None, provider: str | None) -> None:
    """Ask an endpoint."""
    source = Project(session()).provider_of_endpoint(endpoint, provider)
    live = source.endpoint(endpoint)
    request = _request(data) if data is not None else _example(source, live)
    answer = source.predict(live.name, request)
    session().emit(answer, lambda: json.dumps(answer, ensure_ascii=False))


@click.command("rollback")
@click.argument("endpoint")
@click.option("--to", "version", metavar="VERSION", help="Another version that is kept, older or newer.")
@_PROVIDER
@shared_options
def rollback_command(endpoint: str, version: str | None, provider: str | None) -> None:
    """Serve the previous version again, or one of those that are kept; traffic moves when it is healthy."""
    project = Project(session())
    source = project.provider_of_endpoint(endpoint, provider)
    live = source.rollback(endpoint) if version is None else _to_version(source, endpoint, version)
    _follow(project, live)
    champion = next((item for item in live.deployments if item.role == "champion"), None)
    others = [item.version for item in live.deployments if not item.weight]
    session().emit(
        as_data(live),
        lambda: (
            f"{live.name} serves version {champion.version if champion else '?'} at {live.url}."
            + (
                f"\nkept   {', '.join(others)} (`notebooked rollback {live.name} --to {others[-1]}`)"
                if others
                else ""
            )
        ),
    )


@click.command("delete-endpoint")
@click.argument("endpoints", nargs=-1, metavar="[ENDPOINT]...")
@click.option("--all", "everything", is_flag=True, help="All endpoints.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_PROVIDER
@shared_options
def delete_endpoint_command(
    endpoints: tuple[str, ...], everything: bool, yes: bool, provider: str | None
) -> None:
    """Stop endpoints and remove what was made for them. Models stay."""
    project = Project(session())
    if everything:
        found = [
            (live.name, source) for source in project.providers(provider) for live in source.list_endpoints()
        ]
    else:
        found = [(name, project.provider_of_endpoint(name, provider)) for name in endpoints]
    names = [name for name, _ in found]
    if not names and not everything:
        raise click.UsageError("Name an endpoint, or --all.")
    if names and not yes:
        if session().json or not sys.stdin.isatty():
            raise click.UsageError(f"Nobody is there to ask whether to delete {', '.join(names)}: add --yes.")
        click.confirm(f"Delete {', '.join(names)}?", abort=True)
    left: dict[str, list[str]] = {}
    failed: NotebookedError | None = None
    for name, source in found:
        try:
            left[name] = source.delete_endpoint(name)
        except NotebookedError as error:
            # The others are still to go; the first failure is told at the end.
            failed = failed or error
    if failed is None or left:
        lines = [line for name, rest in left.items() for line in (f"{name} is deleted.", *rest)]
        session().emit({"deleted": left}, lambda: "\n".join(lines) or "There was none.")
    if failed is not None:
        raise failed


def _to_version(source: BaseProvider, endpoint: str, version: str) -> Endpoint:
    """Give one of the versions that are kept all of the traffic."""
    found = source.endpoint(endpoint).deployments
    if version not in {item.version for item in found}:
        kept = ", ".join(item.version for item in found)
        raise ConfigError(f"Endpoint {endpoint!r} keeps no version {version!r}.", hint=f"It keeps {kept}.")
    try:
        return source.traffic(endpoint, {version: 100})
    except DeploymentError:
        # In a cloud a version that does not serve only comes back as the one before, which is another call.
        if [item.version for item in found if item.role == "previous"] != [version]:
            raise
        return source.rollback(endpoint)


def _follow(project: Project, live: Endpoint) -> None:
    """The registry's alias ``champion`` goes back with the endpoint."""
    from notebooked_dagster.components.endpoint_asset import follow_champion
    from notebooked_dagster.tracking import Tracking

    for spec in project.experiments():
        if live.name in spec.config.endpoint_names:
            problem = follow_champion(spec, Tracking(project.place.tracking_uri, spec.config.name), live)
            if problem is not None:
                session().note(problem)


def as_data(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as plain data."""
    return {
        "name": endpoint.name,
        "provider": endpoint.provider,
        "url": endpoint.url,
        "status": endpoint.status.value,
        "message": endpoint.message,
        "deployments": [
            {
                "version": item.version,
                "role": item.role,
                "weight": item.weight,
                "status": item.status.value,
                "model_uri": item.model_uri,
                "created_at": item.created_at.isoformat() if item.created_at else None,
                "labels": dict(item.labels),
            }
            for item in endpoint.deployments
        ],
    }


def _table(found: list[Endpoint]) -> str | None:
    if not found:
        return "There is no endpoint. `notebooked deploy EXPERIMENT` makes one."
    from rich.table import Table

    table = Table("endpoint", "status", "URL", "serves", "kept")
    for endpoint in found:
        serving = [
            f"{item.version} ({item.role} {item.weight} %)" for item in endpoint.deployments if item.weight
        ]
        kept = [item.version for item in endpoint.deployments if not item.weight]
        table.add_row(endpoint.name, endpoint.status.value, endpoint.url, ", ".join(serving), ", ".join(kept))
    session().console().print(table)
    return None


def _request(text: str) -> Any:
    if text == "-":
        text, name = sys.stdin.read(), "standard input"
    elif text.startswith("@"):
        path, name = Path(text[1:]), text[1:]
        if not path.is_file():
            raise DataError(
                "This is a folder." if path.is_dir() else "There is no such file.",
                path=path,
                hint="Name a file with the request as JSON: --data @request.json; or give the JSON itself, or - for standard input.",
            )
        text = path.read_text(encoding="utf-8")
    else:
        name = "--data"
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(
            f"{name} is not JSON: {error}.", hint="Quote it for the shell, or use --data @file."
        ) from None


def _example(source: BaseProvider, endpoint: Endpoint) -> Any:
    """The input example that was saved with the model an endpoint serves."""
    example = source.input_example(endpoint)
    if example is None:
        raise DataError(
            f"The model behind {endpoint.name!r} has no input example.",
            hint="Say what to ask: --data '{\"inputs\": …}'.",
        )
    return example
