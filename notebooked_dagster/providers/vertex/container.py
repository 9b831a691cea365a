"""What Vertex AI's containers run; sent as their command, and needs nothing but Python itself.

``python3 -c <this file> train`` unpacks the package from the bucket (which training containers have mounted at ``/gcs``),
installs what the scripts ask for, runs our launcher, and puts model and output back. ``serve`` fetches the model (serving
containers have no mount), loads it and answers on ``AIP_HTTP_PORT``. No dollar sign may stand in this file: Vertex AI would
expand what follows it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import traceback
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

LAUNCHER = "notebooked_launch.py"
# Exit codes that tell whose fault it was; scripts have their own in the launcher's last line.
NO_REQUIREMENTS, NO_UPLOAD, NO_PACKAGE = 76, 74, 75


def mounted(uri: str) -> str:
    """Where an object lies in the file system."""
    return os.path.join(os.environ.get("NOTEBOOKED_GCS_ROOT", "/gcs"), uri[len("gs://") :])


def unpack(archive: str, folder: str) -> None:
    """Unpack one of our archives."""
    with tarfile.open(archive) as opened:
        opened.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        opened.extractall(folder)


def install(requirements: str) -> None:
    """Install what the scripts need; the container's own packages stay where they fit."""
    if os.path.isfile(requirements) and os.path.getsize(requirements):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.call([*command, "-r", requirements]):
            print("[notebooked] The requirements cannot be installed in this container.", flush=True)
            sys.exit(NO_REQUIREMENTS)


def pack(folder: str, target: str) -> None:
    """Write an archive of a folder; it appears in the bucket when it is whole."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    local = folder + ".tar.gz"
    with tarfile.open(local, "w:gz") as archive:
        for name in sorted(os.listdir(folder)):
            archive.add(os.path.join(folder, name), name)
    shutil.copyfile(local, target)


def cluster() -> "tuple[list[str], str]":
    """The names of all machines of the job, the first being the chief, and this one's."""
    spec = json.loads(os.environ.get("CLUSTER_SPEC") or "{}")
    pools = spec.get("cluster") or {"workerpool0": ["here"]}
    task = spec.get("task") or {"type": "workerpool0", "index": 0}
    names = [f"{pool}-{index}" for pool in sorted(pools) for index in range(len(pools[pool]))]
    return names, f"{task['type']}-{task['index']}"


def train() -> None:
    """Train once; end with the launcher's exit code.

    Vertex AI starts a container anew whose exit code was not 0, before it gives the job up, and the whole job where the
    code may be a passing fault's. What has failed once says so again; a machine that is taken away says nothing, so that
    the one in its place trains.
    """
    hosts, host = cluster()
    ended = mounted(os.environ["NOTEBOOKED_OUTPUT"]).replace("output.tar.gz", "ended-" + host)
    if os.path.exists(ended):
        with open(ended, encoding="utf-8") as stream:
            sys.exit(int(stream.read()))
    taken = threading.Event()
    try:
        train_once(hosts, host, taken)
    except SystemExit as error:
        if error.code and not taken.is_set():
            with contextlib.suppress(OSError), open(ended, "w", encoding="utf-8") as stream:
                stream.write(str(error.code))
        raise


def train_once(hosts: "list[str]", host: str, taken: threading.Event) -> None:
    """Run the launcher; end with its exit code. ``taken`` is set where the machine is taken away."""
    base = tempfile.mkdtemp()
    code, model, output = (os.path.join(base, name) for name in ("code", "model", "output"))
    for folder in (code, model, output):
        os.makedirs(folder)
    try:
        unpack(mounted(os.environ["NOTEBOOKED_PACKAGE"]), code)
    except (OSError, tarfile.TarError) as error:
        print(f"[notebooked] The package cannot be read: {error}", flush=True)
        sys.exit(NO_PACKAGE)
    install(os.path.join(code, "requirements.txt"))
    environment = dict(
        os.environ,
        SM_MODEL_DIR=model,
        SM_OUTPUT_DATA_DIR=output,
        SM_HOSTS=json.dumps(hosts),
        SM_CURRENT_HOST=host,
        # The bucket is mounted: what is written there is there.
        NOTEBOOKED_PIPES_FOLDER=os.path.join(
            os.path.dirname(mounted(os.environ["NOTEBOOKED_OUTPUT"])), "pipes"
        ),
    )
    data = os.environ.get("NOTEBOOKED_DATA")
    if data:
        with open(os.path.join(code, "notebooked_job.json"), encoding="utf-8") as stream:
            name = json.load(stream).get("data") or ""
        # The launcher takes the folder, and the name of the one file in it where it is one.
        environment["SM_CHANNEL_TRAINING"] = (
            os.path.dirname(mounted(data)) if name else mounted(data).rstrip("/")
        )
    child = subprocess.Popen([sys.executable, "-u", os.path.join(code, LAUNCHER)], cwd=code, env=environment)

    def end(*_: object) -> None:
        taken.set()
        child.terminate()

    # As the container's first process we would not be ended by a signal that nobody handles.
    signal.signal(signal.SIGTERM, end)
    code_of_child = child.wait()
    if code_of_child < 0:
        sys.exit(128 - code_of_child)
    if host == hosts[0]:
        try:
            pack(model, os.path.join(mounted(os.environ["AIP_MODEL_DIR"]), "model.tar.gz"))
            pack(output, mounted(os.environ["NOTEBOOKED_OUTPUT"]))
        except OSError as error:
            print(f"[notebooked] The model cannot be written to the bucket: {error}", flush=True)
            sys.exit(NO_UPLOAD)
    sys.exit(code_of_child)


def token() -> str:
    """The service account's, from the metadata server."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/service-accounts/default/token"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return str(json.load(reply)["access_token"])


def fetch(uri: str, target: str) -> None:
    """Fetch an object."""
    bucket, _, name = uri[len("gs://") :].partition("/")
    host = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
    url = f"{host}/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media"
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + token()})
    with urllib.request.urlopen(request, timeout=300) as reply, open(target, "wb") as stream:
        shutil.copyfileobj(reply, stream)


class Handler(BaseHTTPRequestHandler):
    """``GET /ping`` and ``POST /invocations``, as our own model server has them."""

    protocol_version = "HTTP/1.1"
    module: Any = None
    model: Any = None

    def log_message(self, *args: object) -> None:
        """Say nothing of single requests."""

    def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        """Answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Say whether the model is loaded."""
        if self.path != os.environ.get("AIP_HEALTH_ROUTE", "/ping"):
            return self.reply(404, b"{}")
        return self.reply(200 if Handler.module else 503, b"{}")

    def do_POST(self) -> None:
        """Predict."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != os.environ.get("AIP_PREDICT_ROUTE", "/invocations") or Handler.module is None:
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
    """Listen at once, so that Vertex AI sees that somebody is there; be healthy when the model is loaded."""
    address = ("0.0.0.0", int(os.environ.get("AIP_HTTP_PORT", "8080")))
    server = ThreadingHTTPServer(address, Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = tempfile.mkdtemp()
    archive, folder = os.path.join(base, "model.tar.gz"), os.path.join(base, "model")
    fetch(os.environ["AIP_STORAGE_URI"].rstrip("/") + "/model.tar.gz", archive)
    unpack(archive, folder)
    os.remove(archive)
    code = os.path.join(folder, "code")
    install(os.path.join(code, "requirements.txt"))
    sys.path.insert(0, code)
    import inference  # type: ignore[import-not-found]

    Handler.model = inference.model_fn(folder)
    Handler.module = inference
    print("[notebooked] The model is loaded.", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    {"train": train, "serve": serve}[sys.argv[1]]()
