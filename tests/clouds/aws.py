"""A SageMaker of our own: the published API over HTTP, with S3 by moto, and containers that really run.

Every request and every reply is held against the models that botocore ships. Jobs and endpoints go through the states the
API documents, take time, and fail as told (``fail``); what a container prints is in CloudWatch Logs.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import json
import math
import random
import re
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.clouds.faulty import Faulty

from .aws_models import operation, problems
from .containers import Serving, Training, command_arguments, training_environment

ACCOUNT = "123456789012"
REGION = "eu-central-1"
_TARGETS = {
    "SageMaker": "sagemaker",
    "Logs_20140328": "logs",
    "AnyScaleFrontendService": "application-autoscaling",
}
_INVOKE = re.compile(r"/endpoints/(?P<name>[^/]+)/invocations")


class ApiError(Exception):
    """An error that the API answers with."""

    def __init__(self, code: str, message: str, status: int = 400, **fields: Any) -> None:
        super().__init__(message)
        self.code, self.status, self.fields = code, status, {"message": message, **fields}


@dataclass
class Job:
    """A training job."""

    request: dict[str, Any]
    created: float
    status: str = "InProgress"
    secondary: str = "Starting"
    reason: str = ""
    started: float | None = None
    ended: float | None = None
    stopping: threading.Event = field(default_factory=threading.Event)


@dataclass
class LiveEndpoint:
    """An endpoint: what it serves, and what runs."""

    config: str
    created: float
    status: str = "Creating"
    reason: str = ""
    weights: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    containers: dict[str, Serving] = field(default_factory=dict)
    changed: float = 0.0


class SageMaker(Faulty):
    """The service's state; ``AwsServer`` puts it on a port.

    Args:
        folder: For the containers.
        s3: A boto3 client of the S3 beside it.
        pace: Seconds that a machine takes to start, and that an update takes to move traffic.
        grace: Seconds between SIGTERM and SIGKILL; 120 at AWS.
    """

    def __init__(self, folder: Path, s3: Callable[[], Any], pace: float, grace: float) -> None:
        self.folder, self._s3, self.pace, self.grace = folder, s3, pace, grace
        super().__init__()
        #: What a container finds AWS by, and who it is there.
        self.role: dict[str, str] = {}
        self.jobs: dict[str, Job] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, LiveEndpoint] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.logs: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self.targets: dict[str, dict[str, Any]] = {}
        self.policies: dict[str, dict[str, Any]] = {}
        self.violations: list[str] = []
        self.no_capacity: set[str] = set()
        self.running: list[Any] = []

    # Training

    def create_training_job(self, p: dict[str, Any]) -> dict[str, Any]:
        name, arn = p["TrainingJobName"], self.arn("training-job", p["TrainingJobName"])
        with self.lock:
            if name in self.jobs:
                raise ApiError(
                    "ResourceInUse",
                    f"Job name must be unique within an AWS account and region, and a training job with this name already exists ({arn})",
                )
            wait = p["StoppingCondition"].get("MaxWaitTimeInSeconds")
            if wait is not None and (
                not p.get("EnableManagedSpotTraining") or wait < p["StoppingCondition"]["MaxRuntimeInSeconds"]
            ):
                raise ApiError(
                    "ValidationException",
                    "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds",
                )
            self.jobs[name] = Job(p, time.time())
            self._tag(arn, p.get("Tags", []))
        threading.Thread(target=self._train, args=(name,), daemon=True).start()
        return {"TrainingJobArn": arn}

    def describe_training_job(self, p: dict[str, Any]) -> dict[str, Any]:
        job = self._job(p["TrainingJobName"])
        request = {k: v for k, v in job.request.items() if k != "Tags"}
        found = {
            **request,
            "TrainingJobArn": self.arn("training-job", request["TrainingJobName"]),
            "TrainingJobStatus": job.status,
            "SecondaryStatus": job.secondary,
            "CreationTime": job.created,
            "LastModifiedTime": job.ended or job.started or job.created,
            "ModelArtifacts": {"S3ModelArtifacts": self._artifacts(job)},
        }
        if job.started:
            found["TrainingStartTime"] = job.started
        if job.ended:
            seconds = math.ceil(job.ended - (job.started or job.ended))
            spot = bool(request.get("EnableManagedSpotTraining"))
            found |= {"TrainingEndTime": job.ended, "TrainingTimeInSeconds": max(seconds, 1)}
            found["BillableTimeInSeconds"] = max(math.ceil(seconds * (0.3 if spot else 1)), 1)
        if job.reason:
            found["FailureReason"] = job.reason[:1024]
        return found

    def list_training_jobs(self, p: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            found = [
                (n, j)
                for n, j in self.jobs.items()
                if p.get("NameContains", "") in n and j.created >= p.get("CreationTimeAfter", 0)
            ]
        found.sort(key=lambda item: item[1].created, reverse=p.get("SortOrder") != "Ascending")
        page, token = self._page(found, p)
        return {
            "TrainingJobSummaries": [
                {
                    "TrainingJobName": name,
                    "TrainingJobArn": self.arn("training-job", name),
                    "CreationTime": job.created,
                    "TrainingJobStatus": job.status,
                    "SecondaryStatus": job.secondary,
                    **({"TrainingEndTime": job.ended} if job.ended else {}),
                }
                for name, job in page
            ],
            **token,
        }

    def stop_training_job(self, p: dict[str, Any]) -> dict[str, Any]:
        job = self._job(p["TrainingJobName"])
        if job.status != "InProgress":
            raise ApiError(
                "ValidationException",
                f"The request was rejected because the training job is in status {job.status}.",
            )
        job.status = job.secondary = "Stopping"
        job.stopping.set()
        return {}

    def _job(self, name: str) -> Job:
        if name not in self.jobs:
            raise ApiError("ValidationException", "Requested resource not found.")
        return self.jobs[name]

    def _train(self, name: str) -> None:
        job = self.jobs[name]
        try:
            self._train_in_container(name, job)
        except Exception as error:
            self._end(
                job, "Failed", "Failed", f"InternalServerError: We encountered an internal error. {error!r}"
            )

    def _train_in_container(self, name: str, job: Job) -> None:
        request = job.request
        time.sleep(self.pace)
        if request["ResourceConfig"]["InstanceType"] in self.no_capacity:
            return self._end(
                job,
                "Failed",
                "Failed",
                "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type.",
            )
        if job.stopping.is_set():
            return self._end(job, "Stopped", "Stopped")
        base = self.folder / "training" / name
        for part in ("input/data", "model", "output/data", "code"):
            (base / part).mkdir(parents=True, exist_ok=True)
        hyperparameters = {k: json.loads(v) for k, v in request["HyperParameters"].items()}
        job.secondary = "Downloading"
        channels = []
        for channel in request.get("InputDataConfig", []):
            source = channel["DataSource"]["S3DataSource"]["S3Uri"]
            channels.append(channel["ChannelName"])
            if not self._download(source, base / "input" / "data" / channel["ChannelName"]):
                return self._end(
                    job,
                    "Failed",
                    "Failed",
                    f"ClientError: Data download failed:NoSuchKey (404): No S3 objects found under S3 URL {source!r} given in input data source.",
                )
        source = hyperparameters["sagemaker_submit_directory"]
        archive = base / "sourcedir.tar.gz"
        if request.get("EnableNetworkIsolation"):
            # It reaches no S3: only what a channel has brought is there.
            archive = base / source.removeprefix("/opt/ml/")
        else:
            self._s3().download_file(*_split(source), str(archive))
        with tarfile.open(archive) as opened:
            opened.extractall(base / "code", filter="data")
        given = {**self.role, **request.get("Environment", {})}
        environment = training_environment(base, hyperparameters, channels, given, ["algo-1"])
        stream = f"{name}/algo-1-{int(time.time())}"
        job.started, job.secondary = time.time(), "Training"
        container = Training(
            base,
            [hyperparameters["sagemaker_program"], *command_arguments(hyperparameters)],
            environment,
            lambda line: self.say("/aws/sagemaker/TrainingJobs", stream, line),
        )
        self.running.append(container)
        deadline = time.time() + request["StoppingCondition"]["MaxRuntimeInSeconds"]
        code = None
        while code is None:
            code = container.wait(0.05)
            if code is None and (job.stopping.is_set() or time.time() > deadline):
                container.stop(self.grace)
                self._upload(job, base)
                overdue = not job.stopping.is_set()
                return self._end(job, "Stopped", "MaxRuntimeExceeded" if overdue else "Stopped")
        job.secondary = "Uploading"
        self._upload(job, base)
        if code == 0:
            return self._end(job, "Completed", "Completed")
        if code < 0:
            return self._end(job, "Failed", "Failed", f"AlgorithmError: , exit code: {128 - code}")
        program = hyperparameters["sagemaker_program"]
        return self._end(
            job,
            "Failed",
            "Failed",
            f'AlgorithmError: ExecuteUserScriptError:\nExitCode {code}\nErrorMessage ""\nCommand "/opt/conda/bin/python3 {program}", exit code: 1',
        )

    def _download(self, source: str, target: Path) -> bool:
        bucket, key = _split(source)
        target.mkdir(parents=True, exist_ok=True)
        found = self._s3().list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", [])
        for item in found:
            relative = item["Key"][len(key) :].lstrip("/") or item["Key"].rpartition("/")[2]
            path = target / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            self._s3().download_file(bucket, item["Key"], str(path))
        return bool(found)

    def _upload(self, job: Job, base: Path) -> None:
        name = job.request["TrainingJobName"]
        bucket, key = _split(job.request["OutputDataConfig"]["S3OutputPath"])
        for folder, archive in (
            (base / "model", "model.tar.gz"),
            (base / "output" / "data", "output.tar.gz"),
        ):
            path = base / archive
            with tarfile.open(path, "w:gz") as opened:
                for item in sorted(folder.iterdir()):
                    opened.add(item, item.name)
            self._s3().upload_file(str(path), bucket, f"{key.rstrip('/')}/{name}/output/{archive}")

    def _artifacts(self, job: Job) -> str:
        start = job.request["OutputDataConfig"]["S3OutputPath"].rstrip("/")
        return f"{start}/{job.request['TrainingJobName']}/output/model.tar.gz"

    def _end(self, job: Job, status: str, secondary: str, reason: str = "") -> None:
        job.reason, job.ended, job.secondary, job.status = reason, time.time(), secondary, status

    # Serving

    def create_model(self, p: dict[str, Any]) -> dict[str, Any]:
        arn = self.arn("model", p["ModelName"])
        with self.lock:
            if p["ModelName"] in self.models:
                raise ApiError("ValidationException", f'Cannot create already existing model "{arn}".')
            self.models[p["ModelName"]] = p
            self._tag(arn, p.get("Tags", []))
        return {"ModelArn": arn}

    def list_models(self, p: dict[str, Any]) -> dict[str, Any]:
        names = [n for n in self.models if p.get("NameContains", "") in n]
        page, token = self._page(names, p)
        return {
            "Models": [
                {"ModelName": n, "ModelArn": self.arn("model", n), "CreationTime": time.time()} for n in page
            ],
            **token,
        }

    def delete_model(self, p: dict[str, Any]) -> dict[str, Any]:
        if self.models.pop(p["ModelName"], None) is None:
            raise ApiError(
                "ValidationException", f'Could not find model "{self.arn("model", p["ModelName"])}".'
            )
        return {}

    def create_endpoint_config(self, p: dict[str, Any]) -> dict[str, Any]:
        arn = self.arn("endpoint-config", p["EndpointConfigName"])
        with self.lock:
            if p["EndpointConfigName"] in self.configs:
                raise ApiError(
                    "ValidationException", f'Cannot create already existing endpoint configuration "{arn}".'
                )
            for variant in p["ProductionVariants"]:
                if variant["ModelName"] not in self.models:
                    raise ApiError(
                        "ValidationException",
                        f'Could not find model "{self.arn("model", variant["ModelName"])}".',
                    )
            self.configs[p["EndpointConfigName"]] = {**p, "CreationTime": time.time()}
            self._tag(arn, p.get("Tags", []))
        return {"EndpointConfigArn": arn}

    def describe_endpoint_config(self, p: dict[str, Any]) -> dict[str, Any]:
        name = p["EndpointConfigName"]
        if name not in self.configs:
            raise ApiError(
                "ValidationException",
                f'Could not find endpoint configuration "{self.arn("endpoint-config", name)}".',
            )
        found = {k: v for k, v in self.configs[name].items() if k != "Tags"}
        return {**found, "EndpointConfigArn": self.arn("endpoint-config", name)}

    def list_endpoint_configs(self, p: dict[str, Any]) -> dict[str, Any]:
        names = [n for n in self.configs if p.get("NameContains", "") in n]
        page, token = self._page(names, p)
        items = [
            {
                "EndpointConfigName": n,
                "EndpointConfigArn": self.arn("endpoint-config", n),
                "CreationTime": time.time(),
            }
            for n in page
        ]
        return {"EndpointConfigs": items, **token}

    def delete_endpoint_config(self, p: dict[str, Any]) -> dict[str, Any]:
        if self.configs.pop(p["EndpointConfigName"], None) is None:
            raise ApiError("ValidationException", "Could not find endpoint configuration.")
        return {}

    def create_endpoint(self, p: dict[str, Any]) -> dict[str, Any]:
        name, arn = p["EndpointName"], self.arn("endpoint", p["EndpointName"])
        with self.lock:
            self.describe_endpoint_config(p)
            if name in self.endpoints:
                raise ApiError("ValidationException", f'Cannot create already existing endpoint "{arn}".')
            self.endpoints[name] = LiveEndpoint(p["EndpointConfigName"], time.time(), changed=time.time())
            self._tag(arn, p.get("Tags", []))
        threading.Thread(target=self._roll, args=(name, p["EndpointConfigName"]), daemon=True).start()
        return {"EndpointArn": arn}

    def update_endpoint(self, p: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            live = self._endpoint(p["EndpointName"])
            self.describe_endpoint_config(p)
            self._still(p["EndpointName"], live)
            live.status = "Updating"
        threading.Thread(
            target=self._roll, args=(p["EndpointName"], p["EndpointConfigName"]), daemon=True
        ).start()
        return {"EndpointArn": self.arn("endpoint", p["EndpointName"])}

    def update_endpoint_weights_and_capacities(self, p: dict[str, Any]) -> dict[str, Any]:
        name = p["EndpointName"]
        with self.lock:
            live = self._endpoint(name)
            self._still(name, live)
            live.status = "Updating"

        def move() -> None:
            time.sleep(self.pace)
            with self.lock:
                for item in p["DesiredWeightsAndCapacities"]:
                    live.weights[item["VariantName"]] = item["DesiredWeight"]
                live.status = "InService"

        threading.Thread(target=move, daemon=True).start()
        return {"EndpointArn": self.arn("endpoint", name)}

    def describe_endpoint(self, p: dict[str, Any]) -> dict[str, Any]:
        name = p["EndpointName"]
        with self.lock:
            live = self._endpoint(name)
            variants = [
                {
                    "VariantName": v,
                    "CurrentWeight": w,
                    "DesiredWeight": w,
                    "CurrentInstanceCount": live.counts.get(v, 1),
                    "DesiredInstanceCount": live.counts.get(v, 1),
                }
                for v, w in live.weights.items()
            ]
            return {
                "EndpointName": name,
                "EndpointArn": self.arn("endpoint", name),
                "EndpointConfigName": live.config,
                "EndpointStatus": live.status,
                "CreationTime": live.created,
                "LastModifiedTime": live.changed,
                **({"ProductionVariants": variants} if variants else {}),
                **({"FailureReason": live.reason} if live.reason else {}),
            }

    def list_endpoints(self, p: dict[str, Any]) -> dict[str, Any]:
        names = [n for n in self.endpoints if p.get("NameContains", "") in n]
        page, token = self._page(names, p)
        return {
            "Endpoints": [
                {
                    "EndpointName": n,
                    "EndpointArn": self.arn("endpoint", n),
                    "CreationTime": self.endpoints[n].created,
                    "LastModifiedTime": self.endpoints[n].changed,
                    "EndpointStatus": self.endpoints[n].status,
                }
                for n in page
            ],
            **token,
        }

    def delete_endpoint(self, p: dict[str, Any]) -> dict[str, Any]:
        name = p["EndpointName"]
        with self.lock:
            live = self._endpoint(name)
            if live.status != "Failed":
                self._still(name, live)
            live.status = "Deleting"

        def vanish() -> None:
            time.sleep(self.pace)
            for container in live.containers.values():
                container.stop()
            with self.lock:
                self.endpoints.pop(name, None)

        threading.Thread(target=vanish, daemon=True).start()
        return {}

    def list_tags(self, p: dict[str, Any]) -> dict[str, Any]:
        found = self.tags.get(p["ResourceArn"], {})
        return {"Tags": [{"Key": key, "Value": value} for key, value in found.items()]}

    def _endpoint(self, name: str) -> LiveEndpoint:
        if name not in self.endpoints:
            raise ApiError("ValidationException", f'Could not find endpoint "{self.arn("endpoint", name)}".')
        return self.endpoints[name]

    def _still(self, name: str, live: LiveEndpoint) -> None:
        if live.status != "InService":
            raise ApiError(
                "ValidationException", f'Cannot update in-progress endpoint "{self.arn("endpoint", name)}".'
            )

    def _roll(self, name: str, config: str) -> None:
        live = self.endpoints[name]
        variants = self.configs[config]["ProductionVariants"]
        fresh: dict[str, Serving] = {}
        time.sleep(self.pace)
        for variant in variants:
            container = self._serve(name, variant)
            if container is None:
                for started in fresh.values():
                    started.stop()
                with self.lock:
                    live.reason = f"The primary container for production variant {variant['VariantName']} did not pass the ping health check. Please check CloudWatch logs for this endpoint."
                    live.status = "InService" if live.containers else "Failed"
                return
            fresh[variant["VariantName"]] = container
        with self.lock:
            old, live.containers = live.containers, fresh
            live.weights = {v["VariantName"]: v["InitialVariantWeight"] for v in variants}
            live.counts = {v["VariantName"]: v.get("InitialInstanceCount", 1) for v in variants}
            live.config, live.reason, live.status, live.changed = config, "", "InService", time.time()
        for container in old.values():
            container.stop()

    def _serve(self, name: str, variant: dict[str, Any]) -> Serving | None:
        model = self.models[variant["ModelName"]]["PrimaryContainer"]
        base = self.folder / "serving" / f"{name}-{variant['VariantName']}-{random.randrange(16**6):06x}"
        (base / "model").mkdir(parents=True)
        bucket, key = _split(model["ModelDataUrl"])
        self._s3().download_file(bucket, key, str(base / "model.tar.gz"))
        with tarfile.open(base / "model.tar.gz") as opened:
            opened.extractall(base / "model", filter="data")
        stream = f"{variant['VariantName']}/i-{random.randrange(16**12):012x}"
        container = Serving(
            base,
            model.get("Environment", {}),
            lambda line: self.say(f"/aws/sagemaker/Endpoints/{name}", stream, line),
        )
        self.running.append(container)
        return container if container.healthy(30) else None

    def invoke(self, name: str, body: bytes, content_type: str, accept: str) -> bytes:
        """A prediction."""
        with self.lock:
            live = self.endpoints.get(name)
            if live is None or not live.containers:
                raise ApiError("ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
            variants = [v for v, w in live.weights.items() if w > 0]
            variant = random.choices(variants, [live.weights[v] for v in variants])[0]
            container = live.containers[variant]
        status, answer = container.ask(body, content_type, accept)
        if status != 200:
            said = answer.decode("utf-8", "replace")[:1024]
            raise ApiError(
                "ModelError",
                f'Received client error ({status}) from {variant} with message "{said}".',
                424,
                OriginalStatusCode=status,
                OriginalMessage=said,
                LogStreamArn=f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/{name}",
            )
        return answer

    # Logs, scaling

    def say(self, group: str, stream: str, line: str) -> None:
        """A line that a container printed."""
        with self.lock:
            self.logs.setdefault((group, stream), []).append((int(time.time() * 1000), line))

    def describe_log_streams(self, p: dict[str, Any]) -> dict[str, Any]:
        group, prefix = p["logGroupName"], p.get("logStreamNamePrefix", "")
        with self.lock:
            if not any(g == group for g, _ in self.logs):
                raise ApiError("ResourceNotFoundException", "The specified log group does not exist.")
            found = [s for g, s in self.logs if g == group and s.startswith(prefix)]
        return {"logStreams": [{"logStreamName": name} for name in found[: p.get("limit", 50)]]}

    def get_log_events(self, p: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            events = list(self.logs.get((p["logGroupName"], p["logStreamName"]), []))
        start = int(p["nextToken"].split("/")[1]) if p.get("nextToken") else 0
        page = events[start : start + 500]
        return {
            "events": [{"timestamp": at, "message": line, "ingestionTime": at} for at, line in page],
            "nextForwardToken": f"f/{start + len(page)}",
            "nextBackwardToken": f"b/{start}",
        }

    def register_scalable_target(self, p: dict[str, Any]) -> dict[str, Any]:
        self.targets[p["ResourceId"]] = p
        return {}

    def put_scaling_policy(self, p: dict[str, Any]) -> dict[str, Any]:
        if p["ResourceId"] not in self.targets:
            raise ApiError("ObjectNotFoundException", "No scalable target registered.")
        self.policies[p["ResourceId"]] = p
        return {"PolicyARN": f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:scalingPolicy:1"}

    def deregister_scalable_target(self, p: dict[str, Any]) -> dict[str, Any]:
        if self.targets.pop(p["ResourceId"], None) is None:
            raise ApiError("ObjectNotFoundException", "No scalable target registered.")
        self.policies.pop(p["ResourceId"], None)
        return {}

    # Plumbing

    def arn(self, kind: str, name: str) -> str:
        """An ARN; SageMaker's are in lower case."""
        return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name.lower()}"

    def _tag(self, arn: str, tags: list[dict[str, str]]) -> None:
        self.tags[arn] = {item["Key"]: item["Value"] for item in tags}

    def _page(self, items: list[Any], p: dict[str, Any]) -> tuple[list[Any], dict[str, str]]:
        start = int(p.get("NextToken", "0"))
        end = start + min(p.get("MaxResults", 10), 100)
        return items[start:end], ({"NextToken": str(end)} if end < len(items) else {})

    def close(self) -> None:
        """End whatever runs."""
        for container in self.running:
            with contextlib.suppress(Exception):
                container.stop(0) if isinstance(container, Training) else container.stop()


class _Quiet(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        pass


class _Lost(Exception):
    """The connection ends without a reply."""


class AwsServer:
    """All of AWS that we need, on one port of this machine."""

    def __init__(self, folder: Path, *, pace: float = 0.05, grace: float = 0.5) -> None:
        from moto.moto_api._internal.models import moto_api_backend
        from moto.server import DomainDispatcherApplication, create_backend_app

        # moto keeps its buckets in the process; a new server starts with none.
        moto_api_backend.reset()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.folder = folder
        self.sagemaker = SageMaker(folder, self.s3, pace, grace)
        self.sagemaker.role = self.environment()
        self._clients = threading.local()
        self.denied: set[str] = set()
        self.policy: dict[str, Any] | None = None
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def s3(self) -> Any:
        """A client of its S3."""
        import boto3

        if not hasattr(self._clients, "s3"):
            self._clients.s3 = boto3.session.Session().client(
                "s3",
                endpoint_url=self.url,
                region_name=REGION,
                aws_access_key_id="testing",
                aws_secret_access_key="testing",
            )
        return self._clients.s3

    def close(self) -> None:
        """End it and whatever runs in it."""
        self.sagemaker.close()
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes] | list[bytes]:
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        service = _TARGETS.get(target.partition(".")[0])
        invoked = _INVOKE.fullmatch(environ["PATH_INFO"])
        if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            form = parse_qs(body.decode())
            if form.get("Action") == ["SimulatePrincipalPolicy"]:
                return self._simulate(form, start)
            environ["wsgi.input"] = io.BytesIO(body)
        if service is None and invoked is None:
            answer: list[bytes] = self._moto(environ, start)
            return answer
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        action = target.partition(".")[2] if service else "InvokeEndpoint"
        with self.sagemaker.lock:
            self.sagemaker.calls.append(action)
        fault = self.sagemaker.fault(action)
        try:
            if fault == "drop":
                raise _Lost
            _refuse(fault)
            if invoked is not None:
                reply = self.sagemaker.invoke(
                    invoked["name"], body, environ.get("CONTENT_TYPE", ""), environ.get("HTTP_ACCEPT", "*/*")
                )
            else:
                assert service is not None
                reply = self._call(service, action, json.loads(body or b"{}"))
            if fault == "lost":
                raise _Lost
            start(
                "200 OK",
                [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(reply)))],
            )
            return [reply]
        except _Lost:
            # Closed without a word, as a broken line does.
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError from None
        except ApiError as error:
            content = json.dumps(
                {"__type": error.code, "Message": error.fields["message"], **error.fields}
            ).encode()
            start(
                f"{error.status} Error",
                [
                    ("Content-Type", "application/x-amz-json-1.1"),
                    ("x-amzn-ErrorType", error.code),
                    ("Content-Length", str(len(content))),
                ],
            )
            return [content]

    def _allowed(self, action: str, resources: list[str], context: dict[str, list[str]]) -> bool:
        if action in self.denied or self.policy is None:
            return action not in self.denied
        own = [statement for statement in self.policy["Statement"] if action in statement["Action"]]
        return all(
            any(
                any(fnmatch.fnmatchcase(resource, pattern) for pattern in statement["Resource"])
                and all(
                    any(
                        fnmatch.fnmatchcase(value, p)
                        for value in context.get(key, [])
                        for p in _listed(wanted)
                    )
                    for test in statement.get("Condition", {}).values()
                    for key, wanted in test.items()
                )
                for statement in own
            )
            for resource in resources
        )

    def _simulate(self, form: dict[str, list[str]], start: Callable[..., Any]) -> list[bytes]:
        """IAM's SimulatePrincipalPolicy, which moto has not: what no policy denies and ``policy``, if there is one, allows."""

        def given(start: str) -> list[str]:
            return [
                values[0] for name, values in form.items() if re.fullmatch(start + r"\.member\.\d+", name)
            ]

        context = {
            form[f"{entry}.ContextKeyName"][0]: given(re.escape(entry) + r"\.ContextKeyValues")
            for entry in {name.rpartition(".")[0] for name in form if name.endswith(".ContextKeyName")}
        }
        resources = given("ResourceArns") or ["*"]
        members = "".join(
            f"<member><EvalActionName>{action}</EvalActionName><EvalDecision>"
            f"{'allowed' if self._allowed(action, resources, context) else 'implicitDeny'}</EvalDecision></member>"
            for action in given("ActionNames")
        )
        reply = (
            '<SimulatePrincipalPolicyResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><SimulatePrincipalPolicyResult>'
            f"<IsTruncated>false</IsTruncated><EvaluationResults>{members}</EvaluationResults>"
            "</SimulatePrincipalPolicyResult></SimulatePrincipalPolicyResponse>"
        ).encode()
        start("200 OK", [("Content-Type", "text/xml"), ("Content-Length", str(len(reply)))])
        return [reply]

    def _call(self, service: str, action: str, parameters: dict[str, Any]) -> bytes:
        model = operation(service, action)
        wrong = problems(model.input_shape, parameters)
        if wrong:
            raise ApiError(
                "ValidationException",
                f"{len(wrong)} validation error{'s' if len(wrong) > 1 else ''} detected: {'; '.join(wrong)}",
            )
        handler = getattr(self.sagemaker, re.sub(r"(?<!^)(?=[A-Z])", "_", action).lower())
        reply = handler(parameters)
        bad = problems(model.output_shape, reply) if model.output_shape is not None else []
        if bad:
            self.sagemaker.violations.append(f"{action}: {'; '.join(bad)}")
        return json.dumps(reply).encode()


def _refuse(fault: str | None) -> None:
    errors = {
        "throttle": ("ThrottlingException", "Rate exceeded", 400),
        "error": ("InternalFailure", "The request processing has failed because of an unknown error.", 500),
        "denied": (
            "AccessDeniedException",
            "User: arn:aws:iam::123456789012:user/u is not authorized to perform this action",
            400,
        ),
        "expired": ("ExpiredTokenException", "The security token included in the request is expired", 400),
        "quota": (
            "ResourceLimitExceeded",
            "The account-level service limit 'ml.m5.large for training job usage' is 0 Instances, with current utilization of 0 Instances.",
            400,
        ),
    }
    if fault in errors:
        code, message, status = errors[fault]
        raise ApiError(code, message, status)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _split(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")
