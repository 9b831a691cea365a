"""What can be said of the provider ``local`` in an experiment's ``options``."""

from __future__ import annotations

from pydantic import Field

from .experiment import Strict, Text


class ServedEndpoint(Strict):
    """How our own server serves an endpoint, wherever it runs.

    Attributes:
        port: Of the endpoint; one that is free, and stays the same, where left out.
        health_timeout: Seconds a new version has to become healthy.
        predict_timeout: Seconds a prediction may take before it is answered 504.
        size_limit: Bytes that a request may have.
        memory_limit: Bytes that a server may use.
        keep: How many versions beside the one that answers are kept for rollback.
        keep_warm: Whether the one before goes on running, so that rolling back takes no time.
    """

    port: int | None = Field(default=None, ge=1, le=65535)
    health_timeout: float | None = Field(default=None, gt=0)
    predict_timeout: float = Field(default=60.0, gt=0)
    size_limit: int = Field(default=16 * 1024 * 1024, gt=0)
    memory_limit: int | None = Field(default=None, gt=0)
    keep: int = Field(default=3, ge=1)
    keep_warm: bool = False


class LocalEndpoint(ServedEndpoint):
    """How an endpoint is served on this machine.

    Attributes:
        host: The address it binds to; `local.serve_host` where left out, which is loopback by default.
    """

    host: Text | None = None


class LocalOptions(Strict):
    """An experiment's ``options``: what differs from the section ``local``."""

    endpoint: LocalEndpoint = LocalEndpoint()
