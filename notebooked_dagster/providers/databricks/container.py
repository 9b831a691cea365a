"""What a run of ours executes on Databricks; it lies in the volume, and needs nothing but Python itself.

``<this file> <folder of the job> <facts>`` unpacks the package from the volume, installs what the scripts ask for into a
folder of its own (the cluster's packages are Spark's, and stay as they are), runs our launcher and puts model, output and log
back. A volume takes whole files only, nothing can be appended to one: the log goes there in pieces, one every few seconds.

Databricks runs it inside an interpreter of its own: there may be no ``__file__``, and no signal may be handled.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from typing import Any

LAUNCHER = "notebooked_launch.py"
# Exit codes that tell whose fault it was; scripts have their own in the launcher's last line.
NO_REQUIREMENTS, NO_UPLOAD, NO_PACKAGE = 76, 74, 75


def mounted(path: str) -> str:
    """Where something in a volume lies in the file system."""
    return os.environ.get("NOTEBOOKED_VOLUMES_ROOT", "") + path


class Log:
    """The job's log in the volume, and in the run's own output."""

    def __init__(self, folder: str, scratch: str) -> None:
        self._folder, self._scratch = folder, scratch
        self._number = 0
        self._waiting: "list[bytes]" = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        os.makedirs(folder, exist_ok=True)
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def say(self, line: bytes) -> None:
        """Take a line."""
        with self._lock:
            self._waiting.append(line)
        sys.stdout.write(line.decode("utf-8", "replace"))
        sys.stdout.flush()

    def _keep(self) -> None:
        while not self._ended.wait(float(os.environ.get("NOTEBOOKED_LOG_EVERY", "2"))):
            self._write()

    def _write(self) -> None:
        with self._lock:
            lines, self._waiting = self._waiting, []
        if not lines:
            return
        self._number += 1
        local = os.path.join(self._scratch, "log-piece")
        with open(local, "wb") as stream:
            stream.write(b"".join(lines))
        target = os.path.join(self._folder, "%08d.txt" % self._number)
        try:
            shutil.copyfile(local, target)
        except OSError as error:
            # The run's own output has the lines too.
            print(f"[notebooked] The log cannot be written to the volume: {error}", flush=True)

    def close(self) -> None:
        """Write what is left."""
        self._ended.set()
        self._thread.join()
        self._write()


def run(command: "list[str]", log: Log, **more: Any) -> int:
    """Run a program with its output in the log; returns its exit code."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
    assert child.stdout is not None
    for line in child.stdout:
        log.say(line)
    return child.wait()


def unpack(archive: str, folder: str) -> None:
    """Unpack one of our archives."""
    with tarfile.open(archive) as opened:
        opened.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        opened.extractall(folder)


def pack(folder: str, target: str) -> None:
    """Write an archive of a folder; it appears in the volume when it is whole."""
    local = folder + ".tar.gz"
    with tarfile.open(local, "w:gz") as archive:
        for name in sorted(os.listdir(folder)):
            archive.add(os.path.join(folder, name), name)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(local, target)


def install(requirements: str, folder: str, log: Log) -> bool:
    """Install what the scripts need into a folder; whether that worked."""
    if not os.path.isfile(requirements) or not os.path.getsize(requirements):
        return True
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return run([*command, "--target", folder, "-r", requirements], log) == 0


def train(home: str, log: Log, base: str) -> int:
    """Run the launcher; returns the exit code."""
    code, model, output, packages = (
        os.path.join(base, name) for name in ("code", "model", "output", "packages")
    )
    for folder in (code, model, output, packages):
        os.makedirs(folder)
    try:
        unpack(os.path.join(home, "source", "package.tar.gz"), code)
        with open(os.path.join(home, "source", "job.json"), encoding="utf-8") as stream:
            job = json.load(stream)
    except (OSError, ValueError, tarfile.TarError) as error:
        log.say(f"[notebooked] The package cannot be read: {error}\n".encode())
        return NO_PACKAGE
    if not install(os.path.join(code, "requirements.txt"), packages, log):
        log.say(b"[notebooked] The requirements cannot be installed on this compute.\n")
        return NO_REQUIREMENTS
    environment = dict(os.environ, **job["environment"])
    path = environment.get("PYTHONPATH")
    environment.update(
        SM_MODEL_DIR=model,
        SM_OUTPUT_DATA_DIR=output,
        # The volume is mounted: a file that was written there is there.
        NOTEBOOKED_PIPES_FOLDER=os.path.join(home, "pipes"),
        PYTHONPATH=packages + (os.pathsep + path if path else ""),
    )
    data = job.get("data")
    if data:
        with open(os.path.join(code, "notebooked_job.json"), encoding="utf-8") as stream:
            name = json.load(stream).get("data") or ""
        # The launcher takes the folder, and the name of the one file in it where it is one.
        environment["SM_CHANNEL_TRAINING"] = (
            os.path.dirname(mounted(data)) if name else mounted(data).rstrip("/")
        )
    result = run([sys.executable, "-u", os.path.join(code, LAUNCHER)], log, cwd=code, env=environment)
    try:
        pack(output, os.path.join(home, "output.tar.gz"))
        if result == 0:
            pack(model, os.path.join(home, "model", "model.tar.gz"))
    except OSError as error:
        log.say(f"[notebooked] The model cannot be written to the volume: {error}\n".encode())
        return NO_UPLOAD
    return 128 - result if result < 0 else result


def main(arguments: "list[str]") -> None:
    """Train; a run whose script raises SystemExit has failed."""
    home = mounted(arguments[0])
    base = tempfile.mkdtemp()
    log = Log(os.path.join(home, "log"), base)
    try:
        code = train(home, log, base)
    finally:
        log.close()
        shutil.rmtree(base, ignore_errors=True)
    # Not with 0: Databricks takes any SystemExit for a failure in some releases of its runtime.
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
