"""A serving container: the inference toolkit's contract over HTTP. Usage: ``serve.py <base>``, with ``<base>/model``."""

import importlib.util
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

model_dir = Path(sys.argv[1]) / "model"
code = model_dir / "code"
sys.path.insert(0, str(code))
spec = importlib.util.spec_from_file_location("inference", code / "inference.py")
module = importlib.util.module_from_spec(spec)
sys.modules["inference"] = module
spec.loader.exec_module(module)
loaded = module.model_fn(str(model_dir))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(200 if self.path == "/ping" else 404, b"")

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.headers.get("Content-Type", "application/json")
        accept = self.headers.get("Accept", "application/json")
        if kind in ("application/json", "text/csv"):
            data = data.decode("utf-8")
        try:
            answer = module.output_fn(module.predict_fn(module.input_fn(data, kind), loaded), accept)
            if isinstance(answer, tuple):
                answer = answer[0]
            self.reply(200, answer.encode() if isinstance(answer, str) else bytes(answer))
        except Exception as error:
            # As sagemaker_inference.transformer has it: every exception of a handler is a 500.
            self.reply(500, f"{error}\n{traceback.format_exc()}".encode())


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("LISTENING", server.server_address[1], flush=True)
server.serve_forever()
