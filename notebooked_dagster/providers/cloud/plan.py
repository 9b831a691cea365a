"""What the plans of all clouds have in common: what is sent, what it costs, and what is asked of data and endpoints."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notebooked_dagster.config.values import is_secret
from notebooked_dagster.errors import CredentialsError, EndpointNotFoundError, NotebookedError
from notebooked_dagster.providers.arguments import data_location, is_url
from notebooked_dagster.providers.base import BaseProvider, Experiment, PlanItem

from .storage import CloudStorage

if TYPE_CHECKING:
    from .provider import CloudProvider


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


def sent_data(storage: CloudStorage, data: str | None) -> str | None:
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


def asked(
    what: str,
    question: Callable[[], Any],
    *,
    translated: Callable[[str], AbstractContextManager[None]],
    code_of: Callable[[Exception], int],
    message_of: Callable[[Exception], str] = str,
) -> Any:
    """An answer, or what is to be said of there being none.

    Args:
        what: What is looked at, as the start of a sentence.
        question: Asks the cloud.
        translated: The cloud's errors as ours.
        code_of: The HTTP status of one of the cloud's own.
        message_of: Its words.
    """
    try:
        with translated(what):
            try:
                return question()
            except Exception as error:
                if code_of(error) in (403, 501):
                    return PlanItem("unknown", f"{what} cannot be looked at: {message_of(error)}")
                if code_of(error) == 404:
                    return PlanItem("missing", f"{what}: {message_of(error)}")
                raise
    except CredentialsError as error:
        return PlanItem("missing", f"The credentials cannot be used: {error.message}", error.hint or "")
    except NotebookedError as error:
        return PlanItem("unknown", error.message, error.hint or "")


def last_items(
    provider: CloudProvider,
    data: str | None,
    endpoint_name: str | None,
    path: Callable[[str], str] = str,
) -> Iterator[PlanItem]:
    """Whether the data is there, where it is in the cloud already, and the endpoint, where one is named.

    Args:
        provider: Whose they are.
        data: A file or folder of this machine, an address of the cloud's, or None.
        endpoint_name: The endpoint's.
        path: An address as the provider's storage takes it.
    """
    if data is not None and is_url(data):
        yield data_item(data, lambda: provider.storage.holds(path(data)))
    if endpoint_name is not None:
        yield endpoint_item(provider, endpoint_name)


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
