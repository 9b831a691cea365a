"""Azure Machine Learning as a provider: command jobs, managed online endpoints, their logs, and what they cost."""

from .provider import AzureProvider

__all__ = ["AzureProvider"]
