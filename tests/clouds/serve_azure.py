"""A serving container of Azure: the contract of azureml-inference-server-http 1.5. Usage: ``serve_azure.py <base>``.

``AZUREML_MODEL_DIR`` and ``AZUREML_ENTRY_SCRIPT`` as Azure sets them. The two modules that a scoring script imports of the
real server are stood in for here, as that server cannot be installed beside MLflow.
"""

import importlib.util
import os
import sys
import traceback
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

raw = []


def rawhttp(function):
    raw.append(function)
    return function


class AMLResponse:
    def __init__(
        self, message, status_code, response_headers=None, json_str=False, run_function_failed=False
    ):
        self.body = message.encode() if isinstance(message, str) else bytes(message)
        self.status, self.headers = status_code, dict(response_headers or {})


class Request:
    def __init__(self, headers, body):
        self.headers, self._body = headers, body

    def get_data(self):
        return self._body


for name, members in (("aml_request", {"rawhttp": rawhttp}), ("aml_response", {"AMLResponse": AMLResponse})):
    module = types.ModuleType(f"azureml_inference_server_http.api.{name}")
    module.__dict__.update(members)
    sys.modules[module.__name__] = module
for name in ("azureml_inference_server_http", "azureml_inference_server_http.api"):
    sys.modules[name] = types.ModuleType(name)

script = os.environ["AZUREML_ENTRY_SCRIPT"]
sys.path.insert(0, str(Path(script).parent))
spec = importlib.util.spec_from_file_location("entry_module", script)
module = importlib.util.module_from_spec(spec)


def complain(words):
    # As the server has it: its own words before the traceback's first line, and an exception of its own after it.
    print(f"2026-11-21 12:00:00,000 E [70] azmlinfsrv - {words} {traceback.format_exc()}")
    print("The above exception was the direct cause of the following exception:\n")
    own = (
        "azureml_inference_server_http.server.user_script.UserScriptException: Caught an unhandled exception"
    )
    print(
        f'Traceback (most recent call last):\n  File "user_script.py", line 121, in invoke_init\n{own}',
        flush=True,
    )


try:
    spec.loader.exec_module(module)
    module.init()
except Exception:
    complain("Encountered Exception")
    print(
        'Traceback (most recent call last):\n  File "aml_blueprint.py", line 109, in setup\nUserScriptException'
    )
    sys.exit(3)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def reply(self, status, body, headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(200 if self.path == "/" else 404, b"Healthy")

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            answer = module.run(Request(self.headers, data) if module.run in raw else data.decode())
            self.reply(answer.status, answer.body, answer.headers)
        except Exception:
            # The traceback is in the log, and the caller is told to look there.
            complain("Encountered Exception:")
            said = b'{"message": "An unexpected error occurred in scoring script. Check the logs for more info."}'
            self.reply(500, said, {"x-ms-run-function-failed": "True"})


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("LISTENING", server.server_address[1], flush=True)
server.serve_forever()
