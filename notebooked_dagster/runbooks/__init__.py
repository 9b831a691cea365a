"""Run notebooks through papermill."""
