"""A Kubernetes cluster as a provider: Jobs train, Deployments behind a Service serve."""

from .provider import KubernetesProvider

__all__ = ["KubernetesProvider"]
