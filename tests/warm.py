"""Processes that have their imports behind them: a fork costs 0.1 s where a new interpreter spends 2 on Dagster.

Such a process has a working folder, an environment and an output of its own and ends as any does; only its interpreter was
started before. What a new interpreter does is tested where nothing is said of this module, once for each command at least.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path


class Warm:
    """An interpreter that has imported some modules and runs each command in a fork of itself.

    Args:
        modules: What it imports.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._server: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str] = os.environ,
        given: str = "",
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run what a package of this environment installs (its name), or a script of ``cwd``, with some arguments."""
        with self._one_at_a_time, tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder) / name for name in ("in", "out", "err")]
            streams[0].write_text(given, encoding="utf-8")
            request = {
                "command": command,
                "cwd": str(cwd),
                "env": dict(env),
                "streams": list(map(str, streams)),
            }
            if self._server is None:
                self._server = self._started(env)
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            print(json.dumps(request), file=self._server.stdin, flush=True)
            # The server waits for the command alone; one that takes too long is ended from here.
            watch = threading.Timer(timeout, os.kill, (int(self._server.stdout.readline()), 9))
            watch.start()
            code = int(self._server.stdout.readline())
            watch.cancel()
            out, err = (path.read_text(encoding="utf-8") for path in streams[1:])
        assert code != -9, f"{command} took longer than {timeout} s:\n{err}"
        return subprocess.CompletedProcess(command, code, out, err)

    def _started(self, env: Mapping[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__, *self._modules],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


COMMANDS = Warm(
    "dagster._cli",
    "dagster._core.storage.event_log.sqlite",
    "dagster._core.storage.runs.sqlite",
    "notebooked_dagster.cli.endpoints",
    "notebooked_dagster.cli.train",
    "notebooked_dagster.definitions",
    "notebooked_dagster.providers.local",
    "notebooked_dagster.serving.control",
)
SCRIPTS = Warm(
    "pandas", "sklearn.datasets", "sklearn.linear_model", "sklearn.model_selection", "sklearn.preprocessing"
)


def _serve(modules: Sequence[str]) -> None:
    for name in modules:
        import_module(name)
    # What is imported is no garbage, in none of the forks.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(**json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(command: list[str], cwd: str, env: dict[str, str], streams: list[str]) -> None:
    """Be the process of a command, in a fork."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False) for number, mode in enumerate(("r", "w", "w"))
    )
    # Read by an interpreter when it starts.
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = command
    if command[0].endswith(".py"):
        sys.path.insert(0, cwd)
        runpy.run_path(command[0], run_name="__main__")
        sys.exit()
    (script,) = entry_points(group="console_scripts", name=command[0])
    sys.exit(script.load()())


if __name__ == "__main__":
    # A command does not find modules beside this file.
    sys.path.pop(0)
    _serve(sys.argv[1:])
