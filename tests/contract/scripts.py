"""A scripts folder by the contract of generated ones, small enough to be trained in a second.

``train.py`` learns the mean of its data. Its hyperparameter ``act`` makes it do what training code does at its worst.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TRAIN = """
import argparse, json, os, pathlib, shutil, subprocess, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("--act", default="learn")
parser.add_argument("--shift", type=float, default=0.0)
parser.add_argument("--note", default="")
parser.add_argument("--data-path")
parser.add_argument("--model-dir", default=os.environ.get("SM_MODEL_DIR", "model"))
parser.add_argument("--output-dir", default=os.environ.get("SM_OUTPUT_DATA_DIR", "output"))
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
here = pathlib.Path(__file__).parent

print("training begins")
if args.act == "fail":
    raise ValueError("the loss is not a number")
elif args.act == "report":
    from dagster_pipes import open_dagster_pipes
    with open_dagster_pipes() as pipes:
        pipes.log.warning("ünïcode is told")
        pipes.report_asset_check("fair", passed=True, metadata={"rows": 3})
    open_dagster_pipes().report_custom_message({"still": "open"})
elif args.act == "exit":
    print("giving up")
    sys.exit(3)
elif args.act == "hang":
    child = "import time; open('grandchild', 'w').write(str(__import__('os').getpid())); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", child])
    subprocess.Popen([sys.executable, "-c", child.replace("'grandchild'", "'stray'")], start_new_session=True)
    while not (os.path.exists("grandchild") and os.path.exists("stray")):
        time.sleep(0.02)
    print("hanging")
    time.sleep(600)
elif args.act == "stubborn":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("hanging")
    time.sleep(600)
elif args.act == "slow":
    for number in range(40):
        print("step", number)
        time.sleep(0.1)
elif args.act == "kill":
    os.kill(os.getpid(), 9)
elif args.act == "crash":
    import ctypes
    ctypes.string_at(0)
elif args.act == "allocate":
    hoard = []
    while True:
        hoard.append(bytearray(16 * 2**20))
elif args.act == "family":
    child = "b = bytearray(120 * 2**20); import time; time.sleep(600)"
    for _ in range(4):
        subprocess.Popen([sys.executable, "-c", child])
    time.sleep(600)
elif args.act == "missing":
    import package_that_nobody_wrote
elif args.act == "nofile":
    open("no-such-file.csv")
elif args.act == "fill":
    with open("/dev/full", "w") as stream:
        stream.write("x" * 100000)
elif args.act == "nothing":
    sys.exit(0)
elif args.act == "talk":
    out = sys.stdout.buffer
    for number in range(11):
        out.write(b"\\rprogress %d%%" % (number * 10))
    out.write(b"\\nlatin-1: \\xe9\\xff\\n")
    out.write(b"x" * 200000 + b"\\n")
    for number in range(20000):
        out.write(b"line %d\\n" % number)
    out.write(b"no newline at the end")
    out.flush()
elif args.act == "environment":
    print(json.dumps(dict(os.environ)))
    print("cwd", os.getcwd())

values = [1.0, 2.0, 3.0]
if args.data_path:
    values = [float(line) for line in pathlib.Path(args.data_path).read_text().split()]
mean = sum(values) / len(values) + args.shift
model = pathlib.Path(args.model_dir)
model.mkdir(parents=True, exist_ok=True)
(model / "mean.json").write_text(json.dumps(mean))
hyperparameters = {"shift": args.shift, "note": args.note, "act": args.act}
(model / "model.json").write_text(json.dumps({
    "format": 1, "framework": "pickle", "file": "mean.json", "model_class": "builtins.float",
    "signature": {"inputs": [{"name": "x", "type": "double"}], "outputs": [{"type": "double"}]},
    "input_example": {"dataframe_records": [{"x": 1.0}]},
    "metrics": {"mean": mean}, "hyperparameters": hyperparameters, "packages": {},
    "stage_hashes": {"train": "abc", "inference": "def"},
}))
for name in ("inference.py", "preprocess.py", "source_map.json"):
    shutil.copy(here / name, model / name)
output = pathlib.Path(args.output_dir)
output.mkdir(parents=True, exist_ok=True)
(output / "metrics.json").write_text(json.dumps({"mean": mean, "count": len(values)}))
print("training ends")
if args.act == "mlflow" and os.environ.get("MLFLOW_TRACKING_URI"):
    import mlflow
    mlflow.log_metric("mean", mean)
    mlflow.log_param("shift", args.shift)
"""

INFERENCE = """
import json, pathlib


def model_fn(model_dir):
    return json.loads((pathlib.Path(model_dir) / "mean.json").read_text())


def input_fn(body, content_type="application/json"):
    data = json.loads(body)
    if isinstance(data, dict):
        for key in ("inputs", "instances", "dataframe_records"):
            if key in data:
                return data[key]
    return data


def predict_fn(data, model):
    if hasattr(data, "to_dict"):
        data = data.to_dict("records")
    return [(row["x"] if isinstance(row, dict) else row) + model for row in data]


def output_fn(prediction, accept="application/json"):
    return json.dumps({"predictions": list(prediction)})
"""


def write_scripts(folder: Path, *, requirements: str = "") -> Path:
    """Write the folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(TRAIN.lstrip())
    (folder / "inference.py").write_text(INFERENCE.lstrip())
    (folder / "preprocess.py").write_text("")
    (folder / "requirements.txt").write_text(requirements)
    (folder / "source_map.json").write_text(json.dumps({"format": 1, "files": {}}))
    return folder


def write_model(scripts: Path, folder: Path, *, shift: float = 0.0) -> str:
    """What ``train.py`` leaves, without a provider; returns the folder."""
    command = [sys.executable, scripts / "train.py", "--shift", str(shift), "--model-dir", folder]
    subprocess.run([*command, "--output-dir", folder / "output"], check=True, capture_output=True)
    return str(folder)
