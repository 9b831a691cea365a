"""Dagster resources: providers and tracking."""
