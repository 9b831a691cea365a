"""Model folders in plain Python, which start in a fraction of a second, and a client that counts what fails."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

INFERENCE = """
import json
import os
import sys
import time
from pathlib import Path


def model_fn(model_dir):
    facts = json.loads((Path(model_dir) / "model.json").read_text())["facts"]
    if facts.get("hang_at_load"):
        time.sleep(600)
    if facts.get("raise_at_load"):
        raise ValueError("weights of the wrong shape")
    if facts.get("exit_after_smoke") and os.path.exists(facts["exit_after_smoke"]):
        sys.exit(3)
    return facts


def input_fn(body, content_type):
    document = json.loads(body)
    return document if isinstance(document, list) else next(iter(document.values()))


def predict_fn(data, model):
    if model.get("raise_at_predict"):
        raise ZeroDivisionError("nothing to divide")
    if any(row[0] < 0 for row in data):
        raise RuntimeError("negative length: secret-path /srv/model")
    time.sleep(model.get("seconds", 0))
    return [model["answer"] for _ in data]


def output_fn(prediction, accept):
    return json.dumps({"predictions": prediction})
"""


def plain_model(folder: Path, answer: str, **facts: Any) -> Path:
    """A model that answers ``answer`` to rows of two numbers; ``facts`` make it misbehave."""
    folder.mkdir(parents=True)
    (folder / "inference.py").write_text(INFERENCE)
    metadata = {
        "format": 1,
        "framework": "pickle",
        "signature": {"inputs": {"tensor": {"shape": [-1, 2], "dtype": "float64"}}},
        "input_example": [[1.0, 2.0]],
        "facts": {"answer": answer, **facts},
    }
    (folder / "model.json").write_text(json.dumps(metadata))
    return folder


@dataclass
class Load:
    """Requests without a pause from some threads, each on a connection of its own, until stopped.

    Attributes:
        url: The endpoint's.
        threads: How many.
        answers: What was predicted, in the order it came.
        failures: Everything that was not a 200.
    """

    url: str
    threads: int = 2
    keep_alive: bool = True
    answers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _running: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._running = [threading.Thread(target=self._run, daemon=True) for _ in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._running:
            thread.join(30)

    def _run(self) -> None:
        end = time.monotonic() + 60
        limits = httpx.Limits(max_keepalive_connections=1 if self.keep_alive else 0)
        with httpx.Client(trust_env=False, verify=False, timeout=20, limits=limits) as client:
            while not self._stop.is_set() and time.monotonic() < end:
                try:
                    reply = client.post(f"{self.url}/invocations", json={"inputs": [[1, 2]]})
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                else:
                    if reply.status_code == 200:
                        self.answers.append(reply.json()["predictions"][0])
                    else:
                        self.failures.append(f"{reply.status_code} {reply.text}")
                time.sleep(0.002)

    def wait_for(self, answer: str, seconds: float = 20) -> None:
        """Until the latest replies say ``answer``."""
        wait_until(lambda: self.answers[-1:] == [answer], seconds)


def wait_until(condition: Any, seconds: float = 20) -> None:
    """Poll until it holds; fail where it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
