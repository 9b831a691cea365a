"""MLflow: runs, models, aliases, lineage."""
