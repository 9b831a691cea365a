"""The process that trains with Dagster Pipes open, and what it leaves behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster_pipes import encode_param

from notebooked_dagster.providers import pipes, pipes_process
from tests.clouds.aws import AwsServer
from tests.clouds.kit import BUCKET, aws_server
from tests.contract.suite import CONTEXT

PROCESS = Path(pipes_process.__file__)
SUPPORT = """
noted = {}
def metric(name, value):
    noted[name] = value
    return value
def _numbers(name, value):
    yield name, float(value)
def metrics():
    return dict(noted)
def start_tracking():
    import mlflow
"""
MLFLOW = """
class MlflowClient:
    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        print("batch of", len(metrics))
    def log_metric(self, run_id, key, value, timestamp=None, step=None):
        print("metric", key)
"""
TRAIN = """
import script_support as support
import mlflow, sys
from types import SimpleNamespace as Metric
from dagster_pipes import PipesContext
support.start_tracking()
client = mlflow.MlflowClient()
client.log_batch("run", metrics=[Metric(key="loss", value=0.5, step=1), Metric(key="loss", value=0.25, step=2)])
client.log_metric("run", "rate", 0.1, step=3)
support.metric("accuracy", 0.9)
client.log_batch("run", [Metric(key="accuracy", value=0.9, step=0)])
PipesContext.get().report_asset_check("fair", passed=True)
print(sys.argv[1:])
"""


def run(
    folder: Path, place: dict[str, str], source: str = TRAIN, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script as a launcher does."""
    code = folder / "code"
    code.mkdir(exist_ok=True)
    for name, content in {"train.py": source, "script_support.py": SUPPORT, "mlflow.py": MLFLOW}.items():
        (code / name).write_text(content)
    for name, content in pipes.files(CONTEXT).items():
        (code / name).write_bytes(content)
    return subprocess.run(
        [sys.executable, str(code / pipes.PROCESS), str(code / "train.py"), "--C=1"],
        env={
            **os.environ,
            "NOTEBOOKED_PIPES_INTERVAL": "0",
            "DAGSTER_PIPES_CONTEXT": encode_param({"path": str(code / pipes.CONTEXT)}),
            "DAGSTER_PIPES_MESSAGES": encode_param(place),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def messages(folder: Path) -> list[dict[str, object]]:
    lines, _ = pipes.read_chunks(lambda number: pipes.read_folder(folder, number), None)
    return [json.loads(line) for line in lines]


def test_metrics_are_told_as_they_come_and_each_once(tmp_path: Path) -> None:
    done = run(tmp_path, {"folder": str(tmp_path / "messages")})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["batch of 2", "metric rate", "batch of 1", "['--C=1']"]
    told = messages(tmp_path / "messages")
    payloads = [item["params"]["payload"] for item in told if item["method"] == "report_custom_message"]  # type: ignore[index]
    assert [(item["name"], item["value"], item["step"]) for item in payloads] == [
        ("loss", 0.5, 1),
        ("loss", 0.25, 2),
        ("rate", 0.1, 3),
        ("accuracy", 0.9, None),
    ]
    assert [item["method"] for item in told if item["method"] != "report_custom_message"] == [
        "opened",
        "report_asset_check",
        "closed",
    ]


def test_a_process_that_is_started_again_goes_on_counting(tmp_path: Path) -> None:
    place = {"folder": str(tmp_path / "messages")}
    for _ in range(2):
        assert run(tmp_path, place, "pass").returncode == 0
    assert [item["method"] for item in messages(tmp_path / "messages")] == ["opened", "closed"] * 2


def test_what_could_not_be_sent_is_sent_with_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    sent: dict[int, str] = {}
    away = True

    class Channel:
        def upload_messages_chunk(self, payload: io.StringIO, index: int) -> None:
            if away:
                raise OSError("no way there")
            sent[index] = payload.read()

    channel = pipes_process.going_on(Channel(), 2)
    for index, text in enumerate(("one", "two"), 1):
        channel.upload_messages_chunk(io.StringIO(text), index)
    away = False
    for index, text in enumerate(("three", "four"), 3):
        channel.upload_messages_chunk(io.StringIO(text), index)
    # Without a gap: whoever reads them stops at the first number that is not there.
    assert sent == {3: "one\ntwo\nthree", 4: "four"}
    assert capsys.readouterr().out == "[notebooked] Not told yet: OSError: no way there\n"


@pytest.mark.parametrize(("source", "code"), [("raise ValueError('odd')", 1), ("raise SystemExit(3)", 3)])
def test_how_it_ended_is_as_without(tmp_path: Path, source: str, code: int) -> None:
    done = run(tmp_path, {"folder": str(tmp_path / "messages")}, source)
    assert done.returncode == code
    assert "runpy" not in done.stderr
    if code == 1:
        plain = subprocess.run(
            [sys.executable, str(tmp_path / "code" / "train.py")], capture_output=True, text=True, check=False
        )
        assert done.stderr == plain.stderr
    closed = messages(tmp_path / "messages")[-1]
    assert closed["method"] == "closed"


def test_what_cannot_be_reached_is_said_and_trained_without(tmp_path: Path) -> None:
    (tmp_path / "messages").write_text("a file, and no folder")
    source = """
import warnings; warnings.simplefilter("ignore")
from dagster_pipes import open_dagster_pipes
with open_dagster_pipes() as pipes:
    pipes.report_asset_check("fair", passed=True)
print("trained")
"""
    done = run(tmp_path, {"folder": str(tmp_path / "messages")}, source)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("[notebooked] Without Dagster Pipes: FileExistsError")
    assert last == "trained"


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[AwsServer]:
    with aws_server(tmp_path / "aws") as server:
        yield server


def test_dagster_s_own_reader_reads_what_lies_in_s3(tmp_path: Path, aws: AwsServer) -> None:
    from dagster_aws.pipes import PipesS3MessageReader

    place = {"bucket": BUCKET, "key_prefix": "jobs/one/pipes", "region": "eu-central-1"}
    for _ in range(2):
        assert run(tmp_path, place, "pass", **aws.environment()).returncode == 0
    reader = PipesS3MessageReader(bucket=BUCKET, client=aws.s3())
    assert reader.messages_are_readable(place)
    chunk = reader.download_messages_chunk(1, place)
    assert chunk is not None
    assert json.loads(chunk.splitlines()[0])["method"] == "opened"
    names = [item["Key"] for item in aws.s3().list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert names == sorted(f"jobs/one/pipes/{number}.json" for number in range(1, len(names) + 1))


@pytest.mark.parametrize(
    ("text", "first"),
    [(b"", ""), (b"numpy==2.4.0", "numpy==2.4.0\n"), (b"# nothing\nnumpy\n", "# nothing\nnumpy\n")],
)
def test_what_reporting_needs_is_added_to_the_requirements(text: bytes, first: str) -> None:
    from importlib.metadata import version

    own = f"dagster-pipes=={version('dagster-pipes')}\nboto3\n"
    assert pipes.with_requirements(text, ("boto3",)).decode() == first + own


def test_what_is_required_already_stays_as_it_is() -> None:
    text = b"Dagster_Pipes==1.13.0  # the notebook's own\nboto3>=1.40\n--index-url https://example.org\n"
    assert pipes.with_requirements(text, ("boto3",)) == text
