"""What pods run; sent as their command, and needs nothing but Python, and boto3 for the object store.

``python3 -c <this file> train`` fetches the package, installs what the scripts ask for, runs our launcher, and puts model,
output and log into the object store, where they outlive the pod. ``serve`` fetches the model, loads it and answers on port
8080. boto3 is installed where the image has none. No dollar sign and parenthesis may stand together in this file:
Kubernetes would expand what they hold.
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LAUNCHER = "notebooked_launch.py"
# Exit codes that tell whose fault it was; scripts have their own in the launcher's last line.
NO_REQUIREMENTS, NO_UPLOAD, NO_PACKAGE, NO_DATA = 76, 74, 75, 73
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def s3() -> Any:
    """A client of the object store; credentials are the pod's own, or variables of a Secret."""
    try:
        boto3 = importlib.import_module("boto3")
    except ModuleNotFoundError:
        if subprocess.call([*PIP, "boto3"]):
            print("[notebooked] The image has no boto3, and it cannot be installed.", flush=True)
            sys.exit(NO_PACKAGE)
        # A user that is not root installs into a folder that was not there when Python began.
        sys.path.append(site.getusersitepackages())
        importlib.invalidate_caches()
        boto3 = importlib.import_module("boto3")
    config = importlib.import_module("botocore.config").Config(
        retries={"mode": "standard", "max_attempts": 8}
    )
    return boto3.client("s3", config=config)


def split(uri: str) -> "tuple[str, str]":
    """Bucket and key."""
    bucket, _, key = uri[len("s3://") :].partition("/")
    return bucket, key


def unpack(archive: str, folder: str) -> None:
    """Unpack one of our archives."""
    with tarfile.open(archive) as opened:
        opened.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        opened.extractall(folder)


def fetch_archive(client: Any, uri: str, folder: str) -> None:
    """Fetch an archive and unpack it."""
    local = folder.rstrip("/") + ".fetched"
    client.download_file(*split(uri), local)
    unpack(local, folder)
    os.remove(local)


def fetch_data(client: Any, uri: str, name: str, folder: str) -> None:
    """Fetch one file, or everything below an address."""
    bucket, key = split(uri)
    if name:
        client.download_file(bucket, key, os.path.join(folder, name))
        return
    start = key.rstrip("/") + "/" if key else ""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
        for item in page.get("Contents", ()):
            target = os.path.normpath(os.path.join(folder, item["Key"][len(start) :]))
            if item["Key"].endswith("/") or not target.startswith(folder + os.sep):
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            client.download_file(bucket, item["Key"], target)


def install(requirements: str) -> None:
    """Install what the scripts need; the image's own packages stay where they fit."""
    if os.path.isfile(requirements) and os.path.getsize(requirements):
        if subprocess.call([*PIP, "-r", requirements]):
            print("[notebooked] The requirements cannot be installed in this container.", flush=True)
            sys.exit(NO_REQUIREMENTS)
        importlib.invalidate_caches()


def put_archive(client: Any, folder: str, uri: str) -> None:
    """Write an archive of a folder."""
    local = folder + ".tar.gz"
    with tarfile.open(local, "w:gz") as archive:
        for name in sorted(os.listdir(folder)):
            archive.add(os.path.join(folder, name), name)
    client.upload_file(local, *split(uri))


class Run:
    """The launcher as a process, its output copied to ours and into a file."""

    def __init__(self, command: "list[str]", cwd: str, environment: "dict[str, str]", log: str) -> None:
        self.told = False
        self.heard = time.monotonic()
        self.grace = float(os.environ.get("NOTEBOOKED_GRACE", "15"))
        self.child = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # As the container's first process we would not be ended by a signal that nobody handles.
        signal.signal(signal.SIGTERM, self.end)
        self.reader = threading.Thread(target=self.copy, args=(log,), daemon=True)
        self.reader.start()

    def copy(self, log: str) -> None:
        """Pass everything on."""
        with open(log, "wb") as kept:
            for line in self.child.stdout or ():
                self.heard = time.monotonic()
                kept.write(line)
                kept.flush()
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()

    def end(self, *_: object) -> None:
        """The pod is to go: let the script end, and leave time for saving the log."""
        self.told = True
        # The launcher tells the script.
        self.child.terminate()
        timer = threading.Timer(self.grace, self.kill)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        """End the script and all its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, once all it printed is copied; who outlives it may not hold us up."""
        ended = self.child.wait()
        self.heard = max(self.heard, time.monotonic())
        while self.reader.is_alive() and time.monotonic() - self.heard < 0.5:
            self.reader.join(0.05)
        return ended


def now() -> str:
    """The time."""
    return datetime.now(timezone.utc).isoformat()


def hosts() -> "tuple[list[str], int]":
    """The addresses of all pods of the job, the first being the chief, and this one's index."""
    count, job = int(os.environ.get("NOTEBOOKED_PODS", "1")), os.environ["NOTEBOOKED_JOB"]
    if "NOTEBOOKED_OPERATOR" in os.environ:
        workers = [f"{job}-worker-{number}" for number in range(count - 1)]
        return [f"{job}-master-0", *workers], int(os.environ["RANK"])
    index = int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
    return [f"{job}-{number}.{job}" for number in range(count)], index


def train() -> None:
    """Run the launcher; end with its exit code."""
    began, store, base = now(), os.environ["NOTEBOOKED_STORE"], tempfile.mkdtemp()
    code, model, output, data = (os.path.join(base, name) for name in ("code", "model", "output", "data"))
    for folder in (code, model, output, data):
        os.makedirs(folder)
    client = s3()
    try:
        fetch_archive(client, f"{store}/source/package.tar.gz", code)
    except Exception as error:
        print(f"[notebooked] The package cannot be read: {error}", flush=True)
        sys.exit(NO_PACKAGE)
    install(os.path.join(code, "requirements.txt"))
    names, index = hosts()
    environment = dict(
        os.environ,
        SM_MODEL_DIR=model,
        SM_OUTPUT_DATA_DIR=output,
        SM_HOSTS=json.dumps(names),
        SM_CURRENT_HOST=names[index],
    )
    if len(names) > 1 and "NOTEBOOKED_OPERATOR" not in os.environ:
        # What torch.distributed and its like begin from (`env://`).
        environment.update(MASTER_ADDR=names[0], WORLD_SIZE=str(len(names)), RANK=str(index))
        environment.setdefault("MASTER_PORT", "29500")
    if os.environ.get("NOTEBOOKED_DATA"):
        with open(os.path.join(code, "notebooked_job.json"), encoding="utf-8") as stream:
            name = json.load(stream).get("data") or ""
        try:
            fetch_data(client, os.environ["NOTEBOOKED_DATA"], name, data)
        except Exception as error:
            print(f"[notebooked] The data cannot be read: {error}", flush=True)
            sys.exit(NO_DATA)
        environment["SM_CHANNEL_TRAINING"] = data
    log = os.path.join(base, "log.txt")
    run = Run([sys.executable, "-u", os.path.join(code, LAUNCHER)], code, environment, log)
    ended = run.wait()
    ended = 128 - ended if ended < 0 else ended
    if index == 0:
        ended = save(client, store, model, output, log, {"code": ended, "told": run.told, "started": began})
    # What holds on to our pipes dies with the container; nobody waits for it.
    sys.stdout.flush()
    os._exit(ended)


def save(client: Any, store: str, model: str, output: str, log: str, end: "dict[str, Any]") -> int:
    """Put everything into the object store; the file that says how it ended comes last. Returns the exit code."""
    try:
        client.upload_file(log, *split(f"{store}/log.txt"))
        put_archive(client, output, f"{store}/output.tar.gz")
        if end["code"] == 0:
            put_archive(client, model, f"{store}/model.tar.gz")
        kept = ("NOTEBOOKED_EXPERIMENT", "NOTEBOOKED_MLFLOW_RUN", "NOTEBOOKED_REGISTERED_MODEL")
        end["environment"] = {name: os.environ[name] for name in kept if name in os.environ}
        end["finished"] = now()
        bucket, key = split(f"{store}/ended.json")
        client.put_object(Bucket=bucket, Key=key, Body=json.dumps(end).encode())
    except Exception as error:
        print(f"[notebooked] The model cannot be written: {error}", flush=True)
        return int(end["code"]) or NO_UPLOAD
    return int(end["code"])


class Handler(BaseHTTPRequestHandler):
    """``/ping`` and ``/invocations``."""

    protocol_version = "HTTP/1.1"
    module: Any = None
    model: Any = None

    def log_message(self, *args: object) -> None:
        """Be quiet."""

    def reply(self, status: int, body: bytes) -> None:
        """Answer."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Say whether the model is loaded."""
        if self.path != "/ping":
            return self.reply(404, b"{}")
        return self.reply(200 if Handler.module else 503, b"{}")

    def do_POST(self) -> None:
        """Predict."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/invocations" or Handler.module is None:
            return self.reply(404 if Handler.module else 503, b"{}")
        kind = self.headers.get("Content-Type", "application/json")
        accept = self.headers.get("Accept", "application/json")
        if accept == "*/*":
            accept = "application/json"
        try:
            data = Handler.module.input_fn(body, kind)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            return self.reply(400, json.dumps({"error": str(error)}).encode())
        try:
            answer = Handler.module.output_fn(Handler.module.predict_fn(data, Handler.model), accept)
        except Exception as error:
            traceback.print_exc()
            return self.reply(500, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return self.reply(200, answer.encode() if isinstance(answer, str) else bytes(answer))


def serve() -> None:
    """Load the model and answer; not ready until it is loaded."""
    going = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: going.set())
    address = ("0.0.0.0", int(os.environ.get("NOTEBOOKED_PORT", "8080")))
    server = ThreadingHTTPServer(address, Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = os.path.join(tempfile.mkdtemp(), "model")
    os.makedirs(folder)
    try:
        fetch_archive(s3(), os.environ["NOTEBOOKED_MODEL"], folder)
    except Exception as error:
        print(f"[notebooked] The model cannot be read: {error}", flush=True)
        sys.exit(NO_PACKAGE)
    code = os.path.join(folder, "code")
    install(os.path.join(code, "requirements.txt"))
    sys.path.insert(0, code)
    inference = importlib.import_module("inference")
    Handler.model = inference.model_fn(folder)
    Handler.module = inference
    print("[notebooked] The model is loaded.", flush=True)
    going.wait()
    # Requests that came before the Service knew are answered.
    server.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    {"train": train, "serve": serve}[sys.argv[1]]()
