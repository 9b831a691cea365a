"""Turn the slices of a notebook into scripts that run without it."""
