"""PiProvider: trains as the provider ``local`` does, and serves on a device of ``edge.yaml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel

from notebooked_dagster.config.pi import PiOptions
from notebooked_dagster.core.settings import Settings
from notebooked_dagster.providers.arguments import checked_options
from notebooked_dagster.providers.base import Endpoint, Experiment
from notebooked_dagster.providers.local import LocalProvider

from .notes import Notes

if TYPE_CHECKING:
    from notebooked_dagster.serving.control import EndpointState

    from .fleet import FleetControl


class PiProvider(LocalProvider):
    """Train on this machine, serve on a device. The device needs no open port: the way to it is the launcher's, SSH.

    Args:
        state_dir: The project's state folder; ours is ``pi`` in it. ``Settings().state`` where None.
        device: The device that serves, where an experiment names none.
        project: The project's folder: its code is the release, and its ``edge.yaml`` or ``dagster.yaml`` lists the devices.
        health_timeout: Seconds a new version has to become healthy.
        patience: Seconds that a device may be out of reach while it makes a change.
        python: As of ``LocalProvider``, for training.
        pass_environment: As of ``LocalProvider``, for training: nothing of this process's environment reaches a device.
        tracking_uri: As of ``LocalProvider``.
        tracking_required: As of ``LocalProvider``.
        stop_grace: As of ``LocalProvider``.
        keep_jobs: As of ``LocalProvider``.
    """

    name: ClassVar[str] = "pi"
    _options: ClassVar[type[BaseModel]] = PiOptions

    def __init__(
        self,
        state_dir: Path | str | None = None,
        *,
        device: str | None = None,
        project: Path | str | None = None,
        health_timeout: float = 180.0,
        patience: float = 60.0,
        python: str | None = None,
        pass_environment: Sequence[str] = (),
        tracking_uri: str | None = None,
        tracking_required: bool = False,
        stop_grace: float = 10.0,
        keep_jobs: int = 20,
    ) -> None:
        base = Path(state_dir).expanduser() if state_dir is not None else Settings().state
        super().__init__(
            base / "pi",
            python=python,
            pass_environment=pass_environment,
            tracking_uri=tracking_uri,
            tracking_required=tracking_required,
            stop_grace=stop_grace,
            keep_jobs=keep_jobs,
            health_timeout=health_timeout,
        )
        self._device = device
        self._project = Path(project) if project is not None else None
        self._patience = patience

    def deploy(
        self,
        experiment: Experiment,
        model_uri: str,
        endpoint_name: str,
        *,
        weight: int = 100,
        labels: Mapping[str, str] | None = None,
    ) -> Endpoint:
        """Bring a model to a device and serve it there; what the device served before serves until it is healthy."""
        options = checked_options(PiOptions, experiment.options).endpoint
        spec = self._deployment(experiment, model_uri, endpoint_name, options, weight, labels)
        return self._deployed(self._on(options.device), spec, experiment.name)

    def endpoint(self, endpoint_name: str) -> Endpoint:
        """One endpoint; its device alone is asked."""
        return self._endpoint(self._control.get(endpoint_name))

    @property
    def _control(self) -> FleetControl:
        return self._on(None)

    def _on(self, device: str | None) -> FleetControl:
        from .fleet import FleetControl

        project = self._project if self._project is not None else Settings().root
        return FleetControl(self.state, project, asked=device, default=self._device, patience=self._patience)

    def _deployed_uris(self) -> set[str]:
        # From our notes: a training asks no device.
        return {uri for note in Notes(self.state / "endpoints").all().values() for uri in note.models}

    def _endpoint(self, state: EndpointState) -> Endpoint:
        live = super()._endpoint(state)
        note = Notes(self.state / "endpoints").get(state.name)
        place = f"On the loopback of {note.device}." if note is not None else ""
        return dataclasses.replace(live, message=live.message or place)
