"""Dagster resources: providers and tracking."""

from .provider import PROVIDER, TRACKING, ProviderResource, TrackingResource
from .workplace import Workplace

__all__ = ["PROVIDER", "TRACKING", "ProviderResource", "TrackingResource", "Workplace"]
