"""Run ``train.py`` inside a cloud's container; sent with the scripts, and needs nothing but Python itself.

``notebooked_job.json`` beside it says how. Its last line tells the exit code, which the clouds' own messages lose.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
END = "[notebooked] train.py ended with exit code"


def data_argument(channel: "str | None", name: str) -> "list[str]":
    """``--data-path`` for the folder that the cloud put the data in, or for the one file in it that was asked for."""
    if not channel:
        return []
    path = os.path.join(channel, name) if name else channel
    if not os.path.exists(path):
        # An address does not say whether it is a file's: `s3://bucket/v1.2` may be a folder.
        if not os.path.isdir(channel) or not os.listdir(channel):
            sys.exit(f"[notebooked] The data {name!r} did not arrive; there is nothing in {channel}.")
        print(
            f"[notebooked] There is no file {name!r} in {channel}; all that is there is the data.", flush=True
        )
        path = channel
    return [f"--data-path={path}"]


def pipes_variables(place: "dict[str, str]") -> "dict[str, str]":
    """Dagster Pipes' own variables: where the context lies, and where messages go."""
    if not place:
        # The container says which folder is kept.
        place = {"folder": os.environ["NOTEBOOKED_PIPES_FOLDER"]}
    values = {
        "DAGSTER_PIPES_CONTEXT": {"path": os.path.join(HERE, "notebooked_context.json")},
        "DAGSTER_PIPES_MESSAGES": place,
    }
    return {
        name: base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()
        for name, value in values.items()
    }


def run(command: "list[str]", environment: "dict[str, str]") -> int:
    """The exit code of ``train.py``. A cloud that takes the machine away tells only us: the script is told, and may save.

    What ended because it was told to has not trained to its end, whatever its exit code; no last line speaks of it.
    """
    told = []
    child = subprocess.Popen(command, env=environment)

    def end(*_: object) -> None:
        told.append(signal.SIGTERM)
        # Not its whole group: the script's own workers are to live until it has saved.
        child.terminate()

    signal.signal(signal.SIGTERM, end)
    code = child.wait()
    if told:
        sys.exit(128 + signal.SIGTERM)
    return code


def main() -> None:
    """Run it; end with its exit code."""
    with open(os.path.join(HERE, "notebooked_job.json"), encoding="utf-8") as stream:
        job = json.load(stream)
    arguments = job["arguments"] + data_argument(os.environ.get("SM_CHANNEL_TRAINING"), job.get("data") or "")
    for option, variable in (("--model-dir", "SM_MODEL_DIR"), ("--output-dir", "SM_OUTPUT_DATA_DIR")):
        if os.environ.get(variable):
            arguments.append(f"{option}={os.environ[variable]}")
    environment = dict(os.environ, PYTHONUNBUFFERED="1", MPLBACKEND="Agg", PYTHONIOENCODING="utf-8")
    # Hyperparameters come as arguments, exactly; what the cloud made of them in its own variables is not read again.
    for name in [name for name in environment if name == "SM_HPS" or name.startswith("SM_HP_")]:
        del environment[name]
    hosts = json.loads(os.environ.get("SM_HOSTS") or "[]")
    first = len(hosts) < 2 or os.environ.get("SM_CURRENT_HOST") == hosts[0]
    script = [os.path.join(HERE, "train.py")]
    if first and job.get("pipes") is not None:
        environment.update(pipes_variables(job["pipes"]))
        script.insert(0, os.path.join(HERE, "notebooked_pipes.py"))
    if not first:
        # Every instance trains; the first one's model and metrics are the job's.
        arguments = [text for text in arguments if not text.startswith(("--model-dir=", "--output-dir="))]
        arguments += ["--model-dir=/tmp/notebooked/model", "--output-dir=/tmp/notebooked/output"]
    sys.stdout.flush()
    code = run([sys.executable, "-u", *script, *arguments], environment)
    print(f"{END} {code}.", flush=True)
    sys.exit(code if 0 <= code < 256 else 1)


if __name__ == "__main__":
    main()
