"""SageMaker: submitting beside the bare SDK, and waiting for many jobs with one question.

Against the server of the tests on this machine: what is measured is our work and the SDK's, not AWS's.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebooked_dagster.providers.base import Experiment
from tests.clouds.kit import BUCKET, aws_server, sagemaker_provider
from tests.contract.scripts import write_scripts

ROUNDS = 15
WAITING = 200


def imports() -> None:
    """How long a process takes to have each ready."""
    programs = {
        "import notebooked_dagster": "import notebooked_dagster",
        "the provider, made": "from notebooked_dagster.providers.registry import get_provider; get_provider('sagemaker', state_dir='.')",
        "import boto3, two clients": "import boto3; [boto3.client(n, region_name='eu-central-1') for n in ('sagemaker', 's3')]",
        "import nothing": "pass",
    }
    for name, program in programs.items():
        took = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True, cwd=tempfile.gettempdir())
            took.append(time.perf_counter() - start)
        print(f"  {name:<28} {1000 * statistics.median(took):>7.0f} ms")


def bare(request: dict[str, object], package: bytes) -> float:
    """What the SDK alone takes to submit: upload the package, create the job."""
    s3, sagemaker = boto3.client("s3"), boto3.client("sagemaker")
    took = []
    for number in range(ROUNDS):
        start = time.perf_counter()
        s3.put_object(Bucket=BUCKET, Key=f"bare/{number}.tar.gz", Body=package)
        sagemaker.create_training_job(**{**request, "TrainingJobName": f"bare-{number}"})
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def main() -> None:
    print("Until a process is ready (median of 5):")
    imports()
    folder = Path(tempfile.mkdtemp())
    # The machines never start: nothing but submitting and asking is at work.
    with aws_server(folder / "aws") as server:
        server.sagemaker.pace = 3600.0
        experiment = Experiment("sample", write_scripts(folder / "scripts"))
        provider = sagemaker_provider(folder / "state")
        took = []
        for number in range(WAITING):
            start = time.perf_counter()
            provider.train(dataclasses.replace(experiment, idempotency_token=str(number)), wait=False)
            took.append(time.perf_counter() - start)
        ours = statistics.median(took[5:])
        name = next(iter(server.sagemaker.jobs))
        request = dict(server.sagemaker.jobs[name].request)
        provider.package(experiment, folder / "p.tar.gz")
        peer = bare(request, (folder / "p.tar.gz").read_bytes())
        print(
            f"\nSubmitted until accepted (median): ours {1000 * ours:.0f} ms, boto3 {1000 * peer:.0f} ms, ratio {ours / peer:.1f}"
        )

        provider.list_jobs()  # the first look writes down that they run
        server.sagemaker.calls.clear()
        start = time.perf_counter()
        found = provider.list_jobs()
        took_all = time.perf_counter() - start
        one = len(server.sagemaker.calls)
        memory = psutil.Process(os.getpid()).memory_info().rss / 2**20
        print(f"\nOne look at {len(found)} waiting jobs: {1000 * took_all:.0f} ms, {one} calls of the API.")
        print(f"{'':<28}{'calls/minute':>14}{'processes':>11}{'memory':>10}")
        print(
            f"{'sensor, every 30 s':<28}{2 * one:>14}{'1':>11}{f'{memory:.0f} MB':>10}   (this process, server included)"
        )
        print(
            f"{'a process waits for each':<28}{WAITING * 6 * 2:>14}{WAITING:>11}{'':>10}   (describe and log every 10 s)"
        )


if __name__ == "__main__":
    main()
