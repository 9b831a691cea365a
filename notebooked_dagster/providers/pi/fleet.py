"""The endpoints of all devices as one: each request goes to the device that has the endpoint."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from notebooked_dagster.edge.devices import declared_fleet, launcher_state, names
from notebooked_dagster.edge.releases import make_release
from notebooked_dagster.edge.ssh import Link
from notebooked_dagster.errors import (
    ConfigError,
    DeploymentError,
    DeviceError,
    DeviceUnreachableError,
    EndpointNotFoundError,
    NotebookedError,
)
from notebooked_dagster.serving.control import DeploymentSpec, EndpointState, Status, check_name

from .device import DeviceControl, packed
from .notes import Note, Notes, Pending


class FleetControl:
    """Endpoints on devices.

    Args:
        state: The provider's state folder; the edge's own lies beside it.
        project: The project's folder, which says which devices there are and is what goes to them.
        asked: The device that a deployment is to go to; the one that has the endpoint, or the default, where None.
        default: The device of endpoints that nothing is noted of.
        patience: Seconds that a device may be out of reach while it makes a change.
    """

    def __init__(
        self, state: Path, project: Path, *, asked: str | None, default: str | None, patience: float
    ) -> None:
        self._notes = Notes(state / "endpoints")
        self._state = state
        self._project = project
        self._asked = asked
        self._default = default
        self._patience = patience

    def deploy(self, spec: DeploymentSpec) -> EndpointState:
        """Serve a model on the endpoint's device. A deployment whose answer never came is taken up, not made again."""
        check_name(spec.endpoint)
        before = self._notes.get(spec.endpoint)
        device = self._chosen(spec.endpoint, before)
        control = self._on(device)
        self._state.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="outgoing-", dir=self._state) as folder:
            sending = packed(spec, Path(folder) / "model")
            release = make_release(self._project, launcher_state(self._project, self._state.parent))
            known = before.pending if before is not None else None
            if known is None or known.of != sending.digest:
                known = Pending(of=sending.digest, token=secrets.token_hex(8))
            models = before.models if before is not None else []
            # Before it is asked for: this process may end before it knows the answer.
            self._notes.put(spec.endpoint, Note(device=device, models=models, pending=known))
            try:
                return self._noted(device, control.deploy(sending, release, known.token))
            except DeviceUnreachableError:
                raise
            except NotebookedError:
                if before is None:
                    self._notes.forget(spec.endpoint)
                else:
                    self._notes.put(spec.endpoint, before.model_copy(update={"pending": None}))
                raise

    def traffic(self, name: str, weights: Mapping[str, int]) -> EndpointState:
        """Set each version's share."""
        device = self._of(name)
        return self._noted(device, self._on(device).traffic(name, weights))

    def rollback(self, name: str) -> EndpointState:
        """Serve the previous champion again."""
        device = self._of(name)
        return self._noted(device, self._on(device).rollback(name))

    def ensure(self, name: str, *, patience: float | None = None) -> EndpointState:
        """Bring an endpoint back."""
        device = self._of(name)
        return self._noted(device, self._on(device).ensure(name, patience=patience))

    def delete(self, name: str) -> list[str]:
        """Remove an endpoint; what is left, as sentences."""
        try:
            left = self._on(self._of(name)).delete(name)
        except EndpointNotFoundError:
            # Its first deployment never came to pass, or another host was quicker: it may go to another device now.
            self._notes.forget(name)
            raise
        self._notes.forget(name)
        return left

    def get(self, name: str) -> EndpointState:
        """An endpoint as it stands now."""
        return self._on(self._of(name)).get(name)

    def list(self) -> list[EndpointState]:
        """All endpoints by name. A device that is away hides none of the others': what is noted of its own is told as degraded."""
        notes = self._notes.all()
        found: list[EndpointState] = []
        for device in sorted(
            {note.device for note in notes.values()} | ({self._default} if self._default else set())
        ):
            try:
                found += self._on(device).list()
            except (DeviceError, ConfigError) as error:
                noted = [name for name, note in notes.items() if note.device == device]
                if not noted:
                    raise
                found += [
                    EndpointState(name, "127.0.0.1", 0, Status.DEGRADED, (), error.message) for name in noted
                ]
        return sorted(found, key=lambda state: state.name)

    def predict(self, name: str, data: Any) -> Any:
        """Ask an endpoint."""
        return self._on(self._of(name)).predict(name, data)

    def logs(self, name: str, version: str | None = None) -> Iterator[str]:
        """What a version wrote."""
        return self._on(self._of(name)).logs(name, version)

    def _chosen(self, endpoint: str, note: Note | None) -> str:
        """Where a deployment goes: to another device than before only when it has gone from there."""
        device = self._asked or (note.device if note is not None else self._default)
        if device is None:
            raise ConfigError(
                "No device is named to serve on.",
                key="options.endpoint.device",
                hint="Name one of edge.yaml there, or for all experiments as `device` in the section `pi` of config.yaml.",
            )
        if note is not None and note.device != device:
            raise DeploymentError(
                f"Endpoint {endpoint!r} is on {note.device}, not on {device}.",
                hint=f"`notebooked delete-endpoint {endpoint} --provider pi` removes it there; then deploy again.",
            )
        return device

    def _of(self, endpoint: str) -> str:
        note = self._notes.get(endpoint)
        device = note.device if note is not None else self._default
        if device is None:
            raise EndpointNotFoundError(
                f"There is no endpoint {endpoint!r} on any device.",
                hint="`notebooked endpoints` lists what there is.",
            )
        return device

    def _on(self, name: str) -> DeviceControl:
        fleet = declared_fleet(self._project)
        device = fleet.get(name)
        if device is None:
            raise ConfigError(
                f"There is no device {name!r}; there are: {names(fleet.devices)}.",
                key="options.endpoint.device",
                hint="Declare it in edge.yaml, or correct the name, which may also be `device` in the section `pi` of config.yaml.",
            )
        link = Link(device, launcher_state(self._project, self._state.parent))
        return DeviceControl(device, link, patience=self._patience)

    def _noted(self, device: str, state: EndpointState) -> EndpointState:
        models = sorted({item.model_uri for item in state.versions})
        self._notes.put(state.name, Note(device=device, models=models))
        return state
