"""The Dagster components that defs.yaml names."""
