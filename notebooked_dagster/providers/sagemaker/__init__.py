"""Amazon SageMaker as a provider: training jobs, endpoints, their logs, and what they cost."""

from .provider import SageMakerProvider

__all__ = ["SageMakerProvider"]
