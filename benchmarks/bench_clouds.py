"""The clouds: loading, submitting beside the bare SDK, and waiting for many jobs with one question.

Against the servers of the tests on this machine, each in the process that asks it: what is measured is our work and the SDK's,
not a cloud's. The peer submits what ours submitted, with clients that are made and used before the clock starts, as ours are.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.cloud.provider import CloudProvider
from tests.contract.scripts import write_scripts

ROUNDS = 15
WAITING = 200
# What a process has to import before the SDK can do what the provider does with it.
SDKS = {
    "sagemaker": (
        "boto3",
        "boto3; [boto3.client(n, region_name='eu-central-1') for n in ('sagemaker', 's3')]",
    ),
    "azure": ("azure-ai-ml", "azure.ai.ml, azure.identity, azure.storage.blob"),
    "vertex": ("google-cloud-aiplatform", "google.cloud.aiplatform_v1, google.cloud.storage"),
    "databricks": ("databricks-sdk", "databricks.sdk"),
    "kubernetes": (
        "kubernetes, boto3",
        "kubernetes.client, boto3; boto3.client('s3', region_name='us-east-1')",
    ),
}


@dataclass
class Cloud:
    """A cloud of the tests.

    Attributes:
        provider: Ours.
        calls: Of the cloud's API, as they come.
        peer: Submits by the bare SDK: the package, and what ours submitted under another number.
    """

    provider: CloudProvider
    calls: list[str]
    peer: Callable[[bytes, int], None]


@contextmanager
def sagemaker(folder: Path) -> Iterator[Cloud]:
    """Boto3: put the package, create the job."""
    import boto3

    from tests.clouds.kit import BUCKET, aws_server, sagemaker_provider

    with aws_server(folder) as server:
        server.sagemaker.pace = 3600.0
        s3, client = boto3.client("s3"), boto3.client("sagemaker")

        def peer(package: bytes, number: int) -> None:
            request = next(iter(server.sagemaker.jobs.values())).request
            s3.put_object(Bucket=BUCKET, Key=f"bare/{number}.tar.gz", Body=package)
            client.create_training_job(**{**request, "TrainingJobName": f"bare-{number}"})

        yield Cloud(sagemaker_provider(folder / "state"), server.sagemaker.calls, peer)


@contextmanager
def azure(folder: Path) -> Iterator[Cloud]:
    """azure-storage-blob puts the package; the client that azure-ai-ml is built on creates the job."""
    from azure.ai.ml._restclient.arm_ml_service import MachineLearningServicesMgmtClient
    from azure.identity import DefaultAzureCredential

    from tests.clouds.azure import GROUP, SUBSCRIPTION, WORKSPACE
    from tests.clouds.azure_kit import azure_provider, azure_server

    with azure_server(folder) as server:
        server.ml.pace = 3600.0
        ours = azure_provider(folder / "state", server)
        client = MachineLearningServicesMgmtClient(
            DefaultAzureCredential(),
            SUBSCRIPTION,
            base_url=server.url,
            credential_scopes=[f"{server.url}/.default"],
        )
        container = ours.storage._connect("workspaceblobstore")

        def peer(package: bytes, number: int) -> None:
            body = next(iter(server.ml.jobs.values())).body
            container.upload_blob(f"bare/{number}.tar.gz", package)
            client.jobs.create_or_update(GROUP, WORKSPACE, f"bare-{number}", copy.deepcopy(body))

        yield Cloud(ours, server.ml.calls, peer)


@contextmanager
def vertex(folder: Path) -> Iterator[Cloud]:
    """google-cloud-storage puts the package, google-cloud-aiplatform creates the job."""
    import google.auth
    from google.auth.credentials import Credentials
    from google.cloud import aiplatform_v1, storage

    from tests.clouds.gcp import PROJECT, REGION
    from tests.clouds.gcp_kit import BUCKET, gcp_server, vertex_provider

    with gcp_server(folder) as server:
        server.vertex.pace = 3600.0
        credentials: Credentials = google.auth.default(["https://www.googleapis.com/auth/cloud-platform"])[0]
        bucket = storage.Client(
            project=PROJECT, credentials=credentials, client_options={"api_endpoint": server.url}
        ).bucket(BUCKET)
        client = aiplatform_v1.JobServiceClient(
            credentials=credentials, transport="rest", client_options={"api_endpoint": server.url}
        )

        def peer(package: bytes, number: int) -> None:
            asked = next(iter(server.vertex.jobs.values())).message
            bucket.blob(f"bare/{number}.tar.gz").upload_from_string(package)
            job = aiplatform_v1.CustomJob(display_name=f"bare-{number}", job_spec=asked.job_spec)
            client.create_custom_job(parent=f"projects/{PROJECT}/locations/{REGION}", custom_job=job)

        yield Cloud(vertex_provider(folder / "state", server), server.vertex.calls, peer)


@contextmanager
def databricks(folder: Path) -> Iterator[Cloud]:
    """databricks-sdk uploads the package and submits the run."""
    from databricks.sdk import WorkspaceClient

    from notebooked_dagster.providers.databricks.jobs import typed
    from tests.clouds.databricks_kit import databricks_provider, databricks_server

    with databricks_server(folder) as server:
        server.workspace.pace = 3600.0
        ours = databricks_provider(folder / "state")
        client = WorkspaceClient(profile="tests")

        def peer(package: bytes, number: int) -> None:
            request = next(iter(server.workspace.runs.values())).request
            client.files.upload(
                ours.storage.path(f"bare-{number}.tar.gz"), io.BytesIO(package), overwrite=True
            )
            client.jobs.submit(
                **typed({**request, "run_name": "bare", "idempotency_token": f"bare-{number}"})
            )

        yield Cloud(ours, server.workspace.calls, peer)


@contextmanager
def kubernetes(folder: Path) -> Iterator[Cloud]:
    """Boto3 puts the package, the kubernetes client creates the Job."""
    import kubernetes as sdk

    from tests.clouds.kube import NAMESPACE
    from tests.clouds.kube_kit import BUCKET, kube_server, kubernetes_provider, s3

    with kube_server(folder) as server:
        server.cluster.pace = 3600.0
        # Two hundred pods of two processors each wait for their images, not for nodes.
        server.cluster.node["cpu"] = 1e6
        store = s3(server)
        batch = sdk.client.BatchV1Api(sdk.config.new_client_from_config(os.environ["KUBECONFIG"]))

        def peer(package: bytes, number: int) -> None:
            job = next(iter(server.cluster.things["jobs"].values()))
            store.put_object(Bucket=BUCKET, Key=f"bare/{number}.tar.gz", Body=package)
            meta = {"name": f"bare-{number}", "labels": job["metadata"]["labels"]}
            template = copy.deepcopy(job["spec"]["template"])
            body = {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": meta,
                "spec": {**job["spec"], "template": template},
            }
            body["spec"].pop("selector", None)
            batch.create_namespaced_job(NAMESPACE, body)

        yield Cloud(kubernetes_provider(folder / "state", server), server.calls, peer)


CLOUDS = {made.__name__: made for made in (sagemaker, azure, vertex, databricks, kubernetes)}


def measured(name: str) -> dict[str, float]:
    """One cloud's figures, in this process."""
    folder = Path(tempfile.mkdtemp())
    # The machines never start: nothing but submitting and asking is at work.
    with CLOUDS[name](folder) as cloud:
        experiment = Experiment("sample", write_scripts(folder / "scripts"))
        took: list[float] = []
        for number in range(WAITING):
            start = time.perf_counter()
            cloud.provider.train(dataclasses.replace(experiment, idempotency_token=str(number)), wait=False)
            took.append(time.perf_counter() - start)
        cloud.provider.list_jobs()  # the first look writes down what is new
        cloud.calls.clear()
        start = time.perf_counter()
        found = cloud.provider.list_jobs()
        looked, calls = time.perf_counter() - start, len(cloud.calls)
        assert len(found) == WAITING, f"{name}: {len(found)} jobs"
        memory = psutil.Process(os.getpid()).memory_info().rss / 2**20
        package = folder / "package.tar.gz"
        cloud.provider.package(experiment, package)
        bare: list[float] = []
        for number in range(ROUNDS + 3):
            start = time.perf_counter()
            cloud.peer(package.read_bytes(), number)
            bare.append(time.perf_counter() - start)
        return {
            # The first ones make clients and connections.
            "ours": statistics.median(took[3 : 3 + ROUNDS]),
            "bare": statistics.median(bare[3:]),
            "look": looked,
            "calls": calls,
            "memory": memory,
        }


def ready(program: str) -> float:
    """Seconds until a new process has run a program (median of 5)."""
    took = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=tempfile.gettempdir())
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def main(names: list[str]) -> None:
    print("Until a process is ready (ms, median of 5)")
    nothing = ready("pass")
    print(
        f"  python {1000 * nothing:.0f}, with notebooked_dagster {1000 * ready('import notebooked_dagster'):.0f}"
    )
    print(f"  {'':<12}{'provider':>10}{'its SDK':>10}")
    for name in names:
        ours = ready(
            f"from notebooked_dagster.providers.registry import get_provider; get_provider({name!r}, state_dir='.')"
        )
        sdk, program = SDKS[name]
        print(f"  {name:<12}{1000 * ours:>10.0f}{1000 * ready(f'import {program}'):>10.0f}   {sdk}")

    print(f"\nSubmitted until accepted (ms, median of {ROUNDS}), and one look at {WAITING} waiting jobs")
    print(
        f"  {'':<12}{'ours':>8}{'SDK':>8}{'ratio':>8}{'look (ms)':>12}{'API calls':>11}{'a minute':>10}{'memory':>10}"
    )
    for name in names:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, name, "--json"], check=True, stdout=subprocess.PIPE
        )
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"  {name:<12}{1000 * row['ours']:>8.0f}{1000 * row['bare']:>8.0f}{row['ours'] / row['bare']:>8.1f}"
            f"{1000 * row['look']:>12.0f}{row['calls']:>11}{2 * row['calls']:>10}{row['memory']:>7.0f} MB"
        )
    print(
        f"  A minute: the sensor looks every 30 s, in one process (the memory has the test server in it). {WAITING} processes that\n"
        f"  wait, each asking for status and log every 10 s, make {WAITING * 6 * 2} calls a minute."
    )


if __name__ == "__main__":
    asked = [name for name in sys.argv[1:] if name != "--json"]
    if unknown := [name for name in asked if name not in CLOUDS]:
        sys.exit(f"No such cloud: {', '.join(unknown)}. There are {', '.join(CLOUDS)}.")
    if "--json" in sys.argv:
        print(json.dumps(measured(asked[0])))
    else:
        main(asked or list(CLOUDS))
