"""Dagster resources: providers and tracking."""

from .provider import ProviderResource, TrackingResource
from .workplace import Workplace

__all__ = ["ProviderResource", "TrackingResource", "Workplace"]
