"""A Databricks workspace of our own: the published REST API over HTTP, with volumes, runs and endpoints that run.

Jobs 2.2, Files 2.0, Unity Catalog 2.1 and serving-endpoints 2.0. What is asked and what is answered is held against the
dataclasses and methods of databricks-sdk: a field they do not know is an error. Runs are subprocesses that have the volumes
mounted; registered models are loaded from what was registered, and answer.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import httpx
import psutil
from databricks.sdk.service import catalog, compute, iam, jobs, serving
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.clouds.faulty import Faulty

from .containers import _KEPT, Training
from .databricks_models import Mismatch, asked, strict
from .vertex_containers import _PIP

TOKEN = "dapi-of-the-tests"
CATALOG, SCHEMA, VOLUME = "main", "ml", "files"
NODE_TYPES = ("i3.xlarge", "m5.large", "g5.xlarge")
# As Databricks runs a script: inside an interpreter of its own, with no file.
_DRIVER = (
    "import sys; path = sys.argv[1]; sys.argv = sys.argv[1:]; "
    "exec(compile(open(path).read(), path, 'exec'), {'__name__': '__main__'})"
)


class ApiError(Exception):
    """An error that the API answers with."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status, self.code, self.text = status, code, text


@dataclass
class Reply:
    """What is answered."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def reply(document: dict[str, Any], kind: Any = None) -> Reply:
    """A document; of a kind that the SDK knows."""
    return Reply(
        200,
        {"Content-Type": "application/json"},
        json.dumps(strict(document, kind) if kind else document).encode(),
    )


def no(what: str) -> ApiError:
    """There is no such thing."""
    return ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"{what} does not exist.")


@dataclass
class Run:
    """A run: what was submitted, and how it stands."""

    run_id: int
    token: str
    request: dict[str, Any]
    started: int
    state: str = "PENDING"
    result: str = ""
    code: str = ""
    words: str = ""
    ended: int = 0
    executed: int = 0
    output: dict[str, Any] = field(default_factory=dict)
    cancelling: threading.Event = field(default_factory=threading.Event)
    printed: list[str] = field(default_factory=list)


@dataclass
class Live:
    """An endpoint: the configuration that serves, the one that is to, and what runs."""

    name: str
    tags: dict[str, str]
    config: dict[str, Any] | None = None
    pending: dict[str, Any] | None = None
    progress: str = "NOT_UPDATING"
    version: int = 0
    containers: dict[str, Served] = field(default_factory=dict)


class _Zygote:
    """One process that has pandas loaded, for all tests of this one."""

    _process: subprocess.Popen[str] | None = None
    _lock = threading.Lock()

    @classmethod
    def spawn(cls, order: dict[str, Any]) -> int:
        with cls._lock:
            if cls._process is None:
                cls._process = subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("serve_databricks.py"))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
                atexit.register(cls._process.kill)
                assert cls._process.stdout is not None
                assert cls._process.stdout.readline().strip() == "READY"
            assert cls._process.stdin is not None
            assert cls._process.stdout is not None
            cls._process.stdin.write(json.dumps(order) + "\n")
            cls._process.stdin.flush()
            return int(cls._process.stdout.readline())


class Served:
    """One served model."""

    def __init__(self, model: Path, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self._port = folder / "log", folder / "port"
        order = {
            "model": str(model),
            "log": str(self.log),
            "port": str(self._port),
            "environment": environment,
        }
        self.pid = _Zygote.spawn(order)
        self.client = httpx.Client(timeout=60)

    def ready(self, patience: float) -> bool:
        """Whether it listens in time."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self._port.exists():
                return True
            if not psutil.pid_exists(self.pid):
                return False
            time.sleep(0.01)
        return False

    def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of a prediction."""
        answer = self.client.post(f"http://127.0.0.1:{self._port.read_text()}/invocations", content=body)
        return answer.status_code, answer.content

    def stop(self) -> None:
        """End it at once."""
        self.client.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Workspace(Faulty):
    """The workspace's state; ``DatabricksServer`` puts it on a port.

    Args:
        folder: For files and containers.
        pace: Seconds that a machine takes to start.
        grace: Seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, folder: Path, pace: float, grace: float) -> None:
        self.folder, self.pace, self.grace = folder, pace, grace
        self.root = folder / "root"
        (self.root / "Volumes" / CATALOG / SCHEMA / VOLUME).mkdir(parents=True)
        super().__init__()
        self.runs: dict[int, Run] = {}
        self.tokens: dict[str, int] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, Live] = {}
        self.no_capacity: set[str] = set()
        self.denied: set[str] = set()
        self.running: list[Any] = []
        self.patience = 20.0
        self.violations: list[str] = []
        # What was said of versions of models, for the test that holds it against MLflow's own messages.
        self.registered: list[tuple[str, dict[str, Any]]] = []
        self._turn: dict[str, int] = {}

    # Runs

    def submit_run(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        asked(body, jobs.JobsAPI.submit)
        token = body.get("idempotency_token", "")
        if len(token) > 64:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", "idempotency_token has at most 64 characters.")
        with self.lock:
            if token in self.tokens:
                run_id = self.tokens[token]
                if run_id not in self.runs:
                    raise ApiError(
                        400,
                        "INVALID_PARAMETER_VALUE",
                        f"The run {run_id} of the idempotency token {token} has been deleted.",
                    )
                return reply({"run_id": run_id}, jobs.SubmitRunResponse)
            (task,) = body["tasks"]
            cluster = task.get("new_cluster")
            if cluster is None and "environment_key" not in task:
                raise ApiError(400, "INVALID_PARAMETER_VALUE", "The task has no compute.")
            if cluster is not None and cluster.get("node_type_id") not in NODE_TYPES:
                raise ApiError(
                    400,
                    "INVALID_PARAMETER_VALUE",
                    f"Node type {cluster.get('node_type_id')} is not supported.",
                )
            run_id = 10**9 + len(self.tokens)
            run = Run(run_id, token, body, _now())
            self.runs[run_id] = run
            self.tokens[token] = run_id
        threading.Thread(target=self._train, args=(run,), daemon=True).start()
        return reply({"run_id": run_id}, jobs.SubmitRunResponse)

    def get_run(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        return reply(self._run_document(self._run(query["run_id"])), jobs.Run)

    def list_runs(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        assert query["run_type"] == "SUBMIT_RUN"
        size, start = int(query.get("limit", 20)), int(query.get("page_token") or 0)
        with self.lock:
            found = [run for run in self.runs.values() if run.started >= int(query.get("start_time_from", 0))]
            found.sort(key=lambda run: run.run_id, reverse=True)
            page = [self._run_document(run) for run in found[start : start + size]]
        more = {"has_more": True, "next_page_token": str(start + size)} if start + size < len(found) else {}
        return reply({"runs": page, **more}, jobs.ListRunsResponse)

    def get_run_output(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        run = self._run(str(int(query["run_id"]) - 500))
        return reply(
            {"metadata": self._run_document(run), "logs": "\n".join(run.printed), **run.output},
            jobs.RunOutput,
        )

    def cancel_run(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        asked(body, jobs.JobsAPI.cancel_run)
        self._run(str(body["run_id"])).cancelling.set()
        return reply({})

    def delete_run(self, run_id: int) -> None:
        """As somebody does it in the UI."""
        del self.runs[run_id]

    def _run(self, run_id: str) -> Run:
        found = self.runs.get(int(run_id))
        if found is None:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"Run {run_id} does not exist.")
        return found

    def _run_document(self, run: Run) -> dict[str, Any]:
        status: dict[str, Any] = {"state": run.state}
        state: dict[str, Any] = {"life_cycle_state": run.state, "user_cancelled_or_timedout": False}
        if run.code:
            kind = "SUCCESS" if run.code == "SUCCESS" else "CLIENT_ERROR"
            status["termination_details"] = {"code": run.code, "type": kind, "message": run.words}
            state.update({"result_state": run.result, "state_message": run.words})
        submitted = run.request["tasks"][0]
        known = ("task_key", "spark_python_task", "new_cluster", "environment_key")
        task = {key: submitted[key] for key in known if key in submitted}
        task.update(
            {
                "run_id": run.run_id + 500,
                "setup_duration": 10,
                "execution_duration": run.executed,
                "state": state,
                "status": status,
            }
        )
        return {
            "run_id": run.run_id,
            "run_name": run.request["run_name"],
            "run_type": "SUBMIT_RUN",
            "run_page_url": f"https://workspace.test/#job/1/run/{run.run_id}",
            "start_time": run.started,
            "end_time": run.ended,
            "state": state,
            "status": status,
            "tasks": [task],
        }

    def _end(self, run: Run, result: str, code: str, words: str = "") -> None:
        with self.lock:
            run.ended = _now()
            run.result, run.code, run.words = result, code, words
            run.state = "TERMINATED"

    def _train(self, run: Run) -> None:
        try:
            self._train_on_a_cluster(run)
        except Exception as error:
            self._end(run, "FAILED", "INTERNAL_ERROR", f"Unexpected: {error!r}")

    def _train_on_a_cluster(self, run: Run) -> None:
        time.sleep(self.pace)
        task = run.request["tasks"][0]
        cluster = task.get("new_cluster", {})
        if cluster.get("node_type_id") in self.no_capacity:
            return self._end(
                run,
                "FAILED",
                "CLUSTER_ERROR",
                "Cluster 1121-1 was terminated. Reason: AWS_INSUFFICIENT_INSTANCE_CAPACITY_FAILURE (CLOUD_FAILURE). "
                "We currently do not have sufficient capacity in the Availability Zone you requested.",
            )
        if run.cancelling.is_set():
            return self._end(run, "CANCELED", "USER_CANCELED", "Run cancelled.")
        base = self.folder / "runs" / str(run.run_id)
        (base / "code").mkdir(parents=True)
        (base / "site").mkdir()
        (base / "site" / "pip.py").write_text(_PIP)
        python_task = task["spark_python_task"]
        environment = {
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            "PYTHONPATH": str(base / "site"),
            "DATABRICKS_RUNTIME_VERSION": "15.4",
            "NOTEBOOKED_VOLUMES_ROOT": str(self.root),
            "NOTEBOOKED_LOG_EVERY": "0.05",
            **cluster.get("spark_env_vars", {}),
        }
        program = str(self.root) + python_task["python_file"]
        began = time.time()
        with self.lock:
            run.state = "RUNNING"
        container = Training(
            base, ["-c", _DRIVER, program, *python_task["parameters"]], environment, run.printed.append
        )
        self.running.append(container)
        limit = run.request.get("timeout_seconds") or 10**9
        while (code := container.wait(0.03)) is None:
            late = time.time() - began > limit
            if late or run.cancelling.is_set():
                run.state = "TERMINATING"
                container.stop(self.grace)
                run.executed = int((time.time() - began) * 1000)
                if late:
                    return self._end(run, "TIMEDOUT", "CANCELED", "The run timed out.")
                return self._end(run, "CANCELED", "USER_CANCELED", "Run cancelled by user@example.com.")
        run.executed = int((time.time() - began) * 1000)
        if code == 0:
            return self._end(run, "SUCCESS", "SUCCESS")
        if code < 0:
            return self._end(run, "FAILED", "DRIVER_ERROR", "The spark driver has stopped unexpectedly.")
        run.output = {"error": f"SystemExit: {code}", "error_trace": "\n".join(run.printed[-3:])}
        return self._end(run, "FAILED", "RUN_EXECUTION_ERROR", "Workload failed, see run output for details")

    # Files

    def files(self, verb: str, path: str, query: dict[str, str], body: bytes) -> Reply:
        place = self._place(path)
        if verb == "PUT":
            if not place.parent.is_dir():
                raise ApiError(404, "NOT_FOUND", f"The parent directory of {path} does not exist.")
            if place.exists() and query.get("overwrite") != "true":
                raise ApiError(409, "ALREADY_EXISTS", f"The file {path} being created already exists.")
            half = place.with_name(f".{place.name}.{threading.get_ident()}")
            half.write_bytes(body)
            half.rename(place)
            return Reply(204)
        if not place.is_file():
            raise ApiError(404, "NOT_FOUND", f"The file {path} is not found.")
        if verb == "DELETE":
            place.unlink()
            return Reply(204)
        headers = {
            "Content-Type": "application/octet-stream",
            "Last-Modified": formatdate(place.stat().st_mtime, usegmt=True),
        }
        return Reply(200, headers, place.read_bytes())

    def directories(self, verb: str, path: str, query: dict[str, str], body: bytes) -> Reply:
        place = self._place(path)
        if verb == "PUT":
            place.mkdir(parents=True, exist_ok=True)
            return Reply(204)
        if not place.is_dir():
            raise ApiError(404, "NOT_FOUND", f"The directory {path} is not found.")
        if verb == "HEAD":
            return Reply(200)
        if verb == "DELETE":
            if any(place.iterdir()):
                raise ApiError(400, "BAD_REQUEST", f"The directory {path} is not empty.")
            place.rmdir()
            return Reply(204)
        entries = []
        for item in sorted(place.iterdir()):
            if item.name.startswith("."):
                continue
            entry: dict[str, Any] = {
                "path": f"{path.rstrip('/')}/{item.name}",
                "name": item.name,
                "is_directory": item.is_dir(),
            }
            if item.is_file():
                entry["file_size"] = item.stat().st_size
            entries.append(entry)
        size, start = 3, int(query.get("page_token") or 0)
        more = {"next_page_token": str(start + size)} if start + size < len(entries) else {}
        return reply({"contents": entries[start : start + size], **more})

    def _place(self, path: str) -> Path:
        if path.startswith("/Models/"):
            *name, version = path.split("/")[2:6]
            found = self.models.get(".".join(name), {}).get("versions", {}).get(version)
            if found is None or found["status"] != "PENDING_REGISTRATION":
                raise ApiError(403, "PERMISSION_DENIED", f"{path} cannot be written.")
        elif not path.startswith("/Volumes/") or ".." in path.split("/"):
            raise ApiError(400, "BAD_REQUEST", f"{path} is no path.")
        elif not (self.root / "/".join(path.split("/")[1:5])).is_dir():
            raise ApiError(404, "NOT_FOUND", f"The volume of {path} does not exist.")
        return self.root / path.lstrip("/")

    # Models

    def get_model(self, body: dict[str, Any], query: dict[str, str], name: str) -> Reply:
        return reply(self._model(name)["info"], catalog.RegisteredModelInfo)

    def create_model(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        asked(body, catalog.RegisteredModelsAPI.create)
        name = f"{body['catalog_name']}.{body['schema_name']}.{body['name']}"
        if not re.fullmatch(r"[a-z0-9_]+", body["name"]):
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"{body['name']} is no name.")
        with self.lock:
            if name in self.models:
                raise ApiError(409, "RESOURCE_ALREADY_EXISTS", f"Model {name} already exists.")
            self.models[name] = {"info": {**body, "full_name": name}, "versions": {}, "count": 0}
        return reply(self.models[name]["info"], catalog.RegisteredModelInfo)

    def delete_model(self, body: dict[str, Any], query: dict[str, str], name: str) -> Reply:
        self._model(name)
        del self.models[name]
        shutil.rmtree(self.root / "Models" / name.replace(".", "/"), ignore_errors=True)
        return reply({})

    def list_versions(self, body: dict[str, Any], query: dict[str, str], name: str) -> Reply:
        found = list(self._model(name)["versions"].values())
        return reply({"model_versions": found}, catalog.ListModelVersionsResponse)

    def delete_version(self, body: dict[str, Any], query: dict[str, str], name: str, number: str) -> Reply:
        if self._model(name)["versions"].pop(number, None) is None:
            raise no(f"Model version {name} {number}")
        return reply({})

    def _model(self, name: str) -> dict[str, Any]:
        if name not in self.models:
            raise no(f"Registered model {name}")
        return self.models[name]

    def create_version(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        self.registered.append(("CreateModelVersion", body))
        with self.lock:
            model = self._model(body["name"])
            model["count"] += 1
            number = str(model["count"])
            model["versions"][number] = {
                "catalog_name": model["info"]["catalog_name"],
                "schema_name": model["info"]["schema_name"],
                "model_name": model["info"]["name"],
                "version": model["count"],
                "source": body["source"],
                "status": "PENDING_REGISTRATION",
            }
        made = {
            "name": body["name"],
            "version": number,
            "source": body["source"],
            "status": "PENDING_REGISTRATION",
        }
        self.registered.append(("CreateModelVersionResponse", {"model_version": made}))
        return reply({"model_version": made})

    def finalize_version(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        self.registered.append(("FinalizeModelVersion", body))
        found = self._model(body["name"])["versions"].get(body["version"])
        if found is None:
            raise no(f"Model version {body['name']} {body['version']}")
        if not (self.files_of(body["name"], body["version"]) / "MLmodel").is_file():
            raise ApiError(400, "INVALID_PARAMETER_VALUE", "The version has no MLmodel file.")
        found["status"] = "READY"
        return reply({})

    def files_of(self, name: str, version: str) -> Path:
        """Where the files of a registered version lie."""
        return self.root / "Models" / name.replace(".", "/") / version

    # Endpoints

    def create_endpoint(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        asked(body, serving.ServingEndpointsAPI.create)
        name = body["name"]
        with self.lock:
            if name in self.endpoints:
                raise ApiError(400, "RESOURCE_ALREADY_EXISTS", f"Endpoint with name '{name}' already exists.")
            live = Live(name, {tag["key"]: tag["value"] for tag in body.get("tags", [])})
            self._begin(live, body["config"])
            self.endpoints[name] = live
        return self._endpoint_reply(live)

    def update_config(self, body: dict[str, Any], query: dict[str, str], name: str) -> Reply:
        asked({"name": name, **body}, serving.ServingEndpointsAPI.update_config)
        with self.lock:
            live = self._endpoint(name)
            if live.progress == "IN_PROGRESS":
                raise ApiError(
                    409, "RESOURCE_CONFLICT", f"Endpoint {name} is currently being updated, try again later."
                )
            self._begin(live, body)
        return self._endpoint_reply(live)

    def get_endpoint(self, body: dict[str, Any], query: dict[str, str], name: str) -> Reply:
        return self._endpoint_reply(self._endpoint(name))

    def list_endpoints(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        found = []
        for live in self.endpoints.values():
            document = self._endpoint_document(live)
            served = (document.get("config") or {}).get("served_entities", [])
            kept = ("name", "entity_name", "entity_version")
            document["config"] = {"served_entities": [{k: item[k] for k in kept} for item in served]}
            document.pop("pending_config", None)
            found.append(document)
        return reply({"endpoints": found}, serving.ListEndpointsResponse)

    def delete_endpoint(self, body: dict[str, Any], query: dict[str, str], name: str) -> Reply:
        live = self._endpoint(name)
        del self.endpoints[name]
        for container in live.containers.values():
            container.stop()
        return reply({})

    def patch_tags(self, body: dict[str, Any], query: dict[str, str], name: str) -> Reply:
        asked({"name": name, **body}, serving.ServingEndpointsAPI.patch)
        live = self._endpoint(name)
        live.tags.update({tag["key"]: tag["value"] for tag in body.get("add_tags", [])})
        for key in body.get("delete_tags", []):
            live.tags.pop(key, None)
        return reply({"tags": [{"key": k, "value": v} for k, v in live.tags.items()]}, serving.EndpointTags)

    def build_logs(self, body: dict[str, Any], query: dict[str, str], name: str, served: str) -> Reply:
        self._endpoint(name)
        return reply({"logs": f"Building {served}\n"}, serving.BuildLogsResponse)

    def endpoint_logs(self, body: dict[str, Any], query: dict[str, str], name: str, served: str) -> Reply:
        self._endpoint(name)
        log = self._served_folder(name, served) / "log"
        if not log.exists():
            raise no(f"Log of {served}")
        return reply({"logs": log.read_text()}, serving.ServerLogsResponse)

    def invoke(self, name: str, served: str | None, body: bytes) -> Reply:
        live = self._endpoint(name)
        if live.config is None:
            raise ApiError(400, "BAD_REQUEST", f"Endpoint {name} is not ready.")
        if served is None:
            served = self._pick(live)
        container = live.containers.get(served)
        if container is None:
            raise no(f"Served model {served}")
        status, answer = container.ask(body)
        return Reply(status, {"Content-Type": "application/json", "served-model-name": served}, answer)

    def _pick(self, live: Live) -> str:
        """Which served model is next, so that each gets its share of any hundred."""
        assert live.config is not None
        turn = self._turn[live.name] = self._turn.get(live.name, -1) + 1
        at = (turn * 37) % 100
        for route in live.config["traffic_config"]["routes"]:
            at -= route["traffic_percentage"]
            if at < 0:
                return str(route["served_entity_name"])
        raise AssertionError

    def _endpoint(self, name: str) -> Live:
        if name not in self.endpoints:
            raise no(f"Endpoint {name}")
        return self.endpoints[name]

    def _begin(self, live: Live, config: dict[str, Any]) -> None:
        routes = config["traffic_config"]["routes"]
        served = {item["name"] for item in config["served_entities"]}
        if sum(route["traffic_percentage"] for route in routes) != 100:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", "The traffic percentages have to sum up to 100.")
        if {route["served_entity_name"] for route in routes} - served:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", "A route names no served entity.")
        for item in config["served_entities"]:
            found = self._model(item["entity_name"])["versions"].get(item["entity_version"])
            if found is None or found["status"] != "READY":
                raise no(f"Model version {item['entity_name']} {item['entity_version']}")
        live.version += 1
        live.progress = "IN_PROGRESS"
        entities = [
            {**item, "state": {"deployment": "DEPLOYMENT_CREATING", "deployment_state_message": ""}}
            for item in config["served_entities"]
        ]
        live.pending = {
            "served_entities": entities,
            "traffic_config": config["traffic_config"],
            "config_version": live.version,
        }
        threading.Thread(target=self._update, args=(live, live.pending), daemon=True).start()

    def _served_folder(self, endpoint: str, served: str) -> Path:
        return self.folder / "served" / endpoint / served

    def _update(self, live: Live, config: dict[str, Any]) -> None:
        time.sleep(self.pace)
        started: dict[str, Served] = {}
        for item in config["served_entities"]:
            name, state = item["name"], item["state"]
            if name not in live.containers:
                folder = self._served_folder(live.name, name)
                shutil.rmtree(folder, ignore_errors=True)
                model = self.files_of(item["entity_name"], item["entity_version"])
                started[name] = Served(model, folder, item.get("environment_vars", {}))
                if not started[name].ready(self.patience):
                    state["deployment"] = "DEPLOYMENT_FAILED"
                    state["deployment_state_message"] = (
                        "Failed to deploy: the model server did not become ready."
                    )
                    break
            state["deployment"] = "DEPLOYMENT_READY"
        else:
            with self.lock:
                live.containers.update(started)
                live.config, live.pending, live.progress = config, None, "NOT_UPDATING"
                kept = {item["name"] for item in config["served_entities"]}
                for name in set(live.containers) - kept:
                    live.containers.pop(name).stop()
                if live.name not in self.endpoints:
                    for container in live.containers.values():
                        container.stop()
            return
        for container in started.values():
            container.stop()
        live.progress = "UPDATE_FAILED"

    def _endpoint_document(self, live: Live) -> dict[str, Any]:
        document: dict[str, Any] = {
            "name": live.name,
            "id": f"id-of-{live.name}",
            "state": {
                "ready": "READY" if live.config is not None else "NOT_READY",
                "config_update": live.progress,
            },
            "tags": [{"key": key, "value": value} for key, value in live.tags.items()],
        }
        if live.config is not None:
            document["config"] = live.config
        if live.pending is not None:
            document["pending_config"] = live.pending
        return json.loads(json.dumps(document))

    def _endpoint_reply(self, live: Live) -> Reply:
        with self.lock:
            return reply(self._endpoint_document(live), serving.ServingEndpointDetailed)

    # What a plan asks

    def me(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        return reply({"id": "1", "userName": "ci@example.com"}, iam.User)

    def get_volume(self, body: dict[str, Any], query: dict[str, str], name: str) -> Reply:
        if name != f"{CATALOG}.{SCHEMA}.{VOLUME}":
            raise no(f"Volume {name}")
        return reply({"full_name": name, "name": VOLUME, "volume_type": "MANAGED"}, catalog.VolumeInfo)

    def effective(self, body: dict[str, Any], query: dict[str, str], kind: str, name: str) -> Reply:
        every = ("USE_CATALOG", "USE_SCHEMA", "READ_VOLUME", "WRITE_VOLUME", "CREATE_MODEL")
        privileges = [{"privilege": item} for item in every if item not in self.denied]
        found = [{"principal": query["principal"], "privileges": privileges}]
        return reply({"privilege_assignments": found}, catalog.EffectivePermissionsList)

    def node_types(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        found = [
            {
                "node_type_id": name,
                "memory_mb": 8192,
                "num_cores": 4.0,
                "description": name,
                "instance_type_id": name,
                "category": "General Purpose",
            }
            for name in NODE_TYPES
        ]
        return reply({"node_types": found}, compute.ListNodeTypesResponse)

    def spark_versions(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        keys = ("14.3.x-scala2.12", "15.4.x-scala2.12", "16.4.x-scala2.12")
        return reply(
            {"versions": [{"key": key, "name": key} for key in keys]}, compute.GetSparkVersionsResponse
        )

    def get_policy(self, body: dict[str, Any], query: dict[str, str]) -> Reply:
        if query["policy_id"] != "POLICY1":
            raise no(f"Policy {query['policy_id']}")
        return reply({"policy_id": "POLICY1", "name": "jobs"}, compute.Policy)

    def close(self) -> None:
        """End whatever runs."""
        for container in self.running:
            with contextlib.suppress(Exception):
                container.stop(0)
        for live in self.endpoints.values():
            for served in live.containers.values():
                served.stop()


_UC, _SERVING = "/api/2.1/unity-catalog", "/api/2.0/serving-endpoints"
_REGISTRY = "/api/2.0/mlflow/unity-catalog/model-versions"
_ROUTES: list[tuple[str, str, str]] = [
    ("POST", "/api/2.2/jobs/runs/submit", "submit_run"),
    ("GET", "/api/2.2/jobs/runs/get", "get_run"),
    ("GET", "/api/2.2/jobs/runs/list", "list_runs"),
    ("GET", "/api/2.2/jobs/runs/get-output", "get_run_output"),
    ("POST", "/api/2.2/jobs/runs/cancel", "cancel_run"),
    ("POST", f"{_UC}/models", "create_model"),
    ("GET", f"{_UC}/models/([^/]+)", "get_model"),
    ("DELETE", f"{_UC}/models/([^/]+)", "delete_model"),
    ("GET", f"{_UC}/models/([^/]+)/versions", "list_versions"),
    ("DELETE", f"{_UC}/models/([^/]+)/versions/([^/]+)", "delete_version"),
    ("POST", f"{_REGISTRY}/create", "create_version"),
    ("POST", f"{_REGISTRY}/finalize", "finalize_version"),
    ("POST", _SERVING, "create_endpoint"),
    ("GET", _SERVING, "list_endpoints"),
    ("GET", f"{_SERVING}/([^/]+)", "get_endpoint"),
    ("DELETE", f"{_SERVING}/([^/]+)", "delete_endpoint"),
    ("PUT", f"{_SERVING}/([^/]+)/config", "update_config"),
    ("PATCH", f"{_SERVING}/([^/]+)/tags", "patch_tags"),
    ("GET", f"{_SERVING}/([^/]+)/served-models/([^/]+)/build-logs", "build_logs"),
    ("GET", f"{_SERVING}/([^/]+)/served-models/([^/]+)/logs", "endpoint_logs"),
    ("GET", "/api/2.0/preview/scim/v2/Me", "me"),
    ("GET", f"{_UC}/volumes/([^/]+)", "get_volume"),
    ("GET", f"{_UC}/effective-permissions/([^/]+)/([^/]+)", "effective"),
    ("GET", "/api/2.1/clusters/list-node-types", "node_types"),
    ("GET", "/api/2.1/clusters/spark-versions", "spark_versions"),
    ("GET", "/api/2.0/policies/clusters/get", "get_policy"),
]
_FILES = re.compile(r"/api/2\.0/fs/(files|directories)(/.*)")
_INVOKE = re.compile(r"/serving-endpoints/([^/]+)(?:/served-models/([^/]+))?/invocations")
_ERRORS = {
    "throttle": (
        429,
        "REQUEST_LIMIT_EXCEEDED",
        "Current request has to be retried in a moment, the rate was exceeded.",
    ),
    "error": (503, "TEMPORARILY_UNAVAILABLE", "The service at this path is temporarily unavailable."),
    "denied": (403, "PERMISSION_DENIED", "User does not have WRITE VOLUME on Volume 'main.ml.files'."),
    "expired": (
        401,
        "UNAUTHENTICATED",
        "Credential was not sent or was of an unsupported type for this API.",
    ),
    "quota": (
        429,
        "QUOTA_EXCEEDED",
        "The quota for the maximum number of active runs of this workspace is reached.",
    ),
}


def _now() -> int:
    return int(time.time() * 1000)


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *args: Any) -> None:
        pass


class _Lost(Exception):
    """The connection ends without a reply."""


class DatabricksServer:
    """A workspace on one port of this machine."""

    def __init__(self, folder: Path, *, pace: float = 0.03, grace: float = 0.5) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.workspace = Workspace(folder, pace, grace)
        self._server: BaseWSGIServer = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """End it and whatever runs in it."""
        self.workspace.close()
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes] | list[bytes]:
        raw = environ.get("RAW_URI") or environ["REQUEST_URI"]
        path, _, text = raw.partition("?")
        query = dict(parse_qsl(text, keep_blank_values=True))
        if environ.get("HTTP_TRANSFER_ENCODING", "") == "chunked":
            body = environ["wsgi.input"].read()
        else:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        allowed = environ.get("HTTP_AUTHORIZATION") == f"Bearer {TOKEN}"
        try:
            answer = self._dispatch(environ["REQUEST_METHOD"], unquote(path), query, body, allowed)
        except _Lost:
            # Closed without a word, as a broken line does.
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError from None
        except Mismatch as error:
            self.workspace.violations.append(f"{environ['REQUEST_METHOD']} {path}: {error}")
            answer = _error(ApiError(400, "MALFORMED_REQUEST", str(error)))
        except ApiError as error:
            answer = _error(error)
        start(f"{answer.status} .", [*answer.headers.items(), ("Content-Length", str(len(answer.body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _dispatch(self, verb: str, path: str, query: dict[str, str], body: bytes, allowed: bool) -> Reply:
        name, act = self._operation(verb, path, query, body)
        with self.workspace.lock:
            self.workspace.calls.append(name)
        fault = self.workspace.fault(name)
        if fault == "drop":
            raise _Lost
        if fault in _ERRORS:
            raise ApiError(*_ERRORS[fault])
        if not allowed:
            raise ApiError(*_ERRORS["expired"])
        answer = act()
        if fault == "lost":
            raise _Lost
        return answer

    def _operation(
        self, verb: str, path: str, query: dict[str, str], body: bytes
    ) -> tuple[str, Callable[[], Reply]]:
        space = self.workspace
        if match := _FILES.fullmatch(path):
            kind, place = match[1], match[2]
            act = getattr(space, kind)
            return f"{verb} {kind}", lambda: act(verb, place, query, body)
        if (match := _INVOKE.fullmatch(path)) and verb == "POST":
            which = match
            return ("invoke" if which[2] is None else "invoke_served"), lambda: space.invoke(
                which[1], which[2], body
            )
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == verb:
                return name, partial(getattr(space, name), json.loads(body or b"{}"), query, *found.groups())
        raise ApiError(404, "ENDPOINT_NOT_FOUND", f"No API found for '{verb} {path}'.")


def _error(error: ApiError) -> Reply:
    document = {"error_code": error.code, "message": error.text}
    return Reply(error.status, {"Content-Type": "application/json"}, json.dumps(document).encode())
