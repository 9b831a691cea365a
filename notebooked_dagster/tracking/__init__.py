"""MLflow: runs, models, aliases, lineage. Importing this package does not import MLflow."""

from .access import local_uri
from .client import Tracking
from .models import RegisteredVersion

__all__ = ["RegisteredVersion", "Tracking", "local_uri"]
