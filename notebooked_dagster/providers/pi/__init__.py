"""Devices at the edge: training here, serving on a device by our own model server, everything over SSH."""

from .provider import PiProvider

__all__ = ["PiProvider"]
