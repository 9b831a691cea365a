"""Dagster sensors: notebook changes, endpoint health, orphans."""
