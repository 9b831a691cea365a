"""Model Serving's containers: a model of MLflow's pyfunc flavor behind HTTP, as its scoring server has it.

Importing MLflow itself takes seconds, so this reads MLmodel as MLflow does, and one test loads the same folder with MLflow.
One process that has pandas loaded forks one for each served model. Usage: lines of JSON on stdin,
``{"model": folder, "log": file, "port": file, "environment": {...}}``; answers each with a pid.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy
import pandas


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = None
    columns = ()

    def log_message(self, *args):
        pass

    def reply(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, text):
        return self.reply(400, {"error_code": "BAD_REQUEST", "message": text})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        try:
            data = parsed(asked, Handler.columns)
        except (KeyError, TypeError, ValueError) as error:
            return self.refuse(f"Failed to enforce schema of data: {error}")
        try:
            return self.reply(200, {"predictions": Handler.model.predict(data)})
        except Exception:
            # As MLflow's scoring server has it: what a model raises is a bad request, with its traceback.
            traceback.print_exc()
            sys.stderr.flush()
            said = "Encountered an unexpected error while evaluating the model. Verify that the input is compatible. "
            return self.refuse(said + traceback.format_exc())


def parsed(asked, columns):
    """A request as MLflow makes it of a body, by the model's signature."""
    if columns[0]["type"] == "tensor":
        return numpy.array(asked["inputs"], dtype=columns[0]["tensor-spec"]["dtype"])
    if "dataframe_split" in asked:
        frame = pandas.DataFrame(
            asked["dataframe_split"]["data"], columns=asked["dataframe_split"]["columns"]
        )
    elif "dataframe_records" in asked:
        frame = pandas.DataFrame(asked["dataframe_records"])
    else:
        frame = pandas.DataFrame(asked["inputs"] if "inputs" in asked else asked["instances"])
    kinds = {column["name"]: column["type"] for column in columns if "name" in column}
    return frame[list(kinds)].astype({name: "float64" for name, kind in kinds.items() if kind == "double"})


def load(folder):
    """What MLflow's ``pyfunc.load_model`` does with a folder of this flavor."""
    document = json.loads((folder / "MLmodel").read_text())
    flavor = document["flavors"]["python_function"]
    sys.path.insert(0, str(folder / flavor["code"]))
    Handler.columns = json.loads(document["signature"]["inputs"])
    Handler.model = importlib.import_module(flavor["loader_module"])._load_pyfunc(
        str(folder / flavor["data"])
    )


def serve(order):
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["environment"])
    try:
        load(Path(order["model"]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Path(order["port"] + ".half").write_text(str(server.server_address[1]))
    Path(order["port"] + ".half").rename(order["port"])
    server.serve_forever()


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("READY", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        serve(json.loads(line))
    print(pid, flush=True)
