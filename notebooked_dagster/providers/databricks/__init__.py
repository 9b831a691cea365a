"""Databricks as a provider: one-time runs that train, Model Serving endpoints, their logs, and what they need."""

from .provider import DatabricksProvider

__all__ = ["DatabricksProvider"]
