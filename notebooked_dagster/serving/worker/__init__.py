"""The process that holds one model version in memory and answers for it.

This package imports nothing of ``notebooked_dagster`` outside itself: it also runs in the Python of a training job's
own virtual environment, where only FastAPI, uvicorn, orjson, prometheus-client and the model's requirements are
installed. ``serving/server.py`` starts it by path.
"""
