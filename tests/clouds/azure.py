"""An Azure of our own: Resource Manager, run history, blobs and endpoints over TLS, with containers that really run.

It follows the published REST API of Azure Machine Learning; every request and every reply is held against the models that
azure-ai-ml ships, and of Azure Monitor's autoscale settings against those of azure-mgmt-monitor. Jobs and endpoints go
through the states the API documents, take time, and fail as told (``fail``).
Tokens come from it as from a managed identity's endpoint, so that the SDK's own chain of credentials is what runs.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import re
import shutil
import socket
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.clouds.faulty import Faulty

from .azure_blobs import SIGNATURE, BlobStore, place_of
from .azure_models import ARM, HISTORY, MONITOR, problems
from .containers import _KEPT, Serving, Training
from .tls import certificate

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
GROUP, WORKSPACE, LOCATION = "ml-group", "ml-workspace", "westeurope"
WORKSPACE_ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.MachineLearningServices/workspaces/{WORKSPACE}"
ACCOUNT, CONTAINER, LOGS = "mlstorage", "azureml-blobstore-1111", "azureml"
VERSION = "2025-12-01"
SETTINGS = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Insights/autoscaleSettings"
)
SIZES = {"Standard_DS3_v2": ("standardDSv2Family", 4), "Standard_D4s_v3": ("standardDSv3Family", 4)}
_WAITING = ("Creating", "Updating", "Deleting")


class ApiError(Exception):
    """An error that the API answers with."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


@dataclass
class Job:
    """A training job."""

    body: dict[str, Any]
    created: float
    status: str = "NotStarted"
    started: float | None = None
    ended: float | None = None
    error: dict[str, Any] | None = None
    stopping: threading.Event = field(default_factory=threading.Event)


@dataclass
class Live:
    """An endpoint or a deployment: what was asked for, and what runs."""

    body: dict[str, Any]
    created: float
    state: str = "Creating"
    operation: str = ""
    error: str = ""
    container: Serving | None = None
    log: list[str] = field(default_factory=list)
    deployments: dict[str, Live] = field(default_factory=dict)


# Method, path below the workspace, operation, model of the request, model of the reply; the API's own names.
_ROUTES: tuple[tuple[str, str, str, str, str], ...] = (
    ("GET", "", "Workspaces_Get", "", "Workspace"),
    ("GET", "/datastores/([^/]+)", "Datastores_Get", "", "Datastore"),
    ("GET", "/computes/([^/]+)", "Compute_Get", "", "ComputeResource"),
    ("GET", "/jobs", "Jobs_List", "", "[JobBase]"),
    ("GET", "/jobs/([^/]+)", "Jobs_Get", "", "JobBase"),
    ("PUT", "/jobs/([^/]+)", "Jobs_CreateOrUpdate", "JobBase", "JobBase"),
    ("POST", "/jobs/([^/]+)/cancel", "Jobs_Cancel", "", ""),
    ("GET", "/environments/([^/]+)/versions/([^/]+)", "EnvironmentVersions_Get", "", "EnvironmentVersion"),
    ("PUT", "/environments/([^/]+)/versions/([^/]+)", "EnvironmentVersions_CreateOrUpdate", "EnvironmentVersion", "EnvironmentVersion"),
    ("GET", "/(models|codes)/([^/]+)/versions", "Versions_List", "", ""),
    ("PUT", "/models/([^/]+)/versions/([^/]+)", "ModelVersions_CreateOrUpdate", "ModelVersion", "ModelVersion"),
    ("PUT", "/codes/([^/]+)/versions/([^/]+)", "CodeVersions_CreateOrUpdate", "CodeVersion", "CodeVersion"),
    ("DELETE", "/(models|codes)/([^/]+)/versions/([^/]+)", "Versions_Delete", "", ""),
    ("DELETE", "/(models|codes)/([^/]+)", "Containers_Delete", "", ""),
    ("GET", "/onlineEndpoints", "OnlineEndpoints_List", "", "[OnlineEndpoint]"),
    ("GET", "/onlineEndpoints/([^/]+)", "OnlineEndpoints_Get", "", "OnlineEndpoint"),
    ("PUT", "/onlineEndpoints/([^/]+)", "OnlineEndpoints_CreateOrUpdate", "OnlineEndpoint", "OnlineEndpoint"),
    ("DELETE", "/onlineEndpoints/([^/]+)", "OnlineEndpoints_Delete", "", ""),
    ("POST", "/onlineEndpoints/([^/]+)/listKeys", "OnlineEndpoints_ListKeys", "", "EndpointAuthKeys"),
    ("GET", "/onlineEndpoints/([^/]+)/deployments", "OnlineDeployments_List", "", "[OnlineDeployment]"),
    ("GET", "/onlineEndpoints/([^/]+)/deployments/([^/]+)", "OnlineDeployments_Get", "", "OnlineDeployment"),
    ("PUT", "/onlineEndpoints/([^/]+)/deployments/([^/]+)", "OnlineDeployments_CreateOrUpdate", "OnlineDeployment", "OnlineDeployment"),
    ("DELETE", "/onlineEndpoints/([^/]+)/deployments/([^/]+)", "OnlineDeployments_Delete", "", ""),
    ("POST", "/onlineEndpoints/([^/]+)/deployments/([^/]+)/getLogs", "OnlineDeployments_GetLogs", "DeploymentLogsRequest", "DeploymentLogs"),
    ("PUT", f"{SETTINGS}/([^/]+)", "AutoscaleSettings_CreateOrUpdate", "AutoscaleSettingResource", "AutoscaleSettingResource"),
    ("DELETE", f"{SETTINGS}/([^/]+)", "AutoscaleSettings_Delete", "", ""),
    ("GET", "/providers/Microsoft.Authorization/permissions", "Permissions_ListForResource", "", ""),
)  # fmt: skip


class MachineLearning(Faulty):
    """The workspace's state; ``AzureServer`` puts it on a port.

    Args:
        folder: For the containers.
        blobs: The storage account.
        pace: Seconds that a machine takes to start, and that an update takes.
        grace: Seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, folder: Path, blobs: BlobStore, pace: float, grace: float) -> None:
        self.folder, self.blobs, self.pace, self.grace = folder, blobs, pace, grace
        self.url = ""
        super().__init__()
        self.jobs: dict[str, Job] = {}
        self.environments: dict[tuple[str, str], dict[str, Any]] = {}
        self.assets: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.endpoints: dict[str, Live] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.operations: dict[str, Live] = {}
        self.violations: list[str] = []
        self.no_capacity: set[str] = set()
        self.actions, self.data_actions = ["*"], ["*"]
        self.quota = 100
        self.generation = ""
        self.prices: dict[str, dict[str, Any]] = {}
        self.running: list[Any] = []

    # The workspace

    def workspaces_get(self, body: Any, query: dict[str, str]) -> Any:
        properties = {
            "discoveryUrl": f"{self.url}/discovery",
            "workspaceId": "99999999-8888-7777-6666-555555555555",
            "storageAccount": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}",
            "provisioningState": "Succeeded",
        }
        return {**_resource(WORKSPACE_ID), "location": LOCATION, "properties": properties}

    def datastores_get(self, body: Any, query: dict[str, str], name: str) -> Any:
        if name != "workspaceblobstore":
            raise ApiError(404, "UserError", f"Could not find datastore: {name}")
        properties = {
            "datastoreType": "AzureBlob",
            "credentials": {"credentialsType": "None"},
            "accountName": ACCOUNT,
            "containerName": CONTAINER,
            "endpoint": urlsplit(self.url).netloc,
            "protocol": "https",
            "isDefault": True,
        }
        return {**_resource(f"{WORKSPACE_ID}/datastores/{name}"), "properties": properties}

    def compute_get(self, body: Any, query: dict[str, str], name: str) -> Any:
        if name != "cpu-cluster":
            raise ApiError(404, "ResourceNotFound", f"ComputeNotFound: Compute with name {name} not found.")
        properties = {
            "computeType": "AmlCompute",
            "provisioningState": "Succeeded",
            "properties": {"vmSize": "STANDARD_DS3_V2", "vmPriority": "Dedicated"},
        }
        return {
            **_resource(f"{WORKSPACE_ID}/computes/{name}"),
            "location": LOCATION,
            "properties": properties,
        }

    def permissions_listforresource(self, body: Any, query: dict[str, str]) -> Any:
        return {
            "value": [
                {
                    "actions": self.actions,
                    "notActions": [],
                    "dataActions": self.data_actions,
                    "notDataActions": [],
                }
            ]
        }

    def usages(self) -> Any:
        return {
            "value": [
                {
                    "id": f"/subscriptions/{SUBSCRIPTION}/usages/{family}",
                    "type": "Microsoft.MachineLearningServices/vmFamily/dedicatedCores/usages",
                    "unit": "Count",
                    "currentValue": 0,
                    "limit": self.quota,
                    "name": {"value": family, "localizedValue": family},
                }
                for family, _ in SIZES.values()
            ]
        }

    def sizes(self) -> Any:
        return {
            "value": [
                {
                    "name": name,
                    "family": family,
                    "vCPUs": cores,
                    "gpus": 0,
                    "memoryGB": 14.0,
                    "lowPriorityCapable": True,
                    **({"estimatedVMPrices": self.prices[name]} if name in self.prices else {}),
                }
                for name, (family, cores) in SIZES.items()
            ]
        }

    # Training

    def jobs_createorupdate(self, body: Any, query: dict[str, str], name: str) -> Any:
        properties = body["properties"]
        kind = (properties.get("resources") or {}).get("instanceType")
        with self.lock:
            if name in self.jobs:
                old = self.jobs[name].body["properties"]
                changed = [key for key in properties if properties[key] != old.get(key)]
                if changed:
                    raise ApiError(
                        400,
                        "UserError",
                        "A job with this name already exists. If you are trying to create a new job, use a different name. If you are "
                        f"trying to update an existing job, the existing job's {changed[0]} cannot be changed.",
                    )
                return 200, self.jobs_get(None, {}, name)
            if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}", name):
                raise ApiError(400, "UserError", f"The name {name} is invalid.")
            if kind is not None and kind not in SIZES:
                raise ApiError(
                    400, "UserError", f"The specified VM size {kind} is not supported in region {LOCATION}."
                )
            _, _, environment = properties["environmentId"].partition("/environments/")
            if environment and tuple(environment.split("/versions/")) not in self.environments:
                raise ApiError(400, "UserError", f"Environment {environment} does not exist.")
            self.jobs[name] = Job(copy.deepcopy(body), time.time())
        threading.Thread(target=self._train, args=(name,), daemon=True).start()
        return 201, self.jobs_get(None, {}, name)

    def jobs_get(self, body: Any, query: dict[str, str], name: str) -> Any:
        if name not in self.jobs:
            raise ApiError(404, "UserError", f"Job {name} not found.")
        job = self.jobs[name]
        properties = copy.deepcopy(job.body["properties"])
        own = {"ContentSnapshotId": "none"}
        if job.ended is not None:
            own["StartTimeUtc"] = datetime.fromtimestamp(job.started or job.created, UTC).strftime(
                "%Y-%m-%d %H:%M:%S"
            )
            own["EndTimeUtc"] = datetime.fromtimestamp(job.ended, UTC).strftime("%Y-%m-%d %H:%M:%S")
        properties |= {
            "status": job.status,
            "properties": own,
            "services": {
                "Studio": {
                    "endpoint": f"https://ml.azure.com/runs/{name}?wsid={WORKSPACE_ID}",
                    "jobServiceType": "Studio",
                }
            },
        }
        return {**_resource(f"{WORKSPACE_ID}/jobs/{name}", job.created), "properties": properties}

    def jobs_list(self, body: Any, query: dict[str, str]) -> Any:
        with self.lock:
            found = [
                name
                for name, job in sorted(self.jobs.items(), key=lambda item: -item[1].created)
                if "tag" not in query or query["tag"] in (job.body["properties"].get("tags") or {})
            ]
        return self._page([self.jobs_get(None, {}, name) for name in found], "/jobs", query)

    def jobs_cancel(self, body: Any, query: dict[str, str], name: str) -> Any:
        if name not in self.jobs:
            raise ApiError(404, "UserError", f"Job {name} not found.")
        job = self.jobs[name]
        if job.ended is not None:
            raise ApiError(
                400, "UserError", f"Run {name} is in a terminal state {job.status} and cannot be canceled."
            )
        job.status = "CancelRequested"
        job.stopping.set()
        return 200, None

    def details(self, name: str) -> Any:
        """What the run history says of a job."""
        if name not in self.jobs:
            raise ApiError(404, "UserError", f"Run {name} was not found.")
        job = self.jobs[name]
        path = f"ExperimentRun/dcid.{name}"
        names = [found[len(path) + 1 :] for found in self.blobs.below(LOGS, path)]
        found: dict[str, Any] = {
            "runId": name,
            "status": job.status,
            "createdTimeUtc": _time(job.created),
            "logFiles": {
                log: f"{self.url}/{ACCOUNT}/{LOGS}/{path}/{log}?sv=2019-07-07&sr=b&sp=r&sig={SIGNATURE}"
                for log in names
            },
        }
        if job.started is not None:
            found["startTimeUtc"] = _time(job.started)
        if job.ended is not None:
            found["endTimeUtc"] = _time(job.ended)
        if job.error is not None:
            found["error"] = {"error": job.error, "environment": LOCATION, "location": LOCATION}
        return found

    def _train(self, name: str) -> None:
        job = self.jobs[name]
        try:
            self._train_in_container(name, job)
        except Exception as error:
            self._end(job, "Failed", {"code": "ServiceError", "message": f"InternalServerError {error!r}"})

    def _train_in_container(self, name: str, job: Job) -> None:
        properties = job.body["properties"]
        for status in ("Starting", "Provisioning", "Preparing", "Queued"):
            if job.stopping.is_set():
                return self._end(job, "Canceled")
            job.status = status
            time.sleep(self.pace / 4)
        if (properties["resources"].get("instanceType") or "") in self.no_capacity:
            return self._end(
                job,
                "Failed",
                {
                    "code": "UserError",
                    "message": "AllocationFailed: there is not enough capacity for the requested VM size in this region.",
                },
            )
        base = self.folder / "training" / name
        (base / "code").mkdir(parents=True, exist_ok=True)
        command = properties["command"]
        for key, wanted in (properties.get("inputs") or {}).items():
            place = self._input(base, key, wanted)
            if place is None:
                message = f"Input {key!r}: the path {wanted['uri']!r} was not found."
                return self._end(
                    job,
                    "Failed",
                    {
                        "code": "UserError",
                        "message": f"data-capability: {message}",
                        "innerError": {"code": "StreamAccess.NotFound"},
                    },
                )
            command = command.replace(f"${{{{inputs.{key}}}}}", str(place))
        for key in properties.get("outputs") or {}:
            place = base / "outputs" / key
            place.mkdir(parents=True)
            command = command.replace(f"${{{{outputs.{key}}}}}", str(place))
        if job.stopping.is_set():
            return self._end(job, "Canceled")
        job.started, job.status = time.time(), "Running"
        container = Training(
            base,
            ["-c", command],
            self._environment(name, properties),
            lambda line: self.blobs.append(
                LOGS, f"ExperimentRun/dcid.{name}/user_logs/std_log.txt", f"{line}\n".encode()
            ),
            program="/bin/bash",
        )
        self.running.append(container)
        limit = float(re.sub(r"\D", "", properties["limits"]["timeout"]))
        code = None
        while code is None:
            code = container.wait(0.05)
            if code is None and (job.stopping.is_set() or time.time() > job.started + limit):
                container.stop(self.grace)
                return self._end(job, "Canceled")
        job.status = "Finalizing"
        for key, wanted in (properties.get("outputs") or {}).items():
            folder = base / "outputs" / key
            for path in folder.rglob("*"):
                if path.is_file():
                    target = f"{_path(wanted['uri'])}/{path.relative_to(folder).as_posix()}"
                    self.blobs.put(CONTAINER, target, path.read_bytes())
        if code == 0:
            return self._end(job, "Completed")
        shown = code if code > 0 else 128 - code
        return self._end(
            job,
            "Failed",
            {
                "code": "UserError",
                "message": f"Execution failed. User process '/bin/bash' exited with status code {shown}. "
                "Please check log file 'user_logs/std_log.txt' for error details.",
                "innerError": {"code": "NonZeroExitCode"},
            },
        )

    def _environment(self, name: str, properties: dict[str, Any]) -> dict[str, str]:
        """The environment of the user's command."""
        kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
        kept["PATH"] = f"{Path(sys.executable).parent}:{kept.get('PATH', '')}"
        return {
            **kept,
            **(properties.get("environmentVariables") or {}),
            "AZUREML_RUN_ID": name,
            "AZUREML_ARM_SUBSCRIPTION": SUBSCRIPTION,
            "AZUREML_ARM_WORKSPACE_NAME": WORKSPACE,
            "AZUREML_EXPERIMENT_NAME": str(properties.get("experimentName")),
            "MLFLOW_TRACKING_URI": f"azureml://{LOCATION}.api.azureml.ms/mlflow/v1.0{WORKSPACE_ID}",
            "MLFLOW_TRACKING_TOKEN": "the-workspace-s-own-token",
            "MLFLOW_EXPERIMENT_ID": "1",
            "MLFLOW_RUN_ID": name,
            "NODE_RANK": "0",
        }

    def _input(self, base: Path, key: str, wanted: dict[str, Any]) -> Path | None:
        """An input as the job finds it: the file under its own name, or the folder."""
        path, folder = _path(wanted["uri"]), base / "wd" / f"INPUT_{key}"
        found = self.blobs.below(CONTAINER, path)
        for name, content in found.items():
            relative = name[len(path) :].lstrip("/") or name.rpartition("/")[2]
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            (folder / relative).write_bytes(content)
        if not found:
            return None
        return folder / path.rpartition("/")[2] if wanted["jobInputType"] == "uri_file" else folder

    def _end(self, job: Job, status: str, error: dict[str, Any] | None = None) -> None:
        job.error, job.ended, job.status = error, time.time(), status

    # Assets

    def environmentversions_get(self, body: Any, query: dict[str, str], name: str, version: str) -> Any:
        if (name, version) not in self.environments:
            raise ApiError(404, "UserError", f"Environment {name} with version {version} not found.")
        properties = {
            **self.environments[name, version]["properties"],
            "environmentType": "UserCreated",
            "provisioningState": "Succeeded",
        }
        return {
            **_resource(f"{WORKSPACE_ID}/environments/{name}/versions/{version}"),
            "properties": properties,
        }

    def environmentversions_createorupdate(
        self, body: Any, query: dict[str, str], name: str, version: str
    ) -> Any:
        known = self.environments.get((name, version))
        if known is not None and known != body:
            raise ApiError(
                400, "UserError", f"Environment {name}:{version} already exists and cannot be changed."
            )
        self.environments[name, version] = body
        return 201 if known is None else 200, self.environmentversions_get(None, {}, name, version)

    def modelversions_createorupdate(self, body: Any, query: dict[str, str], name: str, version: str) -> Any:
        place = body["properties"]["modelUri"]
        if not place.startswith(f"azureml://subscriptions/{SUBSCRIPTION}/"):
            raise ApiError(400, "UserError", f"The path {place} has no workspace.")
        return self._asset("models", name, version, body)

    def codeversions_createorupdate(self, body: Any, query: dict[str, str], name: str, version: str) -> Any:
        return self._asset("codes", name, version, body)

    def _asset(self, kind: str, name: str, version: str, body: Any) -> Any:
        known = self.assets.get((kind, name, version))
        self.assets[kind, name, version] = body
        properties = {**body["properties"], "provisioningState": "Succeeded"}
        found = {**_resource(f"{WORKSPACE_ID}/{kind}/{name}/versions/{version}"), "properties": properties}
        return 201 if known is None else 200, found

    def versions_list(self, body: Any, query: dict[str, str], kind: str, name: str) -> Any:
        found = [key for key in self.assets if key[:2] == (kind, name)]
        if not found:
            raise ApiError(404, "UserError", f"{name} not found.")
        return {
            "value": [
                {
                    **_resource(f"{WORKSPACE_ID}/{kind}/{name}/versions/{key[2]}"),
                    "properties": self.assets[key]["properties"],
                }
                for key in found
            ]
        }

    def versions_delete(self, body: Any, query: dict[str, str], kind: str, name: str, version: str) -> Any:
        return (200 if self.assets.pop((kind, name, version), None) else 204), None

    def containers_delete(self, body: Any, query: dict[str, str], kind: str, name: str) -> Any:
        if any(key[:2] == (kind, name) for key in self.assets):
            raise ApiError(400, "UserError", f"{name} has versions.")
        return 204, None

    # Serving

    def onlineendpoints_list(self, body: Any, query: dict[str, str]) -> Any:
        return self._page(
            [self.onlineendpoints_get(None, {}, name) for name in list(self.endpoints)],
            "/onlineEndpoints",
            query,
        )

    def onlineendpoints_get(self, body: Any, query: dict[str, str], name: str) -> Any:
        live = self._endpoint(name)
        found = copy.deepcopy(live.body)
        found["properties"] |= {
            "provisioningState": live.state,
            "scoringUri": f"{self.url}/inference/{name}/score",
            "swaggerUri": f"{self.url}/inference/{name}/swagger.json",
        }
        found["identity"] |= {"principalId": str(uuid.UUID(int=1)), "tenantId": str(uuid.UUID(int=2))}
        return {**found, **_resource(f"{WORKSPACE_ID}/onlineEndpoints/{name}", live.created)}

    def onlineendpoints_createorupdate(self, body: Any, query: dict[str, str], name: str) -> Any:
        traffic = body["properties"].get("traffic") or {}
        with self.lock:
            live = self.endpoints.get(name)
            if live is not None:
                self._still(live)
            if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]{1,30}[a-zA-Z0-9]", name):
                raise ApiError(
                    400,
                    "BadArgument",
                    f"Endpoint name {name} is invalid: 3 to 32 letters, digits and hyphens.",
                )
            if sum(traffic.values()) not in (0, 100):
                raise ApiError(400, "BadArgument", "Traffic percentages must sum to 0 or 100.")
            for deployment in traffic:
                if live is None or deployment not in live.deployments:
                    raise ApiError(
                        400, "BadArgument", f"Deployment {deployment} of the traffic does not exist."
                    )
                if live.deployments[deployment].state != "Succeeded" and traffic[deployment]:
                    raise ApiError(
                        400, "BadArgument", f"Deployment {deployment} is not in a succeeded state."
                    )
            status = 200
            if live is None:
                live, status = Live(body, time.time()), 201
                self.endpoints[name] = live
            live.state = "Updating" if status == 200 else "Creating"
            wanted = copy.deepcopy(body)
            live.operation = self._operation(live)

        def settle() -> None:
            time.sleep(self.pace)
            with self.lock:
                live.body, live.state = wanted, "Succeeded"

        threading.Thread(target=settle, daemon=True).start()
        return status, self.onlineendpoints_get(None, {}, name), self._tells(live)

    def onlineendpoints_delete(self, body: Any, query: dict[str, str], name: str) -> Any:
        with self.lock:
            if name not in self.endpoints:
                return 204, None
            live = self.endpoints[name]
            self._still(live)
            live.state = "Deleting"

        def vanish() -> None:
            time.sleep(self.pace)
            for deployment in live.deployments.values():
                if deployment.container is not None:
                    deployment.container.stop()
            with self.lock:
                self.endpoints.pop(name, None)

        threading.Thread(target=vanish, daemon=True).start()
        return 202, None, self._tells(live)

    def onlineendpoints_listkeys(self, body: Any, query: dict[str, str], name: str) -> Any:
        self._endpoint(name)
        return {"primaryKey": f"{self.generation}key-of-{name}", "secondaryKey": f"other-key-of-{name}"}

    def onlinedeployments_list(self, body: Any, query: dict[str, str], name: str) -> Any:
        found = [
            self.onlinedeployments_get(None, {}, name, key) for key in list(self._endpoint(name).deployments)
        ]
        return {"value": found}

    def onlinedeployments_get(self, body: Any, query: dict[str, str], name: str, deployment: str) -> Any:
        live = self._deployment(name, deployment)
        found = copy.deepcopy(live.body)
        found["properties"]["provisioningState"] = live.state
        return {
            **found,
            **_resource(f"{WORKSPACE_ID}/onlineEndpoints/{name}/deployments/{deployment}", live.created),
        }

    def onlinedeployments_createorupdate(
        self, body: Any, query: dict[str, str], name: str, deployment: str
    ) -> Any:
        with self.lock:
            endpoint = self._endpoint(name)
            self._still(endpoint)
            if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]{1,30}[a-zA-Z0-9]", deployment):
                raise ApiError(400, "BadArgument", f"Deployment name {deployment} is invalid.")
            if body["properties"]["instanceType"] not in SIZES:
                raise ApiError(
                    400,
                    "BadArgument",
                    f"Instance type {body['properties']['instanceType']} is not supported.",
                )
            if deployment in endpoint.deployments:
                self._still(endpoint.deployments[deployment])
                raise ApiError(400, "BadArgument", f"Deployment {deployment} exists.")
            live = Live(copy.deepcopy(body), time.time())
            live.operation = self._operation(live)
            endpoint.deployments[deployment] = live
        threading.Thread(target=self._serve, args=(name, deployment, live), daemon=True).start()
        return 201, self.onlinedeployments_get(None, {}, name, deployment), self._tells(live)

    def onlinedeployments_delete(self, body: Any, query: dict[str, str], name: str, deployment: str) -> Any:
        with self.lock:
            if name not in self.endpoints or deployment not in self.endpoints[name].deployments:
                return 204, None
            endpoint = self.endpoints[name]
            live = endpoint.deployments[deployment]
            self._still(endpoint)
            self._still(live)
            if (endpoint.body["properties"].get("traffic") or {}).get(deployment):
                raise ApiError(
                    400, "BadArgument", f"Deployment {deployment} has traffic and cannot be deleted."
                )
            live.state = "Deleting"

        def vanish() -> None:
            time.sleep(self.pace)
            if live.container is not None:
                live.container.stop()
            with self.lock:
                endpoint.deployments.pop(deployment, None)

        threading.Thread(target=vanish, daemon=True).start()
        return 202, None, self._tells(live)

    def onlinedeployments_getlogs(self, body: Any, query: dict[str, str], name: str, deployment: str) -> Any:
        return {"content": "\n".join(self._deployment(name, deployment).log[-int(body.get("tail") or 100) :])}

    # Azure Monitor

    def autoscalesettings_createorupdate(self, body: Any, query: dict[str, str], name: str) -> Any:
        target = body["properties"]["targetResourceUri"]
        match = re.fullmatch(
            rf"{re.escape(WORKSPACE_ID)}/onlineEndpoints/([^/]+)/deployments/([^/]+)", target
        )
        if match is None or self._deployment(*match.groups()).state != "Succeeded":
            raise ApiError(400, "BadRequest", f"The target resource {target} cannot be scaled.")
        for profile in body["properties"]["profiles"]:
            low, first, high = (int(profile["capacity"][key]) for key in ("minimum", "default", "maximum"))
            if not low <= first <= high:
                raise ApiError(400, "BadRequest", "The capacity of a profile is out of order.")
        with self.lock:
            status = 200 if name in self.settings else 201
            self.settings[name] = copy.deepcopy(body)
        kind = {"type": "Microsoft.Insights/autoscaleSettings", "id": f"{SETTINGS}/{name}", "name": name}
        return status, {**body, **kind}

    def autoscalesettings_delete(self, body: Any, query: dict[str, str], name: str) -> Any:
        with self.lock:
            return (200 if self.settings.pop(name, None) is not None else 204), None

    def _serve(self, name: str, deployment: str, live: Live) -> None:
        properties = live.body["properties"]
        time.sleep(self.pace)
        try:
            base = self.folder / "serving" / f"{name}-{deployment}-{random.randrange(16**6):06x}"
            model, version = _named(properties["model"])
            asset = self.assets["models", model, version]["properties"]
            root = base / "azureml-models" / model / version
            self._download(_path(asset["modelUri"]), root / asset["modelUri"].rstrip("/").rpartition("/")[2])
            code = self.assets["codes", *_named(properties["codeConfiguration"]["codeId"])]["properties"][
                "codeUri"
            ]
            _, path = place_of(urlsplit(code).path.removeprefix(f"/{ACCOUNT}/"))
            self._download(path, base / "code")
        except (KeyError, FileNotFoundError) as error:
            live.error, live.state = f"BadArgument: {error}", "Failed"
            return
        environment = {
            **properties["environmentVariables"],
            "AZUREML_MODEL_DIR": str(root),
            "AZUREML_ENTRY_SCRIPT": str(base / "code" / properties["codeConfiguration"]["scoringScript"]),
        }
        container = Serving(base, environment, live.log.append, "serve_azure.py", ("/", "/score"))
        self.running.append(container)
        if container.healthy(30):
            live.container, live.state = container, "Succeeded"
            return
        container.stop()
        live.error = "ResourceNotReady: User container has crashed or terminated. Please see troubleshooting guide, available here: https://aka.ms/oe-tsg#error-resourcenotready"
        live.state = "Failed"

    def _download(self, prefix: str, target: Path) -> None:
        found = self.blobs.below(CONTAINER, prefix)
        if not found:
            raise FileNotFoundError(prefix)
        for name, content in found.items():
            path = target / name[len(prefix) :].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def invoke(
        self, name: str, wanted: str, body: bytes, kind: str, accept: str
    ) -> tuple[int, dict[str, str], bytes]:
        """A prediction."""
        with self.lock:
            live = self.endpoints.get(name)
            traffic = {
                key: share
                for key, share in ((live.body["properties"].get("traffic") or {}) if live else {}).items()
                if share
            }
            if live is not None and wanted:
                traffic = {wanted: 100} if wanted in live.deployments else {}
            ready = {key: share for key, share in traffic.items() if live and live.deployments[key].container}
            if live is None or not ready:
                return (
                    404,
                    {},
                    b"No valid deployments to route to. Please check that the endpoint has at least one deployment with positive weight values or use a deployment specific header to route. ",
                )
            chosen = random.choices(list(ready), list(ready.values()))[0]
            container = live.deployments[chosen].container
        assert container is not None
        status, answer = container.ask(body, kind, accept)
        headers = {"azureml-model-deployment": chosen, "Content-Type": "application/json"}
        if status == 200:
            return 200, headers, answer
        headers |= {
            "ms-azureml-model-error-reason": "model_error",
            "ms-azureml-model-error-statuscode": str(status),
        }
        return 424, headers, answer

    def _endpoint(self, name: str) -> Live:
        if name not in self.endpoints:
            raise ApiError(404, "UserError", f"Endpoint {name} was not found.")
        return self.endpoints[name]

    def _deployment(self, name: str, deployment: str) -> Live:
        if deployment not in self._endpoint(name).deployments:
            raise ApiError(404, "UserError", f"Deployment {deployment} of endpoint {name} was not found.")
        return self._endpoint(name).deployments[deployment]

    def _still(self, live: Live) -> None:
        if live.state in _WAITING:
            raise ApiError(
                409, "Conflict", "A request to create or update this entity is already in progress."
            )

    # Plumbing

    def _operation(self, live: Live) -> str:
        name = str(uuid.uuid4())
        self.operations[name] = live
        return name

    def _tells(self, live: Live) -> dict[str, str]:
        if not live.operation:
            return {}
        path = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.MachineLearningServices/locations/{LOCATION}/mfeOperationsStatus"
        return {"Azure-AsyncOperation": f"{self.url}{path}/{live.operation}?api-version={VERSION}"}

    def operation(self, name: str) -> Any:
        """How a long operation stands."""
        if name not in self.operations:
            raise ApiError(404, "NotFound", "The operation is not known.")
        live = self.operations[name]
        found: dict[str, Any] = {"id": name, "status": "InProgress" if live.state in _WAITING else live.state}
        if live.state == "Failed":
            code, _, message = live.error.partition(": ")
            found["error"] = {"code": code, "message": message}
        return found

    def _page(self, items: list[Any], path: str, query: dict[str, str]) -> Any:
        start, size = int(query.get("$skip") or 0), 10
        found: dict[str, Any] = {"value": items[start : start + size]}
        if start + size < len(items):
            more = "&".join(f"{key}={value}" for key, value in {**query, "$skip": str(start + size)}.items())
            found["nextLink"] = f"{self.url}{WORKSPACE_ID}{path}?{more}"
        return found

    def close(self) -> None:
        """End whatever runs."""
        for container in self.running:
            with contextlib.suppress(Exception):
                container.stop(0) if isinstance(container, Training) else container.stop()


def _named(identity: str) -> tuple[str, str]:
    """Name and version of an asset's id."""
    parts = identity.split("/")
    return parts[-3], parts[-1]


def _module(model: str) -> str:
    """Where a model is from."""
    return {"RunDetails": HISTORY, "AutoscaleSettingResource": MONITOR}.get(model, ARM)


def _resource(identity: str, created: float | None = None) -> dict[str, Any]:
    at = _time(created or time.time())
    return {
        "id": identity,
        "name": identity.rpartition("/")[2],
        "type": "Microsoft.MachineLearningServices/workspaces",
        "systemData": {"createdAt": at, "createdByType": "User", "lastModifiedAt": at},
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"


def _path(uri: str) -> str:
    return unquote(re.sub(r"(?i)^azureml://.*?/paths/", "", uri)).rstrip("/")


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log(self, *args: Any) -> None:
        pass


class _Lost(Exception):
    """The connection ends without a reply."""


class AzureServer:
    """All of Azure that we need, on one port of this machine."""

    def __init__(self, folder: Path, *, pace: float = 0.05, grace: float = 0.5) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._authority, chain, key = certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        self.blobs = BlobStore()
        self.ml = MachineLearning(folder, self.blobs, pace, grace)
        self._server: BaseWSGIServer = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet, ssl_context=context
        )
        self.url = self.ml.url = f"https://127.0.0.1:{self._server.server_port}"
        self.folder = folder
        self.tokens: set[str] = set()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def environment(self) -> dict[str, str]:
        """What a process needs to find it: a managed identity, and whom to trust."""
        return {
            "IDENTITY_ENDPOINT": f"{self.url}/msi/token",
            "IDENTITY_HEADER": "the-header",
            "AZURE_TOKEN_CREDENTIALS": "prod",
            "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
            "REQUESTS_CA_BUNDLE": str(self._authority),
        }

    def close(self) -> None:
        """End it and whatever runs in it."""
        self.ml.close()
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes] | list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        headers = {
            key[5:].replace("_", "-").lower(): value
            for key, value in environ.items()
            if key.startswith("HTTP_")
        }
        headers["content-type"] = environ.get("CONTENT_TYPE", "")
        path, query = (
            environ["PATH_INFO"].encode("latin-1").decode(),
            dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)),
        )
        try:
            status, more, content = self._reply(environ["REQUEST_METHOD"], path, query, headers, body)
        except _Lost:
            # Closed without a word, as a broken line does.
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError from None
        except ApiError as error:
            said = {"error": {"code": error.code, "message": str(error), "details": [], "additionalInfo": []}}
            status, more, content = (
                error.status,
                {"Content-Type": "application/json", **error.headers},
                json.dumps(said).encode(),
            )
        more = {"Content-Length": str(len(content)), **more, "x-ms-request-id": str(uuid.uuid4())}
        start(f"{status} Reply", list(more.items()))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]

    def _reply(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if path == "/msi/token":
            return self._token(query, headers)
        if path.startswith(f"/{ACCOUNT}/"):
            fault = self.ml.fault(f"Blob_{method}")
            if fault == "drop":
                raise _Lost
            _refuse(fault)
            if query.get("sig") != SIGNATURE:
                self._allowed(headers, "https://storage.azure.com")
            container, name = place_of(path.removeprefix(f"/{ACCOUNT}/"))
            return self.blobs.answer(method, container, name, query, headers, body)
        match = re.fullmatch(r"/inference/([^/]+)/score", path)
        if match:
            return self._score(match[1], headers, body)
        operation, handler, sent, told = self._route(method, path)
        with self.ml.lock:
            self.ml.calls.append(operation)
        fault = self.ml.fault(operation)
        if fault == "drop":
            raise _Lost
        _refuse(fault)
        self._allowed(headers, self.url)
        versions = ("2022-10-01",) if path.startswith(SETTINGS) else (VERSION, "2022-04-01")
        if path.startswith("/subscriptions/") and query.get("api-version") not in versions:
            raise ApiError(
                400, "InvalidApiVersionParameter", f"The api-version {query.get('api-version')!r} is invalid."
            )
        parsed = json.loads(body) if body else None
        if sent:
            wrong = problems(_module(sent), sent, parsed, sent=True)
            if wrong:
                self.ml.violations.append(f"{operation} was asked: {'; '.join(wrong)}")
                raise ApiError(400, "ValidationError", "; ".join(wrong))
        found = handler(parsed, query)
        status, reply, more = (*found, {})[:3] if isinstance(found, tuple) else (200, found, {})
        self._check(operation, told, reply)
        if fault == "lost":
            raise _Lost
        content = b"" if reply is None else json.dumps(reply).encode()
        return status, {"Content-Type": "application/json", **more}, content

    def _check(self, operation: str, told: str, reply: Any) -> None:
        if not told or reply is None:
            return
        items = reply["value"] if told.startswith("[") else [reply]
        for item in items:
            wrong = problems(_module(told), told.strip("[]"), item, sent=False)
            if wrong:
                self.ml.violations.append(f"{operation} answered: {'; '.join(wrong)}")

    def _route(self, method: str, path: str) -> tuple[str, Callable[..., Any], str, str]:
        if path == "/discovery":
            urls = {"api": self.url, "history": f"{self.url}/history", "mlflow": self.url}
            return "Discovery", lambda body, query: urls, "", ""
        below = re.fullmatch(rf"/history/v1\.0{re.escape(WORKSPACE_ID)}/runs/([^/]+)/details", path)
        if below and method == "GET":
            return "Runs_GetDetails", lambda body, query: self.ml.details(below[1]), "", "RunDetails"
        place = (
            f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.MachineLearningServices/locations/{LOCATION}"
        )
        if path == f"{place}/usages":
            return "Usages_List", lambda body, query: self.ml.usages(), "", "[Usage]"
        if path == f"{place}/vmSizes":
            return "VirtualMachineSizes_List", lambda body, query: self.ml.sizes(), "", "[VirtualMachineSize]"
        if path.startswith(f"{place}/mfeOperationsStatus/"):
            return "Operations_Get", lambda body, query: self.ml.operation(path.rpartition("/")[2]), "", ""
        group = re.match(r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/", path)
        if group and group[1] == SUBSCRIPTION and group[2] != GROUP:
            raise ApiError(404, "ResourceGroupNotFound", f"Resource group '{group[2]}' could not be found.")
        if not path.startswith((WORKSPACE_ID, f"{SETTINGS}/")):
            name = path.partition("/workspaces/")[2].partition("/")[0]
            raise ApiError(
                404,
                "ResourceNotFound",
                f"The Resource 'Microsoft.MachineLearningServices/workspaces/{name}' under resource group '{GROUP}' was not found.",
            )
        rest = path.removeprefix(WORKSPACE_ID)
        for verb, pattern, operation, sent, told in _ROUTES:
            match = re.fullmatch(pattern, rest)
            if verb == method and match:
                handler = getattr(self.ml, operation.lower())
                return (
                    operation,
                    lambda body, query, m=match, h=handler: h(body, query, *m.groups()),
                    sent,
                    told,
                )
        raise ApiError(405, "MethodNotAllowed", f"{method} {rest} is no operation of the API.")

    def _token(self, query: dict[str, str], headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if headers.get("x-identity-header") != "the-header":
            raise ApiError(401, "unauthorized_client", "The header is wrong.")
        token = f"token-for-{query['resource']}"
        self.tokens.add(token)
        answer = {
            "access_token": token,
            "expires_on": str(int(time.time()) + 86400),
            "resource": query["resource"],
            "token_type": "Bearer",
        }
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def _allowed(self, headers: dict[str, str], audience: str) -> None:
        """A token has to be for whom it is shown to."""
        if headers.get("authorization") != f"Bearer token-for-{audience}":
            raise ApiError(
                401, "InvalidAuthenticationToken", "The access token is missing, or is for another audience."
            )

    def _score(self, name: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        with self.ml.lock:
            self.ml.calls.append("Score")
        fault = self.ml.fault("Score")
        if fault in ("drop", "lost"):
            raise _Lost
        _refuse(fault)
        live = self.ml.endpoints.get(name)
        if live is not None:
            key = live.body["properties"]["authMode"] == "Key"
            wanted = (
                f"Bearer {self.ml.generation}key-of-{name}"
                if key
                else "Bearer token-for-https://ml.azure.com"
            )
            if headers.get("authorization") != wanted:
                return 401, {}, b"Unauthorized"
        return self.ml.invoke(
            name,
            headers.get("azureml-model-deployment", ""),
            body,
            headers["content-type"],
            headers.get("accept", "*/*"),
        )


def _refuse(fault: str | None) -> None:
    errors: dict[str, tuple[int, str, str, dict[str, str]]] = {
        "throttle": (
            429,
            "TooManyRequests",
            "The request is being throttled.",
            {"x-ms-retry-after-ms": "50"},
        ),
        "error": (500, "ServiceError", "InternalServerError", {"x-ms-retry-after-ms": "50"}),
        "denied": (
            403,
            "AuthorizationFailed",
            "The client '0000' with object id '0000' does not have authorization to perform action "
            "'Microsoft.MachineLearningServices/workspaces/jobs/write' over scope '/subscriptions/0000'.",
            {},
        ),
        "expired": (
            401,
            "ExpiredAuthenticationToken",
            "The access token expiry UTC time is earlier than current UTC time.",
            {},
        ),
        "quota": (
            400,
            "UserError",
            "Quota exceeded: the requested 4 cores of standardDSv2Family exceed the limit of 0 cores in region westeurope.",
            {},
        ),
        "conflict": (
            409,
            "Conflict",
            "A request to create or update this entity is already in progress.",
            {},
        ),
    }
    if fault in errors:
        status, code, message, headers = errors[fault]
        raise ApiError(status, code, message, headers)
