"""Middleware everything else stands on: files, settings, logging. Standard library and pydantic only."""
