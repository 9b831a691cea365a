"""One device's endpoints, asked over SSH: what ``EndpointControl`` is for this machine's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from notebooked_dagster.core import tracing
from notebooked_dagster.edge.devices import Device
from notebooked_dagster.edge.endpoints import STATE, digests
from notebooked_dagster.edge.releases import Release, bring
from notebooked_dagster.edge.ssh import Link
from notebooked_dagster.errors import (
    DeviceError,
    DeviceUnreachableError,
    EndpointNotFoundError,
    NotebookedError,
    ProviderError,
    from_dict,
)
from notebooked_dagster.serving.control import DeploymentSpec, EndpointState, answered
from notebooked_dagster.serving.folders import checked_source, copy_model

# How long one request waits there for a change; then we ask again.
_ROUND = 15.0
_MARGIN = 60.0
_PREDICTION = 60.0
_PAUSE = 1.0
# Where the device has them, or what goes to it in another form.
_NOT_SENT = ("model_dir", "code_dir", "host", "python")
_ABSENT_MODULE = re.compile(r"No module named '([^'.]+)")


@dataclasses.dataclass(frozen=True)
class Sending:
    """A model on its way: a copy of its folder with the newest inference code, and what makes it what it is."""

    folder: Path
    files: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its content, for this endpoint."""
        content = hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()[:16]
        return f"{content}-{self.spec['endpoint']}"

    @property
    def digest(self) -> str:
        """Of what is asked for. Labels say who asks, which another attempt does under another name."""
        told = {name: value for name, value in self.spec.items() if name not in ("labels", "model_uri")}
        return hashlib.sha256(json.dumps([self.name, told], sort_keys=True).encode()).hexdigest()[:16]


class DeviceControl:
    """The endpoints of one device.

    Args:
        device: The device.
        link: The way to it.
        patience: Seconds that it may be out of reach while it makes a change.
    """

    def __init__(self, device: Device, link: Link, *, patience: float = 60.0) -> None:
        self.device = device
        self._link = link
        self._patience = patience

    def deploy(self, sending: Sending, release: Release, token: str) -> EndpointState:
        """Bring code, environment and model there, and serve it; asked again with the same token, its result.

        Raises:
            DeploymentError: It never became healthy; what was served before is still served.
            DeploymentConflictError: Another change of this endpoint is under way.
            DeviceUnreachableError: Whether it serves now is not known; the same token says it later.
        """
        try:
            bring(release, self.device, self._link)
            with self._link.exclusive():
                self._link.copy(sending.folder, f"serving/arrived/{sending.name}")
        except DeviceError as error:
            self._hint(error)
            raise
        using = {
            "release": release.name,
            "environment": release.environment(self.device),
            "python": self.device.python,
        }
        try:
            made = self._change(
                {
                    "do": "deploy", "name": sending.spec["endpoint"], "using": using,
                    "model": sending.name, "files": sending.files, "spec": sending.spec,
                },
                sending.spec["health_timeout"],
                token,
            )  # fmt: skip
        except NotebookedError as error:
            if (absent := _ABSENT_MODULE.search(str(error))) is not None:
                place = f"`{self.device.python}` of the device" if self.device.python else str(release.lock)
                error.details["missing"] = absent[1]
                error.hint = f"The model needs {absent[1]!r}, which {self.device.name} does not have: {place} has to carry it."
            raise
        return STATE.validate_python(made)

    def traffic(self, name: str, weights: Mapping[str, int]) -> EndpointState:
        """Set each version's share."""
        return STATE.validate_python(self._change({"do": "traffic", "name": name, "weights": dict(weights)}))

    def rollback(self, name: str) -> EndpointState:
        """Serve the previous champion again."""
        return STATE.validate_python(self._change({"do": "rollback", "name": name}))

    def ensure(self, name: str, *, patience: float | None = None) -> EndpointState:
        """Bring an endpoint back: after a crash, a kill, or a restart of the device."""
        return STATE.validate_python(self._change({"do": "ensure", "name": name, "patience": patience}))

    def delete(self, name: str) -> list[str]:
        """Remove an endpoint; what is left, as sentences."""
        left: list[str] = self._change({"do": "delete", "name": name})
        return left

    def get(self, name: str) -> EndpointState:
        """An endpoint as it stands now."""
        return STATE.validate_python(self._told({"do": "get", "name": name}))

    def list(self) -> list[EndpointState]:
        """All endpoints by name."""
        try:
            return [STATE.validate_python(item) for item in self._told({"do": "list", "name": ""})]
        except EndpointNotFoundError:
            # Nothing has ever been deployed there.
            return []

    def logs(self, name: str, version: str | None = None) -> Iterator[str]:
        """What a version's worker wrote."""
        yield from self._told({"do": "logs", "name": name, "version": version})

    def predict(self, name: str, data: Any) -> Any:
        """Ask an endpoint: the agent posts to its loopback and hands on what it is answered."""
        body = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        request = {
            "name": name,
            "body": body,
            "headers": {"content-type": "application/json", **tracing.headers()},
            "timeout": _PREDICTION,
        }
        header, content = self._asked("endpoint-ask", request, _PREDICTION + _MARGIN)
        if header["state"] == "lost":
            raise ProviderError(
                f"Endpoint {name!r} on {self.device.name} cannot be reached there: {header['message']}.",
                hint="`notebooked endpoints` shows what it does, `notebooked logs NAME --endpoint` why; deploying again brings it back.",
            )
        self._check(header, name)
        return answered(name, header["status"], header["reason"], content)

    def _told(self, request: Mapping[str, Any]) -> Any:
        header, content = self._asked("endpoint-tell", request, _MARGIN)
        return self._result(header, content, request["name"])

    def _change(self, request: Mapping[str, Any], slowest: float = 0.0, token: str | None = None) -> Any:
        """Ask for a change until its answer is here. By its token it is made once, however often it is asked for."""
        asked = {**request, "token": token or secrets.token_hex(8), "wait": _ROUND}
        silent: float | None = None
        until = time.monotonic() + 2 * slowest + 600
        while True:
            try:
                header, content = self._asked("endpoint-change", asked, _ROUND + _MARGIN)
                silent = None
            except DeviceUnreachableError:
                silent = silent or time.monotonic()
                if time.monotonic() - silent >= self._patience:
                    raise
                time.sleep(_PAUSE)
                continue
            if header["state"] != "pending":
                return self._result(header, content, request["name"])
            if time.monotonic() > until:
                raise ProviderError(
                    f"{self.device.name} is still at work on endpoint {request['name']!r}.",
                    hint="Ask again later: `notebooked endpoints`.",
                )

    def _asked(
        self, command: str, request: Mapping[str, Any], timeout: float
    ) -> tuple[Mapping[str, Any], bytes]:
        try:
            answer = self._link.ask(command, request, timeout=timeout)
        except DeviceError as error:
            self._hint(error)
            raise
        return answer.header, answer.body

    def _result(self, header: Mapping[str, Any], content: bytes, name: str) -> Any:
        self._check(header, name)
        found = json.loads(content)
        if "error" in found:
            raise from_dict(found["error"])
        return found["answer"]

    def _check(self, header: Mapping[str, Any], name: str) -> None:
        if header["state"] == "none":
            raise EndpointNotFoundError(
                f"There is no endpoint {name!r} on {self.device.name}.",
                hint="`notebooked endpoints` lists what there is.",
            )
        if header["state"] == "lost":
            raise ProviderError(
                f"What {self.device.name} was to do with its endpoints ended without a word: {header['message'] or 'no reason given'}",
                hint="What served before still serves, or `notebooked deploy` brings it back.",
            )

    def _hint(self, error: DeviceError) -> None:
        error.hint = error.hint or f"`notebooked edge doctor {self.device.name}` says how it is."


def packed(spec: DeploymentSpec, folder: Path) -> Sending:
    """A model as it goes to a device, copied to ``folder``. Raises DeploymentError where there is none, or none that can be served."""
    source = checked_source(spec)
    copy_model(source, folder, spec.code_dir)
    fields = {
        field.name: getattr(spec, field.name)
        for field in dataclasses.fields(spec)
        if field.name not in _NOT_SENT
    }
    sent = {
        **fields,
        "model_uri": spec.model_uri or str(source),
        "env": dict(spec.env),
        "labels": dict(spec.labels),
    }
    return Sending(folder, digests(folder), sent)
