"""Where parcels go: WebSocket, MQTT, OSC, Dagster. Each keeps its connection and opens it again when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Mapping
from typing import Any

import httpx

from notebooked_dagster.errors import ConfigError, PortError, ProviderError

from .addresses import Addresses
from .outlets import Parcel, as_data, as_json
from .packages import needed
from .rules import OscMessage, RunRequest, value_of

_PATIENCE = 10.0
TAG = "notebooked/edge-event"
_FIND = """
query Runs($tag: String!, $key: String!) {
  runsOrError(filter: {tags: [{key: $key, value: $tag}]}, limit: 1) {
    ... on Runs { results { runId } }
    ... on PythonError { message }
  }
}
"""
_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on PipelineNotFoundError { message }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on UnauthorizedError { message }
    ... on InvalidSubsetError { message }
  }
}
"""


class WebSockets:
    """A client of each URL that a rule names."""

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}

    async def deliver(self, parcel: Parcel) -> None:
        """Send an event. Raises OSError where the server is not there."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        url = parcel.what.url
        try:
            if url not in self._open:
                self._open[url] = await connect(url, open_timeout=_PATIENCE, max_queue=16)
            await self._open[url].send(as_json(parcel.event).decode())
        except (WebSocketException, OSError) as error:
            gone = self._open.pop(url, None)
            if gone is not None:
                await gone.close()
            raise OSError(f"{url}: {error}") from error

    async def close(self) -> None:
        """Hang up."""
        for client in self._open.values():
            await client.close()
        self._open.clear()


class Mqtt:
    """One client of one broker."""

    def __init__(
        self, host: str, port: int, username: str | None = None, password: str | None = None
    ) -> None:
        self._where = {"hostname": host, "port": port, "username": username, "password": password}
        self._client: Any = None

    async def deliver(self, parcel: Parcel) -> None:
        """Publish an event. Raises OSError where the broker is not there."""
        aiomqtt = needed("aiomqtt", "aiomqtt", "MQTT")
        try:
            if self._client is None:
                client = aiomqtt.Client(**self._where, timeout=_PATIENCE)
                await client.__aenter__()
                self._client = client
            await self._client.publish(
                parcel.what.topic, as_json(parcel.event), qos=parcel.what.qos, retain=parcel.what.retain
            )
        except aiomqtt.MqttError as error:
            await self.close()
            raise OSError(f"MQTT {self._where['hostname']}:{self._where['port']}: {error}") from error

    async def close(self) -> None:
        """Hang up."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                await client.__aexit__(None, None, None)


class Osc:
    """Datagrams; nobody says whether they arrive."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._addresses = Addresses()

    def prepare(self, peer: tuple[str, int]) -> None:
        """Ask for a peer's number now, so that its first message finds it."""
        self._addresses.get(peer)

    def send(self, parcel: Parcel) -> None:
        """Send an event. Raises OSError where the system refuses it, PortError while nobody knows where that is."""
        message: OscMessage = parcel.what
        self.send_raw(message.peer, _filled(message.address, parcel), arguments_of(parcel))

    def send_raw(self, peer: tuple[str, int], address: str, arguments: list[Any]) -> None:
        """Send a message of one's own. Raises PortError while nobody knows where that is."""
        number = self._addresses.get(peer)
        if number is None:
            raise PortError(
                f"The number of {peer[0]!r} is not known yet.", hint="Does `getent hosts` find the name?"
            )
        builder = needed("pythonosc.osc_message_builder", "python-osc", "OSC").OscMessageBuilder(address)
        for argument in arguments:
            builder.add_arg(argument)
        self._socket.sendto(builder.build().dgram, number)

    async def close(self) -> None:
        """Give the socket back."""
        self._addresses.close()
        self._socket.close()


def arguments_of(parcel: Parcel) -> list[Any]:
    """What OSC carries: the reading of a sensor; note and velocity, controller and value; the numbers of others."""
    event = parcel.event
    if event.message is None:
        return [float(event.value or 0.0)]
    named = [getattr(event.message, name, None) for name in ("note", "control")]
    return [number for number in (*named, value_of(event)) if number is not None]


def _filled(address: str, parcel: Parcel) -> str:
    for name, value in as_data(parcel.event).items():
        address = address.replace(f"{{{name}}}", str(value))
    return address


class Dagster:
    """Asks a Dagster webserver for runs.

    Args:
        url: Of the webserver.
        location: The code location.
        repository: In it.
        headers: Sent with each request, such as a token.
    """

    def __init__(
        self,
        url: str,
        location: str,
        repository: str = "__repository__",
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._selector = {"repositoryLocationName": location, "repositoryName": repository}
        self._url = url.rstrip("/") + "/graphql"
        self._client = httpx.AsyncClient(headers=dict(headers or {}), timeout=_PATIENCE, transport=transport)
        self.launched: deque[str] = deque(maxlen=100)

    async def launch(self, rule: str, request: RunRequest, mark: str) -> None:
        """Launch a run, once for each mark.

        A request whose answer was lost may have been carried out: the run is looked for by its tag first.

        Args:
            rule: Which rule asks.
            request: What for.
            mark: The request's own.

        Raises:
            OSError: The webserver is not there.
            ProviderError: It refuses.
        """
        if found := await self._find(mark):
            self.launched.append(found)
            return
        tags = {"notebooked/edge-rule": rule, **request.tags, TAG: mark}
        params = {
            "selector": {**self._selector, "jobName": request.job},
            "runConfigData": request.config,
            "mode": "default",
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        answer = (await self._ask(_LAUNCH, {"params": params}))["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            told = answer.get("message") or "; ".join(error["message"] for error in answer.get("errors", ()))
            raise ProviderError(f"Dagster does not run {request.job!r}: {told or answer['__typename']}")
        self.launched.append(answer["run"]["runId"])

    async def close(self) -> None:
        """Hang up."""
        await self._client.aclose()

    async def _find(self, mark: str) -> str | None:
        answer = await self._ask(_FIND, {"tag": mark, "key": TAG})
        found = answer["runsOrError"]
        if "results" not in found:
            # Its database is away, say. "There is none" would become a second run.
            raise OSError(f"{self._url} cannot look for the run: {found.get('message') or 'no results'}")
        return str(found["results"][0]["runId"]) if found["results"] else None

    async def _ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = await self._client.post(self._url, json={"query": query, "variables": variables})
        except httpx.InvalidURL as error:
            raise ConfigError(f"{self._url} is no URL: {error}.", key="dagster.url") from error
        except httpx.HTTPError as error:
            raise OSError(f"{self._url}: {type(error).__name__} {error}") from error
        if answer.status_code >= 500:
            raise OSError(f"{self._url} answers {answer.status_code}")
        if answer.status_code >= 400:
            raise ProviderError(f"{self._url} answers {answer.status_code}: {answer.text[:200]}")
        try:
            document = answer.json()
        except ValueError as error:
            # A proxy's page, or a redirection to one's login.
            raise OSError(
                f"{self._url} answers {answer.status_code} with no JSON; is `dagster.url` a Dagster webserver's?"
            ) from error
        if document.get("errors"):
            raise ProviderError(f"Dagster refuses the request: {document['errors'][0]['message']}")
        data: dict[str, Any] = document["data"]
        return data


async def within(seconds: float, *closing: Any) -> None:
    """Close several things, however long one of them would take."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(
            asyncio.gather(*(one.close() for one in closing), return_exceptions=True), seconds
        )
