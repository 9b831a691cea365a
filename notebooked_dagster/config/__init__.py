"""The configuration files people write, as pydantic models whose messages name file, key and line."""
