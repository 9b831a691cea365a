"""What the plans of all clouds have in common: what is sent, what it costs, and what is asked of data and endpoints."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from notebooked_dagster.config.values import is_secret
from notebooked_dagster.errors import EndpointNotFoundError, NotebookedError
from notebooked_dagster.providers.arguments import data_location, is_url
from notebooked_dagster.providers.base import BaseProvider, Experiment, PlanItem

if TYPE_CHECKING:
    from .provider import CloudProvider


class _Storage(Protocol):
    def uri(self, *parts: str) -> str:
        """The address of something in our folder."""


def sent_files(provider: CloudProvider, experiment: Experiment) -> dict[str, int]:
    """The size in bytes of each file that would be sent, and of the data where it is on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "package.tar.gz"
        provider.package(experiment, archive)
        with tarfile.open(archive) as opened:
            found = {member.name: member.size for member in opened.getmembers()}
    data = data_location(experiment)
    if data is not None and not is_url(data):
        path = Path(data)
        files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
        found[f"data: {data}"] = sum(item.stat().st_size for item in files)
    return found


def sent_data(storage: _Storage, data: str | None) -> str | None:
    """Where a job would find its data."""
    if data is None or is_url(data):
        return data
    return storage.uri("data", "<hash>", Path(data).name)


def masked(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables as they may be shown."""
    return {name: "***" if is_secret((name,)) else value for name, value in environment.items()}


def mask_container(container: dict[str, Any]) -> None:
    """Take the secrets out of a container's request, and the program that is its command."""
    container["command"] = [text if len(text) < 100 else "<container.py>" for text in container["command"]]
    for variable in container["env"]:
        if is_secret((variable["name"],)):
            variable["value"] = "***"


def price_facts(
    hour: float | None, count: int, limit: float, *, unknown: str, as_of: str, spot: bool = False
) -> Iterator[tuple[str, str | float]]:
    """What a training costs.

    Args:
        hour: USD an hour of one machine; None where nobody knows it.
        count: How many machines.
        limit: Seconds that the training may take.
        unknown: What is said where the price is not known.
        as_of: Where the price is from.
        spot: Whether the machines cost less than that.
    """
    if hour is None:
        yield "price", unknown
        return
    yield "price (USD/h)", round(hour * count, 4)
    yield "price as of", as_of
    if spot:
        yield "spot", "costs less than that; by how much changes from day to day"
    yield "at most (USD, at the time limit)", round(hour * count * limit / 3600, 2)


def python_item(where: str, python: tuple[int, ...] | None, hint: str) -> PlanItem:
    """What is said where a container or a runtime has another Python than the requirements were pinned on."""
    version = ".".join(map(str, python or ()))
    return PlanItem(
        "missing",
        f"The requirements were pinned on another Python than the {where}'s {version}; some may not install there.",
        f"Run Dagster on that Python, or name a {hint}.",
    )


def data_item(data: str, holds: Callable[[], bool]) -> PlanItem:
    """Whether the data is there."""
    try:
        there = holds()
    except NotebookedError as error:
        return PlanItem("unknown", error.message, error.hint or "")
    if there:
        return PlanItem("exists", f"The data {data}.")
    return PlanItem("missing", f"There is nothing at {data}.", "Put the data there, or correct data_path.")


def endpoint_item(provider: BaseProvider, name: str) -> PlanItem:
    """Whether the endpoint is there."""
    try:
        live = provider.endpoint(name)
    except EndpointNotFoundError:
        return PlanItem("new", f"The endpoint {name!r} would be made.")
    except NotebookedError as error:
        return PlanItem("unknown", f"The endpoint {name!r} cannot be looked at: {error.message}")
    return PlanItem("exists", f"The endpoint {name!r} ({live.status.value}) would get a new version.")
