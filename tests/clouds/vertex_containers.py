"""What Vertex AI's machines do with a container, as subprocesses: ``AIP_*``, the mounted buckets, health checks.

The variables are those of Google's pages on custom training code and on custom containers for inference. Requirements
are not installed: ``pip`` is one that says yes; the tests' own packages serve.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from .containers import _KEPT

_PIP = """import sys
wanted = open(sys.argv[sys.argv.index("-r") + 1]).read()
if "impossible" in wanted:
    sys.exit("ERROR: No matching distribution found for impossible")
"""


def _base(folder: Path) -> dict[str, str]:
    """What every container has."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "pip.py").write_text(_PIP)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PYTHONPATH": str(site)}


def argv(command: list[str], args: list[str]) -> list[str]:
    """The arguments of this Python that a container's command is."""
    assert command[0] == "python3"
    return [*command[1:], *args]


def training_environment(
    folder: Path,
    output: str,
    extra: Mapping[str, str],
    job: str,
    project: str,
    pools: list[int],
    task: tuple[int, int],
) -> dict[str, str]:
    """The environment of one machine of a job."""
    hosts = {f"workerpool{n}": [f"host-{n}-{i}:2222" for i in range(count)] for n, count in enumerate(pools)}
    spec = {
        "cluster": hosts,
        "environment": "cloud",
        "task": {"type": f"workerpool{task[0]}", "index": task[1]},
    }
    folders = {
        "AIP_MODEL_DIR": "model",
        "AIP_CHECKPOINT_DIR": "checkpoints",
        "AIP_TENSORBOARD_LOG_DIR": "logs",
    }
    return {
        **_base(folder),
        **extra,
        **{name: f"{output.rstrip('/')}/{part}/" for name, part in folders.items()},
        "CLOUD_ML_JOB_ID": job,
        "CLOUD_ML_PROJECT_ID": project,
        "CLUSTER_SPEC": json.dumps(spec),
    }


class ModelServer:
    """One replica of a deployed model."""

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        environment: Mapping[str, str],
        routes: tuple[str, str],
        say: Callable[[str], None],
    ) -> None:
        folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._health, self._predict = routes
        variables = {
            "AIP_HTTP_PORT": str(self.port),
            "AIP_HEALTH_ROUTE": self._health,
            "AIP_PREDICT_ROUTE": self._predict,
        }
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**_base(folder), **environment, **variables},
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

    def healthy(self, timeout: float) -> str:
        """Wait for health; why it is not, in Vertex AI's words, or nothing."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                self._reader.join(2)
                return f'Model server terminated: model server container terminated: exit_code: {code} reason: "Error"'
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}{self._health}", timeout=5).status_code == 200:
                    return ""
            time.sleep(0.03)
        return "Model server never became ready. Please validate that your model file or container configuration are valid."

    def ask(self, body: bytes, content_type: str) -> tuple[int, bytes]:
        """Status and body of a prediction."""
        reply = httpx.post(
            f"http://127.0.0.1:{self.port}{self._predict}",
            content=body,
            headers={"Content-Type": content_type},
            timeout=60,
        )
        return reply.status_code, reply.content

    def stop(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(5)
