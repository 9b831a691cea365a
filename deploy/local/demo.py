"""The demonstration behind ``make demo``: a sample notebook becomes a model and a live endpoint.

It does what a person would do at the shell, with the commands a person would type, and shows what they print.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console

from notebooked_dagster.core.settings import Settings
from notebooked_dagster.providers.base import EndpointStatus
from notebooked_dagster.providers.registry import get_provider

EXPERIMENT = "digits_classifier"
BIN = Path(sys.executable).parent
console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Run the job, ask the endpoint, say where to look. Returns the exit code."""
    settings = Settings()
    os.environ.setdefault("DAGSTER_HOME", str(settings.root))
    started = time.monotonic()
    command = ["dagster", "job", "execute", "-m", "notebooked_dagster.definitions", "-j", f"{EXPERIMENT}_job"]
    command += ["-c", "deploy/local/demo.yaml"]
    console.rule("[bold]notebook -> scripts -> model -> endpoint")
    console.print(f"$ {shlex.join(command)}\n")
    finished = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=settings.root, check=False)
    if finished.returncode != 0:
        console.print(f"\n[red]The job failed[/red] with exit code {finished.returncode}; its log is above.")
        return finished.returncode
    console.print(f"\nThe job took {time.monotonic() - started:.1f} s.")
    return ask_endpoint(settings)


def ask_endpoint(settings: Settings) -> int:
    """Send the endpoint the model's own input example and print what was made."""
    endpoint = get_provider("local", state_dir=settings.state).endpoint(EXPERIMENT)
    served = next(deployment for deployment in endpoint.deployments if deployment.weight)
    description = json.loads((Path(served.model_uri) / "model.json").read_text(encoding="utf-8"))
    request = settings.state / "demo_request.json"
    request.write_text(json.dumps(description["input_example"]), encoding="utf-8")
    reply = httpx.post(
        f"{endpoint.url}/invocations",
        content=request.read_bytes(),
        headers={"Content-Type": "application/json"},
        timeout=30,
    )
    relative = request.relative_to(settings.root) if request.is_relative_to(settings.root) else request
    console.rule("[bold]what was made")
    console.print(f"scripts     {settings.scripts / EXPERIMENT}")
    console.print(f"model       {served.model_uri}")
    for name, value in sorted(description.get("metrics", {}).items()):
        console.print(f"            {name} = {value:.4f}")
    console.print(f"endpoint    {endpoint.url}  ({endpoint.status.value}, version {served.version})")
    console.print(f"prediction  {reply.status_code} {reply.text[:200]}")
    console.rule("[bold]where to look")
    console.print("the asset graph   make ui            then http://127.0.0.1:3000")
    console.print(f"the MLflow runs   {mlflow_command(settings)}")
    console.print(
        f"a prediction      curl -s {endpoint.url}/invocations -H 'Content-Type: application/json' -d @{relative}"
    )
    console.print("the command       .venv/bin/notebooked status")
    return 0 if reply.is_success and endpoint.status is EndpointStatus.HEALTHY else 2


def mlflow_command(settings: Settings) -> str:
    """The command that opens the runs in MLflow's own pages."""
    uri = settings.tracking_uri or f"sqlite:///{settings.state / 'mlflow' / 'mlflow.db'}"
    return f".venv/bin/mlflow ui --backend-store-uri {uri} --port 5000"


if __name__ == "__main__":
    sys.exit(main())
