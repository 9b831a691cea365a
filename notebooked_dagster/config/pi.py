"""What can be said of the provider ``pi`` in an experiment's ``options``."""

from __future__ import annotations

from .experiment import Strict, Text
from .local import ServedEndpoint


class PiEndpoint(ServedEndpoint):
    """How an endpoint is served on a device: on its loopback, asked over SSH.

    Attributes:
        device: The device, by its name in edge.yaml; `pi.device` where left out.
    """

    device: Text | None = None


class PiOptions(Strict):
    """An experiment's ``options``: what differs from the section ``pi``."""

    endpoint: PiEndpoint = PiEndpoint()
