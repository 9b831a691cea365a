"""An endpoint of ours against ``mlflow models serve``: the same scikit-learn model, one worker each, one client.

::

    python benchmarks/bench_endpoint.py [--requests 1500] [--rounds 3]

Prints p50 and p99 latency (one connection, one request after another), requests a second (8 connections), and the
time from asking for a deployment to the first ready reply. Rounds alternate between the two servers, so that
whatever else the machine does hits both; the figure is the median round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from notebooked_dagster.serving.control import DeploymentSpec, EndpointControl

# As the generator writes it for a scikit-learn model: JSON in, DataFrame where the model was fitted with one.
INFERENCE = """
import json
from pathlib import Path

import joblib
import numpy as np
import pandas as pd


def model_fn(model_dir):
    return joblib.load(Path(model_dir) / "model.joblib")


def input_fn(body, content_type):
    document = json.loads(body)
    if "dataframe_split" in document:
        split = document["dataframe_split"]
        return pd.DataFrame(split["data"], columns=split["columns"])
    return np.asarray(document["inputs"], dtype=float)


def predict_fn(data, model):
    return model.predict(data)


def output_fn(prediction, accept):
    return json.dumps({"predictions": prediction.tolist()})
"""


class Case:
    """A model saved both ways, and the request it is asked."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.ours = folder / name / "ours"
        self.theirs = folder / name / "mlflow"
        self.ours.mkdir(parents=True)
        if name == "digits-array":
            features, target = load_digits(return_X_y=True)
            model = LogisticRegression(max_iter=2000).fit(features / 16, target)
            sample, request = features[:5] / 16, {"inputs": (features[:1] / 16).tolist()}
            inputs: object = {"tensor": {"shape": [-1, 64], "dtype": "float64"}}
        else:
            data = load_breast_cancer(as_frame=True)
            estimator = (
                RandomForestClassifier(20, random_state=0)
                if name == "cancer-forest"
                else make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            )
            model = estimator.fit(data.data, data.target)
            sample = data.data.head(5)
            split = sample.head(1).to_dict(orient="split")
            request = {"dataframe_split": {"columns": split["columns"], "data": split["data"]}}
            inputs = [{"name": column, "type": "double"} for column in sample.columns]
        self.body = json.dumps(request).encode()
        joblib.dump(model, self.ours / "model.joblib")
        (self.ours / "inference.py").write_text(INFERENCE)
        metadata = {
            "format": 1,
            "framework": "sklearn",
            "signature": {"inputs": inputs},
            "input_example": request,
        }
        (self.ours / "model.json").write_text(json.dumps(metadata))
        mlflow.sklearn.save_model(
            model,
            self.theirs,
            signature=infer_signature(sample, model.predict(sample)),
            serialization_format="pickle",
        )
        expected = model.predict(sample[:1] if isinstance(sample, np.ndarray) else sample.head(1))
        self.expected = {"predictions": pd.Series(expected).tolist()}


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"The server answered {head!r}")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return await reader.readexactly(int(length.partition(b":")[2]))


def request_of(case: Case) -> bytes:
    head = (
        "POST /invocations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(case.body)}\r\n\r\n"
    )
    return head.encode() + case.body


async def latencies(port: int, case: Case, count: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = request_of(case)
    for _ in range(20):
        answer = await ask(reader, writer, request)
    if json.loads(answer) != case.expected:
        raise SystemExit(f"Port {port} predicts {answer!r}, not {case.expected}")
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        await ask(reader, writer, request)
        taken.append(time.perf_counter() - started)
    writer.close()
    return taken


async def throughput(port: int, case: Case, count: int, connections: int = 8) -> float:
    request = request_of(case)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count // connections):
            await ask(reader, writer, request)
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    return count // connections * connections / (time.perf_counter() - started)


def start_mlflow(case: Case, folder: Path) -> tuple[subprocess.Popen[bytes], int, float]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", str(case.theirs)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    log = (folder / f"mlflow-{case.name}.log").open("wb")
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=folder
    )
    while time.perf_counter() - started < 180:
        try:
            asyncio.run(latencies(port, case, 1))
        except (OSError, asyncio.IncompleteReadError):
            if process.poll() is not None:
                raise SystemExit(f"mlflow models serve ended: {Path(log.name).read_text()[-2000:]}") from None
            time.sleep(0.05)
        else:
            return process, port, time.perf_counter() - started
    os.killpg(process.pid, signal.SIGKILL)
    raise SystemExit("mlflow models serve did not answer within 180 s")


def row(name: str, ours: float, theirs: float, unit: str, *, more_is_better: bool = False) -> None:
    ratio = ours / theirs if more_is_better else theirs / ours
    print(f"{name:34} {ours:10.2f} {theirs:10.2f} {unit:5} {ratio:7.1f}x")


def measure(case: Case, folder: Path, requests: int, rounds: int) -> None:
    control = EndpointControl(folder / "state")
    started = time.perf_counter()
    endpoint = control.deploy(DeploymentSpec(case.name, case.ours))
    asyncio.run(latencies(endpoint.port, case, 1))
    our_start = time.perf_counter() - started
    process = None
    try:
        started = time.perf_counter()
        control.deploy(DeploymentSpec(case.name, case.ours))
        our_replacement = time.perf_counter() - started
        process, port, their_start = start_mlflow(case, folder)
        figures: dict[str, list[dict[str, float]]] = {"ours": [], "mlflow": []}
        for _ in range(rounds):
            for name, where in (("ours", endpoint.port), ("mlflow", port)):
                taken = sorted(asyncio.run(latencies(where, case, requests)))
                figures[name].append(
                    {
                        "p50": taken[len(taken) // 2] * 1e3,
                        "p99": taken[int(len(taken) * 0.99)] * 1e3,
                        "rate": asyncio.run(throughput(where, case, requests)),
                    }
                )
        middle = {
            who: {what: statistics.median(figure[what] for figure in found) for what in found[0]}
            for who, found in figures.items()
        }
        ours, theirs = middle["ours"], middle["mlflow"]
        row(f"{case.name}: p50", ours["p50"], theirs["p50"], "ms")
        row(f"{case.name}: p99", ours["p99"], theirs["p99"], "ms")
        row(
            f"{case.name}: rate",
            ours["rate"],
            theirs["rate"],
            "req/s",
            more_is_better=True,
        )
        row(f"{case.name}: start to first reply", our_start, their_start, "s")
        print(f"{case.name + ': replacing a version':34} {our_replacement:10.2f} {'-':>10} s")
    finally:
        control.delete(case.name)
        if process is not None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", action="append", choices=["digits-array", "cancer-table", "cancer-forest"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-endpoint-") as name:
        print(f"{'':34} {'ours':>10} {'mlflow':>10} {'':5} {'ahead':>8}")
        for case in options.case or ["digits-array", "cancer-table", "cancer-forest"]:
            measure(Case(case, Path(name)), Path(name), options.requests, options.rounds)


if __name__ == "__main__":
    main()
