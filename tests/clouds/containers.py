"""What SageMaker's containers do, as subprocesses: the training toolkit's and the inference toolkit's contract.

``SM_*`` variables, folders, hyperparameters as arguments, exit codes and failure messages are those of
sagemaker-training 5.1 and sagemaker-inference 1.10. Requirements are not installed: the tests' own packages serve.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

_KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "LD_LIBRARY_PATH",
)


def training_environment(
    base: Path,
    hyperparameters: Mapping[str, Any],
    channels: list[str],
    extra: Mapping[str, str],
    hosts: list[str],
) -> dict[str, str]:
    """The environment of the user's script, as ``sagemaker_training.environment`` makes it."""
    own = {name: value for name, value in hyperparameters.items() if not name.startswith("sagemaker_")}
    variables = {
        "SM_MODEL_DIR": str(base / "model"),
        "SM_OUTPUT_DIR": str(base / "output"),
        "SM_OUTPUT_DATA_DIR": str(base / "output" / "data"),
        "SM_INPUT_DIR": str(base / "input"),
        "SM_CHANNELS": json.dumps(channels),
        "SM_HPS": json.dumps(own, separators=(",", ":"), sort_keys=True),
        "SM_USER_ENTRY_POINT": str(hyperparameters["sagemaker_program"]),
        "SM_MODULE_DIR": str(hyperparameters["sagemaker_submit_directory"]),
        "SM_HOSTS": json.dumps(hosts),
        "SM_CURRENT_HOST": hosts[0],
        "SM_NUM_GPUS": "0",
        "SM_NUM_CPUS": str(os.cpu_count()),
        "SM_LOG_LEVEL": "20",
        "TRAINING_JOB_NAME": str(hyperparameters["sagemaker_job_name"]),
        "AWS_REGION": str(hyperparameters["sagemaker_region"]),
    }
    for channel in channels:
        variables[f"SM_CHANNEL_{channel.upper()}"] = str(base / "input" / "data" / channel)
    for name, value in own.items():
        variables[f"SM_HP_{name.upper()}"] = value if isinstance(value, str) else json.dumps(value)
    return {**{name: os.environ[name] for name in _KEPT if name in os.environ}, **extra, **variables}


def command_arguments(hyperparameters: Mapping[str, Any]) -> list[str]:
    """``--name value``, sorted, as ``sagemaker_training.mapping.to_cmd_args`` has it."""
    found: list[str] = []
    for name in sorted(name for name in hyperparameters if not name.startswith("sagemaker_")):
        found += [f"-{name}" if len(name) == 1 else f"--{name}", str(hyperparameters[name])]
    return found


class Training:
    """One instance of one training job."""

    def __init__(
        self,
        base: Path,
        arguments: list[str],
        environment: Mapping[str, str],
        say: Callable[[str], None],
        program: str = sys.executable,
    ) -> None:
        self.process = subprocess.Popen(
            [program, *arguments],
            cwd=base / "code",
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(say,), daemon=True)
        self._reader.start()

    def _read(self, say: Callable[[str], None]) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            say(raw.decode("utf-8", "replace").rstrip("\n"))

    def wait(self, timeout: float | None) -> int | None:
        """The exit code; None where it did not end in time."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(2)
        return code

    def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL to all that is left of it: a container takes everything in it with it."""
        family = _family(self.process.pid)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait(5)
        self._reader.join(2)


def _family(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Serving:
    """One instance behind an endpoint."""

    def __init__(
        self,
        base: Path,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        script: str = "serve.py",
        routes: tuple[str, str] = ("/ping", "/invocations"),
    ) -> None:
        self._health, self._score = routes
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), str(base)],
            env={**kept, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.port: int | None = None
        self._client = httpx.Client(timeout=60)
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(say,), daemon=True)
        self._reader.start()

    def _read(self, say: Callable[[str], None]) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            if line.startswith("LISTENING "):
                self.port = int(line.split()[1])
                self._listening.set()
            else:
                say(line)
        self._listening.set()

    def healthy(self, timeout: float) -> bool:
        """Whether ``/ping`` answers with 200 in time."""
        self._listening.wait(timeout)
        if self.port is None or self.process.poll() is not None:
            return False
        try:
            return (
                httpx.get(f"http://127.0.0.1:{self.port}{self._health}", timeout=timeout).status_code == 200
            )
        except httpx.HTTPError:
            return False

    def ask(self, body: bytes, content_type: str, accept: str) -> tuple[int, bytes]:
        """Status and body of a prediction."""
        reply = self._client.post(
            f"http://127.0.0.1:{self.port}{self._score}",
            content=body,
            headers={"Content-Type": content_type, "Accept": accept},
        )
        return reply.status_code, reply.content

    def stop(self) -> None:
        """End it at once."""
        self._client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(5)
