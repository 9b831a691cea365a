"""Put notebooks into production with Dagster.

Importing this package imports nothing heavy: no Dagster, no MLflow, no cloud SDK.
"""

__version__ = "0.1.0"
