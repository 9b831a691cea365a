"""A Vertex AI of our own: the published REST API over HTTP, with Cloud Storage, Cloud Logging, and containers that run.

What is asked and what is answered is held against the messages of google-cloud-aiplatform and google-cloud-logging: a field
they do not know is an error. Jobs, models and endpoints go through the states the API documents, take time, and fail as
told (``fail``); what a container prints is in Cloud Logging.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from google.cloud import aiplatform_v1 as api
from google.cloud.logging_v2.types import ListLogEntriesRequest, ListLogEntriesResponse
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2, json_format
from google.rpc import status_pb2
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.clouds.faulty import Faulty

from .containers import Training
from .gcs import Gcs, Reply
from .vertex_containers import ModelServer, argv, training_environment

PROJECT, NUMBER, REGION = "my-project", "123456789012", "europe-west4"
ACCOUNT = "trainer@my-project.iam.gserviceaccount.com"
_PARENT = rf"projects/(?:{PROJECT}|{NUMBER})/locations/{REGION}"
_MACHINES = re.compile(r"(n1|n2|e2|c2|g2|a2)-(standard|highmem|highcpu|highgpu)-\w+")
_DONE = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")


class ApiError(Exception):
    """An error that the API answers with."""

    def __init__(self, code: int, status: str, message: str) -> None:
        super().__init__(message)
        self.code, self.status, self.message = code, status, message

    def reply(self) -> Reply:
        """As the API says it."""
        error = {"code": self.code, "message": self.message, "status": self.status}
        return Reply(
            self.code,
            {"Content-Type": "application/json; charset=UTF-8"},
            json.dumps({"error": error}).encode(),
        )


def not_found(what: str) -> ApiError:
    """There is no such thing."""
    return ApiError(404, "NOT_FOUND", f"{what} is not found.")


@dataclass
class Job:
    """A training job: its message, and what the service knows beside it."""

    message: Any
    cancelling: threading.Event = field(default_factory=threading.Event)

    @property
    def state(self) -> str:
        """The state's name."""
        return api.JobState(self.message.state).name


@dataclass
class Live:
    """An endpoint: its message, and what runs."""

    message: Any
    containers: dict[str, ModelServer] = field(default_factory=dict)
    busy: str = ""


class Vertex(Faulty):
    """The service's state; ``GcpServer`` puts it on a port.

    Args:
        folder: For the containers.
        gcs: Cloud Storage, mounted in training containers.
        pace: Seconds that a machine takes to start, and that an operation takes at least.
        grace: Seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, folder: Path, gcs: Gcs, pace: float, grace: float) -> None:
        self.folder, self.gcs, self.pace, self.grace = folder, gcs, pace, grace
        self.url = ""
        super().__init__()
        self.jobs: dict[str, Job] = {}
        self.models: dict[str, Any] = {}
        self.endpoints: dict[str, Live] = {}
        self.operations: dict[str, Any] = {}
        self.logs: list[dict[str, Any]] = []
        self.no_capacity: set[str] = set()
        self.running: list[Any] = []
        self.patience = 20.0
        self._last = 0

    # Training

    def create_custom_job(self, request: Any) -> Any:
        job = api.CustomJob.pb(api.CustomJob())
        job.CopyFrom(request.custom_job)
        if not job.display_name:
            raise ApiError(400, "INVALID_ARGUMENT", "The display name of the CustomJob is empty.")
        for pool in job.job_spec.worker_pool_specs:
            self._machine(pool.machine_spec.machine_type)
            if not pool.container_spec.image_uri:
                raise ApiError(400, "INVALID_ARGUMENT", "Container image URI is not set.")
        if job.job_spec.worker_pool_specs[0].replica_count != 1:
            raise ApiError(400, "INVALID_ARGUMENT", "Replica count of the first worker pool has to be 1.")
        if job.job_spec.service_account == "missing@my-project.iam.gserviceaccount.com":
            raise ApiError(
                400, "INVALID_ARGUMENT", f"Service account {job.job_spec.service_account} does not exist."
            )
        with self.lock:
            number = str(random.randrange(10**18, 10**19))
            job.name = f"projects/{NUMBER}/locations/{REGION}/customJobs/{number}"
            job.state = api.JobState.JOB_STATE_PENDING
            self._touch(job, "create_time", "update_time")
            self.jobs[job.name] = Job(job)
        threading.Thread(target=self._train, args=(self.jobs[job.name],), daemon=True).start()
        return job

    def get_custom_job(self, request: Any) -> Any:
        return self._job(request.name).message

    def list_custom_jobs(self, request: Any) -> Any:
        with self.lock:
            found = [job.message for job in self.jobs.values() if _matches(request.filter, job.message)]
        # Not in any order that is documented.
        found.sort(key=lambda job: job.name)
        page, token = _page(found, request)
        reply = api.ListCustomJobsResponse.pb(api.ListCustomJobsResponse())
        for job in page:
            seen = reply.custom_jobs.add()
            if request.read_mask.paths:
                request.read_mask.MergeMessage(job, seen)
            else:
                seen.CopyFrom(job)
        reply.next_page_token = token
        return reply

    def cancel_custom_job(self, request: Any) -> Any:
        job = self._job(request.name)
        with self.lock:
            if job.state in _DONE:
                raise ApiError(
                    400,
                    "FAILED_PRECONDITION",
                    f"CustomJob {request.name} is in state {job.state} and cannot be canceled.",
                )
            job.message.state = api.JobState.JOB_STATE_CANCELLING
        job.cancelling.set()
        return None

    def _job(self, name: str) -> Job:
        found = self.jobs.get(name.replace(f"projects/{PROJECT}/", f"projects/{NUMBER}/"))
        if found is None:
            raise not_found(f"The CustomJob {name}")
        return found

    def _machine(self, name: str) -> None:
        if not _MACHINES.fullmatch(name):
            raise ApiError(400, "INVALID_ARGUMENT", f'Machine type "{name}" is not supported.')

    def _train(self, job: Job) -> None:
        try:
            self._train_in_containers(job)
        except Exception as error:
            self._end(job, "FAILED", 13, f"Internal error occurred. {error!r}")

    def _train_in_containers(self, job: Job) -> None:
        time.sleep(self.pace)
        spec, number = job.message.job_spec, job.message.name.rpartition("/")[2]
        pools = list(spec.worker_pool_specs)
        if pools[0].machine_spec.machine_type in self.no_capacity:
            return self._end(
                job,
                "FAILED",
                8,
                f"Resources are insufficient in region: {REGION}. Please try a different region.",
            )
        if job.cancelling.is_set():
            return self._end(job, "CANCELLED")
        with self.lock:
            job.message.state = api.JobState.JOB_STATE_RUNNING
            self._touch(job.message, "start_time", "update_time")
        started, containers = time.time(), []
        for n, pool in enumerate(pools):
            for index in range(pool.replica_count):
                base = self.folder / "training" / number / f"workerpool{n}-{index}"
                (base / "code").mkdir(parents=True)
                environment = training_environment(
                    base,
                    spec.base_output_directory.output_uri_prefix,
                    {item.name: item.value for item in pool.container_spec.env},
                    number,
                    PROJECT,
                    [item.replica_count for item in pools],
                    (n, index),
                )
                # Cloud Storage FUSE, which every training container has at /gcs.
                environment["NOTEBOOKED_GCS_ROOT"] = str(self.gcs.root)
                labels = {"job_id": number, "project_id": PROJECT, "task_name": f"workerpool{n}-{index}"}
                container = Training(
                    base,
                    argv(list(pool.container_spec.command), list(pool.container_spec.args)),
                    environment,
                    lambda line, labels=labels: self.say("ml_job", labels, line),
                )
                self.running.append(container)
                containers.append((f"workerpool{n}-{index}", container))
        limit = spec.scheduling.timeout.ToTimedelta().total_seconds() or 604800
        codes: dict[str, int] = {}
        while len(codes) < len(containers):
            for name, container in containers:
                if name not in codes and (code := container.wait(0.03)) is not None:
                    codes[name] = code
            failed = next((name for name, code in codes.items() if code), None)
            if codes.get("workerpool0-0") == 0:
                # The first machine's end is the job's; the others are shut down.
                for _, container in containers:
                    container.stop(0)
                return self._end(job, "SUCCEEDED")
            if failed or job.cancelling.is_set() or time.time() - started > limit:
                for _, container in containers:
                    container.stop(0 if failed else self.grace)
                if failed:
                    return self._exited(job, failed, codes[failed])
                # What reaches its limit is cancelled, as what somebody cancels.
                return self._end(job, "CANCELLED", 1, "CANCELED")
        return self._end(job, "SUCCEEDED")

    def _exited(self, job: Job, replica: str, code: int) -> None:
        status = 128 - code if code < 0 else code
        if status == 137:
            said = (
                f"The replica {replica} ran out-of-memory and exited with a non-zero status of 137(SIGKILL)."
            )
        else:
            said = f"The replica {replica} exited with a non-zero status of {status}."
        place = "https://console.cloud.google.com/logs/viewer?project=123456789012"
        self._end(
            job,
            "FAILED",
            3,
            f"{said} To find out more about why your job exited please check the logs: {place}",
        )

    def _end(self, job: Job, state: str, code: int = 0, message: str = "") -> None:
        with self.lock:
            if code:
                job.message.error.CopyFrom(status_pb2.Status(code=code, message=message))
            self._touch(job.message, "end_time", "update_time")
            job.message.state = api.JobState[f"JOB_STATE_{state}"]

    # Models

    def upload_model(self, request: Any) -> Any:
        name = f"projects/{NUMBER}/locations/{REGION}/models/{request.model_id or random.randrange(10**18)}"
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,62}|\d+", name.rpartition("/")[2]):
            raise ApiError(400, "INVALID_ARGUMENT", f"Invalid model_id: {request.model_id}.")
        with self.lock:
            if name in self.models:
                raise ApiError(409, "ALREADY_EXISTS", f"The Model {name} already exists.")
            model = api.Model.pb(api.Model())
            model.CopyFrom(request.model)
            model.name, model.version_id, model.etag = name, "1", secrets.token_hex(4)
            self._touch(model, "create_time", "update_time")
        response = api.UploadModelResponse.pb(api.UploadModelResponse(model=name, model_version_id="1"))

        def work() -> Any:
            bucket, _, prefix = model.artifact_uri.removeprefix("gs://").partition("/")
            if not self.gcs.names(bucket, prefix.rstrip("/") + "/"):
                raise ApiError(
                    400,
                    "FAILED_PRECONDITION",
                    f"Model directory {model.artifact_uri} is expected to contain files.",
                )
            self.models[name] = model
            return response

        return self._operate(f"models/{name.rpartition('/')[2]}", work)

    def get_model(self, request: Any) -> Any:
        found = self.models.get(_numbered(request.name))
        if found is None:
            raise not_found(f"The Model {request.name}")
        return found

    def list_models(self, request: Any) -> Any:
        found = [model for model in self.models.values() if _matches(request.filter, model)]
        page, token = _page(found, request)
        return api.ListModelsResponse.pb(
            api.ListModelsResponse(models=list(map(api.Model.wrap, page)), next_page_token=token)
        )

    def delete_model(self, request: Any) -> Any:
        name = _numbered(request.name)
        if name not in self.models:
            raise not_found(f"The Model {request.name}")
        for live in self.endpoints.values():
            if any(_numbered(item.model) == name for item in live.message.deployed_models):
                raise ApiError(
                    400,
                    "FAILED_PRECONDITION",
                    f"Model {name} is deployed at the following Endpoints: {live.message.name}. Please undeploy it.",
                )
        return self._operate(
            f"models/{name.rpartition('/')[2]}", lambda: self.models.pop(name, None) and None
        )

    # Endpoints

    def create_endpoint(self, request: Any) -> Any:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,61}[a-z0-9]|[1-9]\d{0,8}", request.endpoint_id):
            raise ApiError(400, "INVALID_ARGUMENT", f"Invalid endpoint_id: {request.endpoint_id}.")
        name = f"projects/{NUMBER}/locations/{REGION}/endpoints/{request.endpoint_id}"
        with self.lock:
            if name in self.endpoints or f"made:{name}" in self.operations:
                raise ApiError(409, "ALREADY_EXISTS", f"The Endpoint {name} already exists.")
            self.operations[f"made:{name}"] = None
        endpoint = api.Endpoint.pb(api.Endpoint())
        endpoint.CopyFrom(request.endpoint)
        endpoint.name = name
        self._changed(endpoint, "create_time")

        def work() -> Any:
            self.endpoints[name] = Live(endpoint)
            self.operations.pop(f"made:{name}", None)
            return endpoint

        return self._operate(f"endpoints/{request.endpoint_id}", work)

    def get_endpoint(self, request: Any) -> Any:
        return self._live(request.name).message

    def list_endpoints(self, request: Any) -> Any:
        with self.lock:
            found = [
                live.message for live in self.endpoints.values() if _matches(request.filter, live.message)
            ]
        page, token = _page(found, request)
        return api.ListEndpointsResponse.pb(
            api.ListEndpointsResponse(endpoints=list(map(api.Endpoint.wrap, page)), next_page_token=token)
        )

    def update_endpoint(self, request: Any) -> Any:
        live = self._live(request.endpoint.name)
        with self.lock:
            now, wanted = live.message, request.endpoint
            if wanted.etag and wanted.etag != now.etag:
                raise ApiError(409, "ABORTED", f"The etag of the Endpoint {now.name} does not match.")
            self._idle(live)
            shares = dict(wanted.traffic_split)
            if "traffic_split" in request.update_mask.paths and shares:
                self._check_split(now, shares)
            for path in request.update_mask.paths:
                # A mask replaces maps as a whole.
                now.ClearField(path)
            request.update_mask.MergeMessage(wanted, now, True, True)
            self._changed(now)
            return now

    def delete_endpoint(self, request: Any) -> Any:
        live = self._live(request.name)
        with self.lock:
            self._idle(live)
            if live.message.deployed_models:
                raise ApiError(
                    400,
                    "FAILED_PRECONDITION",
                    f"Endpoint {live.message.name} has deployed or being-deployed DeployedModel(s).",
                )
        return self._operate("endpoints", lambda: self.endpoints.pop(live.message.name, None) and None)

    def deploy_model(self, request: Any) -> Any:
        live = self._live(request.endpoint)
        deployed = request.deployed_model
        self._machine(deployed.dedicated_resources.machine_spec.machine_type)
        model = self.models.get(_numbered(deployed.model))
        if model is None:
            raise not_found(f"The Model {deployed.model}")
        if not re.fullmatch(r"\d{1,10}", deployed.id):
            raise ApiError(400, "INVALID_ARGUMENT", f"Invalid deployed model id: {deployed.id}.")
        with self.lock:
            self._idle(live)
            if any(item.id == deployed.id for item in live.message.deployed_models):
                raise ApiError(400, "INVALID_ARGUMENT", f"DeployedModel id {deployed.id} already exists.")
            live.busy = f"deploy {deployed.id}"

        def work() -> Any:
            try:
                container = self._serve(live, model, deployed.id)
                with self.lock:
                    found = live.message.deployed_models.add()
                    found.CopyFrom(deployed)
                    found.model_version_id = "1"
                    live.containers[found.id] = container
                    if request.traffic_split:
                        shares = {k if k != "0" else found.id: v for k, v in request.traffic_split.items()}
                        self._check_split(live.message, shares)
                        live.message.traffic_split.clear()
                        live.message.traffic_split.update(shares)
                    self._changed(live.message)
                    return api.DeployModelResponse.pb(
                        api.DeployModelResponse(deployed_model=api.DeployedModel.wrap(found))
                    )
            finally:
                live.busy = ""

        return self._operate("endpoints", work)

    def undeploy_model(self, request: Any) -> Any:
        live = self._live(request.endpoint)
        with self.lock:
            self._idle(live)
            which = request.deployed_model_id
            if which not in [item.id for item in live.message.deployed_models]:
                raise ApiError(400, "INVALID_ARGUMENT", f"DeployedModel with id {which} is not found.")
            if live.message.traffic_split.get(which) and len(live.message.deployed_models) > 1:
                raise ApiError(
                    400, "FAILED_PRECONDITION", f"DeployedModel {which} has traffic assigned to it."
                )
            live.busy = f"undeploy {which}"

        def work() -> Any:
            with self.lock:
                kept = [item for item in live.message.deployed_models if item.id != which]
                del live.message.deployed_models[:]
                live.message.deployed_models.extend(kept)
                live.message.traffic_split.pop(which, None)
                self._changed(live.message)
                live.busy = ""
            live.containers.pop(which).stop()
            return api.UndeployModelResponse.pb(api.UndeployModelResponse())

        return self._operate("endpoints", work)

    def raw_predict(self, name: str, body: bytes, content_type: str) -> Reply:
        """A prediction: the body goes to the container and its answer comes back as they are."""
        with self.lock:
            live = self._live(name)
            versions = [v for v, w in live.message.traffic_split.items() if w > 0]
            if not versions:
                raise ApiError(400, "FAILED_PRECONDITION", f"Endpoint {name} doesn't have traffic_split.")
            version = random.choices(versions, [live.message.traffic_split[v] for v in versions])[0]
            container = live.containers[version]
        status, answer = container.ask(body, content_type)
        return Reply(
            status, {"Content-Type": "application/json", "X-Vertex-AI-Deployed-Model-Id": version}, answer
        )

    def _live(self, name: str) -> Live:
        found = self.endpoints.get(_numbered(name))
        if found is None:
            raise not_found(f"Endpoint `{name}`")
        return found

    def _idle(self, live: Live) -> None:
        if live.busy:
            raise ApiError(
                400,
                "FAILED_PRECONDITION",
                f'There are other operations running on the Endpoint "{live.message.name}". Operation(s) are: {live.busy}.',
            )

    def _check_split(self, endpoint: Any, shares: dict[str, int]) -> None:
        ids = {item.id for item in endpoint.deployed_models}
        if sum(shares.values()) != 100 or not set(shares) <= ids:
            raise ApiError(
                400, "INVALID_ARGUMENT", "The traffic split has to name deployed models and add up to 100."
            )

    def _serve(self, live: Live, model: Any, version: str) -> ModelServer:
        spec, endpoint = model.container_spec, live.message.name.rpartition("/")[2]
        container = ModelServer(
            self.folder / "serving" / f"{endpoint}-{version}-{secrets.token_hex(3)}",
            argv(list(spec.command), list(spec.args)),
            {
                **{item.name: item.value for item in spec.env},
                # A copy of the artifacts in a bucket of Google's.
                "AIP_STORAGE_URI": self._copied(model.artifact_uri),
                "AIP_ENDPOINT_ID": endpoint,
                "AIP_DEPLOYED_MODEL_ID": version,
                "AIP_MODE": "PREDICTION",
                "GCE_METADATA_HOST": self.url.removeprefix("http://"),
                "STORAGE_EMULATOR_HOST": self.url,
            },
            (spec.health_route, spec.predict_route),
            lambda line: self.say(
                "aiplatform.googleapis.com/Endpoint",
                {"endpoint_id": endpoint, "location": REGION},
                line,
                {"deployed_model_id": version, "replica_id": "replica-0"},
            ),
        )
        self.running.append(container)
        if problem := container.healthy(self.patience):
            container.stop()
            raise ApiError(
                400,
                "FAILED_PRECONDITION",
                f"{problem}. Model server logs can be found at https://console.cloud.google.com/logs/viewer.",
            )
        return container

    def _copied(self, uri: str) -> str:
        bucket, _, prefix = uri.removeprefix("gs://").partition("/")
        copy = f"caip-tenant-{secrets.token_hex(4)}"
        self.gcs.make_bucket(copy)
        for name in self.gcs.names(bucket, prefix + "/"):
            self.gcs.put(copy, name.removeprefix(prefix + "/"), self.gcs.path(bucket, name).read_bytes())
        return f"gs://{copy}"

    # Operations that take their time

    def _operate(self, kind: str, work: Callable[[], Any]) -> Any:
        name = f"projects/{NUMBER}/locations/{REGION}/{kind}/operations/{random.randrange(10**18)}"
        if "/" not in kind:
            name = f"projects/{NUMBER}/locations/{REGION}/operations/{random.randrange(10**18)}"
        operation = operations_pb2.Operation(name=name)
        self.operations[name] = operation

        def run() -> None:
            time.sleep(self.pace)
            try:
                made = work()
                operation.response.Pack(empty_pb2.Empty() if made is None else made)
            except ApiError as error:
                codes = {"FAILED_PRECONDITION": 9, "INVALID_ARGUMENT": 3, "RESOURCE_EXHAUSTED": 8}
                operation.error.CopyFrom(
                    status_pb2.Status(code=codes.get(error.status, 13), message=error.message)
                )
            operation.done = True

        threading.Thread(target=run, daemon=True).start()
        return operation

    def get_operation(self, request: Any) -> Any:
        found = self.operations.get(request.name)
        if found is None:
            raise not_found(f"The operation {request.name}")
        return found

    # Cloud Logging

    def say(self, kind: str, labels: dict[str, str], line: str, more: dict[str, str] | None = None) -> None:
        """A line that a container printed."""
        with self.lock:
            self._last = max(self._last + 1, time.time_ns())
            moment = datetime.fromtimestamp(self._last // 10**9, UTC)
            self.logs.append(
                {
                    "ns": self._last,
                    "entry": {
                        "logName": f"projects/{PROJECT}/logs/{labels.get('task_name', 'prediction_container')}",
                        "resource": {"type": kind, "labels": labels},
                        "timestamp": f"{moment:%Y-%m-%dT%H:%M:%S}.{self._last % 10**9:09d}Z",
                        "insertId": f"{len(self.logs):012d}",
                        "severity": "INFO",
                        "labels": more or {},
                        # One in a hundred is plain text, as what is no JSON at Google's may be.
                        **(
                            {"textPayload": line}
                            if len(self.logs) % 100 == 99
                            else {"jsonPayload": {"message": line}}
                        ),
                    },
                }
            )

    def list_log_entries(self, body: dict[str, Any]) -> Any:
        request = _strict(body, ListLogEntriesRequest)
        kind, since, wanted = _log_filter(request.filter)
        with self.lock:
            found = [
                item["entry"]
                for item in self.logs
                if item["entry"]["resource"]["type"] == kind
                and all(check(item["entry"]) for check in wanted)
                and since(item)
            ]
        start = int(request.page_token or "0")
        end = start + min(request.page_size or 50, 1000)
        page = {"entries": found[start:end], **({"nextPageToken": str(end)} if end < len(found) else {})}
        return _strict(page, ListLogEntriesResponse)

    # Plumbing

    def _changed(self, endpoint: Any, *more: str) -> None:
        endpoint.etag = secrets.token_hex(6)
        self._touch(endpoint, "update_time", *more)

    def _touch(self, message: Any, *fields: str) -> None:
        for name in fields:
            getattr(message, name).GetCurrentTime()

    def close(self) -> None:
        """End whatever runs."""
        for container in self.running:
            with contextlib.suppress(Exception):
                container.stop(0) if isinstance(container, Training) else container.stop()


def _numbered(name: str) -> str:
    return name.replace(f"projects/{PROJECT}/", f"projects/{NUMBER}/")


def _strict(document: dict[str, Any], kind: Any) -> Any:
    """A message, where it has every field of a document."""
    message = kind.pb(kind()) if hasattr(kind, "pb") else kind()
    try:
        return json_format.ParseDict(document, message)
    except json_format.ParseError as error:
        raise ApiError(400, "INVALID_ARGUMENT", f"Invalid JSON payload received. {error}") from error


def _matches(wanted: str, message: Any) -> bool:
    if not wanted:
        return True
    head, _, made = wanted.partition(" AND create_time>=")
    if made:
        since = datetime.fromisoformat(made.strip('"'))
        return _matches(head, message) and message.create_time.ToDatetime(UTC) >= since
    if match := re.fullmatch(r"labels\.(\w+):\*", wanted):
        return match[1] in message.labels
    if match := re.fullmatch(r'labels\.(\w+)="?([\w-]*)"?', wanted):
        return match[1] in message.labels and message.labels[match[1]] == match[2]
    raise ApiError(400, "INVALID_ARGUMENT", f"Invalid filter: {wanted}.")


def _page(items: list[Any], request: Any) -> tuple[list[Any], str]:
    start = int(request.page_token or "0")
    end = start + min(request.page_size or 100, 100)
    return items[start:end], str(end) if end < len(items) else ""


_CURSOR = re.compile(
    r'\(timestamp>"(?P<time>[^"]+)" OR \(timestamp="(?P=time)" AND insertId>"(?P<id>[^"]+)"\)\)'
)
_TERM = re.compile(r'(?P<key>[\w.]+)(?P<how>>=|=|:)"(?P<value>[^"]*)"')


def _log_filter(
    text: str,
) -> tuple[str, Callable[[dict[str, Any]], bool], list[Callable[[dict[str, Any]], bool]]]:
    """The part of Cloud Logging's language that is used here."""
    kind, checks = "", []
    since: Callable[[dict[str, Any]], bool] = lambda item: True  # noqa: E731
    if match := _CURSOR.search(text):
        at, insert_id = _ns(match["time"]), match["id"]
        since = lambda item: (item["ns"], item["entry"]["insertId"]) > (at, insert_id)  # noqa: E731
        text = text.replace(match[0], "")
    for part in filter(None, (part.strip() for part in text.split(" AND "))):
        term = _TERM.fullmatch(part)
        if term is None:
            raise ApiError(400, "INVALID_ARGUMENT", f"Unparseable filter: {part}")
        key, how, value = term["key"], term["how"], term["value"]
        if key == "resource.type":
            kind = value
        elif key == "timestamp":
            since = partial(_not_before, _ns(value))
        else:
            checks.append(partial(_has, key.split("."), how, value))
    return kind, since, checks


def _has(path: list[str], how: str, value: str, entry: dict[str, Any]) -> bool:
    found: Any = entry
    for part in path:
        found = found.get(part, {})
    return bool(found == value if how == "=" else value in (found or ""))


def _not_before(start: int, item: dict[str, Any]) -> bool:
    return int(item["ns"]) >= start


def _ns(text: str) -> int:
    whole, _, rest = text.replace("+00:00", "Z").rstrip("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 10**9 + int(
        (rest or "0").ljust(9, "0")[:9]
    )


@dataclass(frozen=True)
class Route:
    """An operation: its verb and path, its request, and which field is the body (``*`` for all)."""

    name: str
    verb: str
    path: re.Pattern[str]
    request: Any
    body: str = ""


def _route(name: str, verb: str, path: str, request: Any, body: str = "") -> Route:
    pattern = path.replace("{parent}", f"(?P<parent>{_PARENT})")
    pattern = re.sub(
        r"\{([\w.]+)=(\w+)\}", lambda m: f"(?P<{m[1].replace('.', '__')}>{_PARENT}/{m[2]}/[^/:]+)", pattern
    )
    return Route(name, verb, re.compile(f"/v1/{pattern}"), request, body)


ROUTES = [
    _route("CreateCustomJob", "POST", "{parent}/customJobs", api.CreateCustomJobRequest, "custom_job"),
    _route("ListCustomJobs", "GET", "{parent}/customJobs", api.ListCustomJobsRequest),
    _route("GetCustomJob", "GET", "{name=customJobs}", api.GetCustomJobRequest),
    _route("CancelCustomJob", "POST", "{name=customJobs}:cancel", api.CancelCustomJobRequest, "*"),
    _route("UploadModel", "POST", "{parent}/models:upload", api.UploadModelRequest, "*"),
    _route("ListModels", "GET", "{parent}/models", api.ListModelsRequest),
    _route("GetModel", "GET", "{name=models}", api.GetModelRequest),
    _route("DeleteModel", "DELETE", "{name=models}", api.DeleteModelRequest),
    _route("CreateEndpoint", "POST", "{parent}/endpoints", api.CreateEndpointRequest, "endpoint"),
    _route("ListEndpoints", "GET", "{parent}/endpoints", api.ListEndpointsRequest),
    _route("GetEndpoint", "GET", "{name=endpoints}", api.GetEndpointRequest),
    _route("UpdateEndpoint", "PATCH", "{endpoint.name=endpoints}", api.UpdateEndpointRequest, "endpoint"),
    _route("DeleteEndpoint", "DELETE", "{name=endpoints}", api.DeleteEndpointRequest),
    _route("DeployModel", "POST", "{endpoint=endpoints}:deployModel", api.DeployModelRequest, "*"),
    _route("UndeployModel", "POST", "{endpoint=endpoints}:undeployModel", api.UndeployModelRequest, "*"),
]
_OPERATION = re.compile(rf"/v1/(projects/{NUMBER}/locations/{REGION}/(?:\w+/[^/]+/)?operations/\d+)")
_RAW = re.compile(rf"/v1/({_PARENT}/endpoints/[^/:]+):rawPredict")
_PERMISSIONS = re.compile(r"/v1/projects/[^/]+(?P<account>/serviceAccounts/[^/:]+)?:testIamPermissions")
_SERVICE_ACCOUNT = re.compile(r"/v1/projects/-/serviceAccounts/(?P<email>[^/:]+)")
_QUOTAS = re.compile(r"/v1/projects/[^/]+/locations/global/services/aiplatform\.googleapis\.com/quotaInfos")


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *args: Any) -> None:
        pass


class _Lost(Exception):
    """The connection ends without a reply."""


class GcpServer:
    """All of Google Cloud that we need, on one port of this machine."""

    def __init__(self, folder: Path, *, pace: float = 0.03, grace: float = 0.5) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.gcs = Gcs(folder / "gcs", REGION)
        self.vertex = Vertex(folder, self.gcs, pace, grace)
        self._server: BaseWSGIServer = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet
        )
        self.url = self.vertex.url = f"http://127.0.0.1:{self._server.server_port}"
        self.denied: set[str] = set()
        self.quota: dict[str, int] = {"aiplatform.googleapis.com/custom_model_training_cpus": 42}
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """End it and whatever runs in it."""
        self.vertex.close()
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes] | list[bytes]:
        raw = environ.get("RAW_URI") or environ["REQUEST_URI"]
        path, _, text = raw.partition("?")
        query: dict[str, str] = {}
        for key, value in parse_qsl(text, keep_blank_values=True):
            query[key] = f"{query[key]},{value}" if key in query else value
        headers = {k.removeprefix("HTTP_").replace("_", "-").lower(): str(v) for k, v in environ.items()}
        if environ.get("HTTP_TRANSFER_ENCODING", "") == "chunked":
            body = environ["wsgi.input"].read()
        else:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        try:
            reply = self._dispatch(environ["REQUEST_METHOD"], path, query, headers, body)
        except _Lost:
            # Closed without a word, as a broken line does.
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError from None
        except ApiError as error:
            reply = error.reply()
        start(f"{reply.status} .", [*reply.headers.items(), ("Content-Length", str(len(reply.body)))])
        return [reply.body]

    def _dispatch(
        self, verb: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> Reply:
        if path in ("/token", "/computeMetadata/v1/instance/service-accounts/default/token"):
            kind = "urn:ietf:params:oauth:token-type:access_token"
            token = {"access_token": "ya29.test", "expires_in": 3600, "token_type": "Bearer"}
            return _reply({**token, "issued_token_type": kind})
        name, act = self._operation(verb, path, query, headers, body)
        with self.vertex.lock:
            self.vertex.calls.append(name)
        fault = self.vertex.fault(name)
        if fault == "drop":
            raise _Lost
        _refuse(fault)
        if not headers.get("authorization", "").startswith("Bearer "):
            raise ApiError(401, "UNAUTHENTICATED", "Request is missing required authentication credential.")
        reply = act()
        if fault == "lost":
            raise _Lost
        return reply

    def _operation(
        self, verb: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[str, Callable[[], Reply]]:
        if kind := self.gcs.operation(verb, path):
            return kind, lambda: self.gcs.answer(verb, path, query, headers, body, self.url)
        for route in ROUTES:
            match = route.path.fullmatch(unquote(path))
            if match and route.verb == verb:
                return route.name, partial(self._call, route, match.groupdict(), query, body)
        if match := _OPERATION.fullmatch(path):
            request = operations_pb2.GetOperationRequest(name=match[1])
            return "GetOperation", lambda: _reply(_document(self.vertex.get_operation(request)))
        if match := _RAW.fullmatch(path):
            kind = headers.get("content-type", "")
            return "RawPredict", lambda: self.vertex.raw_predict(match[1], body, kind)
        if path == "/v2/entries:list":
            return "ListLogEntries", lambda: _reply(_document(self.vertex.list_log_entries(json.loads(body))))
        if match := _PERMISSIONS.fullmatch(unquote(path)):
            asked = json.loads(body)["permissions"]
            return "TestIamPermissions", lambda: _reply(
                {"permissions": [p for p in asked if p not in self.denied]}
            )
        if match := _SERVICE_ACCOUNT.fullmatch(unquote(path)):
            return "GetServiceAccount", lambda: self._account(match["email"])
        if _QUOTAS.fullmatch(path):
            return "ListQuotaInfos", self._quotas
        raise not_found(f"{verb} {path}")

    def _call(self, route: Route, place: dict[str, str], query: dict[str, str], body: bytes) -> Reply:
        document: dict[str, Any] = {key: value for key, value in query.items() if not key.startswith("$")}
        content = json.loads(body or b"{}")
        if route.body == "*":
            document.update(content)
        elif route.body:
            document[route.body] = content
        elif body:
            raise ApiError(400, "INVALID_ARGUMENT", "This call has no body.")
        for key, value in place.items():
            if "__" not in key:
                document[key] = value
        document = {k: int(v) if k == "pageSize" else v for k, v in document.items()}
        request = _strict(document, route.request)
        if route.name == "UpdateEndpoint":
            request.endpoint.name = place["endpoint__name"]
        handler = getattr(self.vertex, re.sub(r"(?<!^)(?=[A-Z])", "_", route.name).lower())
        with self.vertex.lock:
            made = handler(request)
            return _reply({} if made is None else _document(made))

    def _account(self, email: str) -> Reply:
        if email != ACCOUNT:
            raise not_found(f"Service account {email}")
        return _reply({"name": f"projects/{PROJECT}/serviceAccounts/{email}", "email": email})

    def _quotas(self) -> Reply:
        infos = [
            {
                "quotaId": "some-id",
                "metric": metric,
                "dimensionsInfos": [
                    {
                        "dimensions": {"region": "us-east1"},
                        "details": {"value": "1"},
                        "applicableLocations": ["us-east1"],
                    },
                    {"details": {"value": str(value)}, "applicableLocations": [REGION, "us-central1"]},
                ],
            }
            for metric, value in self.quota.items()
        ]
        return _reply({"quotaInfos": infos})


def _document(message: Any) -> dict[str, Any]:
    # The SDK asks for enumerations as numbers, and gets them.
    return json_format.MessageToDict(message, use_integers_for_enums=True)


def _reply(document: dict[str, Any]) -> Reply:
    return Reply(200, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(document).encode())


def _refuse(fault: str | None) -> None:
    errors = {
        "throttle": (
            429,
            "RESOURCE_EXHAUSTED",
            "Quota exceeded for quota metric 'Requests' and limit 'Requests per minute' of service 'aiplatform.googleapis.com'.",
        ),
        "error": (503, "UNAVAILABLE", "The service is currently unavailable."),
        "denied": (
            403,
            "PERMISSION_DENIED",
            "Permission 'aiplatform.customJobs.create' denied on resource '//aiplatform.googleapis.com/projects/my-project/locations/europe-west4' (or it may not exist).",
        ),
        "expired": (
            401,
            "UNAUTHENTICATED",
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.",
        ),
        "quota": (
            429,
            "RESOURCE_EXHAUSTED",
            "The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_training_cpus",
        ),
    }
    if fault in errors:
        code, status, message = errors[fault]
        raise ApiError(code, status, message)
