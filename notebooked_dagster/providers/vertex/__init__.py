"""Google Vertex AI as a provider: training jobs, endpoints, their logs, and what they cost."""

from .provider import VertexProvider

__all__ = ["VertexProvider"]
