"""What goes wrong with endpoints, done to real ones: nothing is lost and what served before still serves."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from notebooked_dagster.errors import DeploymentConflictError, DeploymentError, ProviderError, StateError
from notebooked_dagster.serving import processes, state
from notebooked_dagster.serving.control import DeploymentSpec, EndpointControl
from notebooked_dagster.serving.state import ProcessIdentity, Status
from tests.end_to_end.serving_kit import Load, plain_model, wait_until

ROW = {"inputs": [[1.0, 2.0]]}


@pytest.fixture
def control(tmp_path: Path) -> Iterator[EndpointControl]:
    state_dir = tmp_path / "state"
    yield EndpointControl(state_dir)
    for process in psutil.process_iter(["cmdline"]):
        if any(str(state_dir) in argument for argument in process.info["cmdline"] or ()):
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state/endpoints/e"


def serve_one(control: EndpointControl, tmp_path: Path, **spec: object) -> str:
    return control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one"), **spec)).url  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"raise_at_load": True}, "weights of the wrong shape"),
        ({"raise_at_predict": True}, "ZeroDivisionError: nothing to divide"),
        ({"hang_at_load": True}, "not ready within 1.5 s"),
    ],
    ids=["raises at load", "raises at the smoke prediction", "hangs at load"],
)
def test_a_version_that_never_gets_ready(
    control: EndpointControl, tmp_path: Path, folder: Path, fault: dict[str, bool], said: str
) -> None:
    url = serve_one(control, tmp_path)
    bad = plain_model(tmp_path / "m2", "two", **fault)
    with Load(url, threads=1) as load:
        load.wait_for("one")
        with pytest.raises(DeploymentError) as failed:
            control.deploy(DeploymentSpec("e", bad, health_timeout=1.5 if "hang_at_load" in fault else 30))

    assert said in str(failed.value)
    assert load.failures == []
    assert set(load.answers) == {"one"}
    assert [version.version for version in control.get("e").versions] == ["1"]
    workers = [
        p for p in psutil.process_iter(["cmdline"]) if str(folder / "versions/2") in str(p.info["cmdline"])
    ]
    assert workers == []


def test_a_first_deployment_that_fails_leaves_nothing(control: EndpointControl, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="weights of the wrong shape"):
        control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one", raise_at_load=True)))

    assert control.list() == []


def test_a_model_folder_that_cannot_be_served(control: EndpointControl, tmp_path: Path) -> None:
    url = serve_one(control, tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = plain_model(tmp_path / "damaged", "x")
    (damaged / "model.json").write_text('{"format": 1, "sig')

    with pytest.raises(DeploymentError, match="no such model folder"):
        control.deploy(DeploymentSpec("e", tmp_path / "missing"))
    with pytest.raises(DeploymentError, match="holds no model"):
        control.deploy(DeploymentSpec("e", empty))
    with pytest.raises(DeploymentError, match=r"model\.json is damaged"):
        control.deploy(DeploymentSpec("e", damaged))
    with pytest.raises(DeploymentError, match="cannot be started"):
        control.deploy(DeploymentSpec("e", tmp_path / "m1", python=str(tmp_path / "no-python")))
    with pytest.raises(DeploymentError, match="cannot name an endpoint"):
        control.deploy(DeploymentSpec("../e", tmp_path / "m1"))

    assert httpx.get(f"{url}/ready", trust_env=False).status_code == 200


def test_a_port_that_another_program_holds(control: EndpointControl, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DeploymentError, match=f"Port {port} .*process {os.getpid()}"):
            serve_one(control, tmp_path, port=port)
        assert control.list() == []
        url = control.deploy(DeploymentSpec("e", tmp_path / "m1")).url
        with pytest.raises(DeploymentError, match="cannot be used"):
            control.deploy(DeploymentSpec("e", tmp_path / "m1", port=port))

    assert control.get("e").url == url
    assert control.predict("e", ROW) == {"predictions": ["one"]}


def test_a_worker_killed_under_load_comes_back(control: EndpointControl, tmp_path: Path) -> None:
    url = serve_one(control, tmp_path)
    with Load(url, threads=3) as load:
        load.wait_for("one")
        champion = control.get("e").champion
        assert champion is not None
        os.kill(champion.pid or 0, signal.SIGKILL)
        wait_until(lambda: control.get("e").champion.restarts == 1)  # type: ignore[union-attr]
        wait_until(lambda: control.get("e").status is Status.HEALTHY)
        before = len(load.answers)
        wait_until(lambda: len(load.answers) > before + 5)

    # Each thread may lose the request that was under way; new connections wait in the socket's queue.
    assert len(load.failures) <= 3
    champion = control.get("e").champion
    assert champion is not None
    assert "signal 9" in champion.message


def test_a_worker_that_hangs_is_replaced(control: EndpointControl, tmp_path: Path) -> None:
    serve_one(control, tmp_path, hang_timeout=1.0)
    champion = control.get("e").champion
    assert champion is not None
    os.kill(champion.pid or 0, signal.SIGSTOP)

    wait_until(lambda: control.get("e").champion.restarts == 1)  # type: ignore[union-attr]
    wait_until(lambda: control.get("e").status is Status.HEALTHY)
    assert "no sign of life" in control.get("e").message
    assert control.predict("e", ROW) == {"predictions": ["one"]}
    wait_until(lambda: not psutil.pid_exists(champion.pid or 0))


def test_a_prediction_that_never_ends(control: EndpointControl, tmp_path: Path) -> None:
    model = plain_model(tmp_path / "m1", "one", seconds=0.02)
    script = model / "inference.py"
    script.write_text(
        script.read_text().replace("row[0] < 0 for row in data", "time.sleep(row[0]) for row in data")
    )
    control.deploy(DeploymentSpec("e", model, predict_timeout=1.5, hang_timeout=1.0))

    with pytest.raises(ProviderError, match=r"answered 504: A prediction has run for more than 1\.5 s"):
        control.predict("e", {"inputs": [[600.0, 0.0]]})

    wait_until(lambda: control.get("e").champion.restarts == 1)  # type: ignore[union-attr]
    wait_until(lambda: control.get("e").status is Status.HEALTHY)
    assert control.predict("e", {"inputs": [[0.0, 0.0]]}) == {"predictions": ["one"]}


def test_a_worker_that_keeps_crashing_is_given_up_with_a_503(
    control: EndpointControl, tmp_path: Path
) -> None:
    switch = tmp_path / "crash-now"
    model = plain_model(tmp_path / "m1", "one", exit_after_smoke=str(switch))
    url = control.deploy(DeploymentSpec("e", model, restart_limit=2)).url
    switch.touch()
    champion = control.get("e").champion
    assert champion is not None
    os.kill(champion.pid or 0, signal.SIGKILL)

    wait_until(lambda: control.get("e").status is Status.FAILED, 60)
    refused = httpx.post(f"{url}/invocations", json=ROW, trust_env=False)

    assert refused.status_code == 503
    assert "given up" in control.get("e").message
    # A good version repairs it, on the same address.
    assert control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two"))).url == url
    assert control.predict("e", ROW) == {"predictions": ["two"]}


def test_ensure_revives_what_was_given_up(control: EndpointControl, tmp_path: Path) -> None:
    switch = tmp_path / "crash-now"
    model = plain_model(tmp_path / "m1", "one", exit_after_smoke=str(switch))
    control.deploy(DeploymentSpec("e", model, restart_limit=2))
    switch.touch()
    champion = control.get("e").champion
    assert champion is not None
    os.kill(champion.pid or 0, signal.SIGKILL)
    wait_until(lambda: control.get("e").status is Status.FAILED, 60)
    switch.unlink()

    assert control.ensure("e").status is Status.HEALTHY
    assert control.predict("e", ROW) == {"predictions": ["one"]}


def test_a_killed_supervisor_is_not_noticed_by_clients(control: EndpointControl, tmp_path: Path) -> None:
    url = serve_one(control, tmp_path)
    before = control.get("e")
    with Load(url, threads=2) as load:
        load.wait_for("one")
        os.kill(before.supervisor_pid or 0, signal.SIGKILL)
        wait_until(lambda: control.get("e").status is Status.DEGRADED)
        assert "supervisor is gone" in control.get("e").message
        healed = control.ensure("e")
        control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two")))
        load.wait_for("two")

    assert load.failures == []
    assert healed.status is Status.HEALTHY
    assert healed.supervisor_pid != before.supervisor_pid
    # The worker was adopted, not replaced.
    assert healed.champion.pid == before.champion.pid  # type: ignore[union-attr]
    assert healed.url == url


def test_a_supervisor_killed_during_a_deployment(
    control: EndpointControl, tmp_path: Path, folder: Path
) -> None:
    url = serve_one(control, tmp_path)
    slow = plain_model(tmp_path / "m2", "two", hang_at_load=True)
    errors: list[Exception] = []

    def deploy() -> None:
        try:
            control.deploy(DeploymentSpec("e", slow))
        except ProviderError as error:
            errors.append(error)

    thread = threading.Thread(target=deploy)
    with Load(url, threads=1) as load:
        load.wait_for("one")
        thread.start()
        wait_until(lambda: (folder / "versions/2/worker.log").exists())
        os.kill(control.get("e").supervisor_pid or 0, signal.SIGKILL)
        thread.join(30)
        healed = control.ensure("e")

    assert [type(error) for error in errors] == [ProviderError]
    assert load.failures == []
    assert healed.status is Status.HEALTHY
    # The worker that was loading ends by itself: nobody waits for it.
    wait_until(
        lambda: (
            [
                p
                for p in psutil.process_iter(["cmdline"])
                if str(folder / "versions/2") in str(p.info["cmdline"])
            ]
            == []
        )
    )


def test_an_adopted_worker_is_restarted_too(control: EndpointControl, tmp_path: Path) -> None:
    serve_one(control, tmp_path)
    os.kill(control.get("e").supervisor_pid or 0, signal.SIGKILL)
    adopted = control.ensure("e").champion
    assert adopted is not None
    os.kill(adopted.pid or 0, signal.SIGKILL)

    wait_until(lambda: control.get("e").champion.restarts == 1)  # type: ignore[union-attr]
    wait_until(lambda: control.get("e").status is Status.HEALTHY)
    assert control.predict("e", ROW) == {"predictions": ["one"]}


def test_everything_comes_back_on_the_same_port_after_a_reboot(
    control: EndpointControl, tmp_path: Path
) -> None:
    url = serve_one(control, tmp_path)
    endpoint = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two"), weight=40))
    for pid in (endpoint.supervisor_pid, *(version.pid for version in endpoint.versions)):
        os.kill(pid or 0, signal.SIGKILL)
    wait_until(lambda: control.get("e").status is Status.STOPPED)

    healed = control.ensure("e")

    assert healed.url == url
    assert healed.status is Status.HEALTHY
    assert [version.weight for version in healed.versions] == [60, 40]
    assert control.predict("e", ROW)["predictions"][0] in ("one", "two")


def test_a_port_taken_while_the_machine_was_down(control: EndpointControl, tmp_path: Path) -> None:
    port = int(serve_one(control, tmp_path).rpartition(":")[2])
    endpoint = control.get("e")
    os.kill(endpoint.supervisor_pid or 0, signal.SIGKILL)
    os.kill(endpoint.champion.pid or 0, signal.SIGKILL)  # type: ignore[union-attr]
    wait_until(lambda: control.get("e").status is Status.STOPPED)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_until(lambda: not _in_use(taken, port))
        taken.listen()
        with pytest.raises(DeploymentError, match=f"Port {port} .* cannot be used"):
            control.ensure("e")
        assert control.get("e").status is Status.FAILED

    assert control.ensure("e").status is Status.HEALTHY
    assert control.predict("e", ROW) == {"predictions": ["one"]}


def _in_use(sock: socket.socket, port: int) -> bool:
    """A killed process holds its sockets until its last thread has ended, a moment after it is a zombie."""
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        return True
    return False


def test_a_recycled_process_id_is_neither_trusted_nor_killed(
    control: EndpointControl, tmp_path: Path, folder: Path
) -> None:
    serve_one(control, tmp_path)
    endpoint = control.get("e")
    os.kill(endpoint.supervisor_pid or 0, signal.SIGKILL)
    os.kill(endpoint.champion.pid or 0, signal.SIGKILL)  # type: ignore[union-attr]
    wait_until(lambda: control.get("e").status is Status.STOPPED)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    ) as other:
        record = state.read(folder)
        assert record is not None
        real = processes.identify(other.pid)
        assert real is not None
        recycled = ProcessIdentity(pid=other.pid, created=real.created - 100, boot=real.boot)
        record.supervisor = recycled
        record.versions["1"].process = recycled
        state.write(folder, record)

        assert control.get("e").status is Status.STOPPED
        assert control.ensure("e").status is Status.HEALTHY
        control.delete("e")

        assert other.poll() is None
        other.communicate(b"\n")


def test_two_deployments_at_once(control: EndpointControl, tmp_path: Path) -> None:
    serve_one(control, tmp_path)
    slow = plain_model(tmp_path / "m2", "two", hang_at_load=True)

    def fail() -> None:
        with pytest.raises(DeploymentError, match="not ready within"):
            control.deploy(DeploymentSpec("e", slow, health_timeout=3))

    thread = threading.Thread(target=fail)
    thread.start()
    wait_until(lambda: (tmp_path / "state/endpoints/e/versions/2/worker.log").exists())

    with pytest.raises(DeploymentConflictError, match="under way"):
        control.deploy(DeploymentSpec("e", tmp_path / "m1"))
    patient = EndpointControl(tmp_path / "state", wait=30)
    patient.deploy(DeploymentSpec("e", plain_model(tmp_path / "m3", "three")))

    thread.join()
    assert control.predict("e", ROW) == {"predictions": ["three"]}


@pytest.mark.parametrize("damage", ["truncated", "empty", "edited", "newer"])
def test_damaged_state(control: EndpointControl, tmp_path: Path, folder: Path, damage: str) -> None:
    serve_one(control, tmp_path)
    path = folder / "endpoint.json"

    def spoil() -> None:
        good = path.read_bytes()
        data = json.loads(good)
        edited = {**data, "port": 1}
        newer = {**data, "format": 99}
        spoiled = {
            "truncated": good[: len(good) // 2],
            "empty": b"",
            "edited": json.dumps(edited).encode(),
            "newer": json.dumps(newer).encode(),
        }
        path.write_bytes(spoiled[damage])

    spoil()
    # The running supervisor knows better, and writes it down again.
    assert control.get("e").status is Status.HEALTHY
    assert state.read(folder) is not None

    spoil()
    assert control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two"))).status is Status.HEALTHY

    endpoint = control.get("e")
    os.kill(endpoint.supervisor_pid or 0, signal.SIGKILL)
    wait_until(lambda: control.get("e").status is Status.DEGRADED)
    spoil()
    with pytest.raises(StateError, match="delete-endpoint e") as damaged:
        control.get("e")
    assert damaged.value.path == path
    (listed,) = control.list()
    assert listed.status is Status.FAILED
    assert httpx.get(f"{endpoint.url}/ready", trust_env=False).status_code == 200
    control.delete("e")
    assert not folder.exists()
    wait_until(lambda: not psutil.pid_exists(endpoint.champion.pid or 0))  # type: ignore[union-attr]


def test_a_disk_that_is_full(control: EndpointControl, tmp_path: Path) -> None:
    """The supervisor may write no file larger than 1 kB, so a state with many labels does not fit any more."""
    first = plain_model(tmp_path / "m1", "one")
    second = plain_model(tmp_path / "m2", "two")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    script = (
        "from pathlib import Path; from notebooked_dagster.serving.control import *;"
        f"EndpointControl(Path({str(tmp_path / 'state')!r})).deploy(DeploymentSpec('e', Path({str(first)!r})))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, preexec_fn=limited)

    labels = {f"label-{number}": "x" * 100 for number in range(100)}
    with pytest.raises(StateError, match="cannot be written"):
        control.deploy(DeploymentSpec("e", second, labels=labels))

    assert control.predict("e", ROW) == {"predictions": ["one"]}
    assert [version.version for version in control.get("e").versions] == ["1"]
    assert control.deploy(DeploymentSpec("e", second)).status is Status.HEALTHY
    assert control.predict("e", ROW) == {"predictions": ["two"]}


def test_a_lost_model_folder_does_not_stop_what_serves(
    control: EndpointControl, tmp_path: Path, folder: Path
) -> None:
    serve_one(control, tmp_path)
    control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two")))
    shutil.rmtree(folder / "versions/1/model")

    with pytest.raises(DeploymentError, match="version 1"):
        control.rollback("e")

    assert control.predict("e", ROW) == {"predictions": ["two"]}
    assert control.get("e").champion.version == "2"  # type: ignore[union-attr]


def test_idle_connections_do_not_keep_others_out(control: EndpointControl, tmp_path: Path) -> None:
    url = serve_one(control, tmp_path, idle_timeout=1.0, body_timeout=1.0, connection_limit=20)
    port = int(url.rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    slow = silent.pop()
    slow.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n[")
    try:
        wait_until(lambda: httpx.get(f"{url}/ping", trust_env=False).status_code == 200, 10)
        slow.settimeout(5)
        answer = slow.recv(4096)
        silent[0].settimeout(5)
        assert silent[0].recv(1) == b""
    finally:
        for connection in (slow, *silent):
            connection.close()

    assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 503"))


def test_a_slow_prediction_does_not_stop_pings(control: EndpointControl, tmp_path: Path) -> None:
    url = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one", seconds=1.5))).url
    thread = threading.Thread(target=lambda: control.predict("e", ROW))
    started = time.monotonic()
    thread.start()
    time.sleep(0.2)

    assert httpx.get(f"{url}/ping", trust_env=False).status_code == 200
    assert thread.is_alive(), f"the ping waited for the prediction ({time.monotonic() - started:.1f} s)"
    thread.join()


def test_a_memory_limit_ends_a_deployment_not_the_machine(control: EndpointControl, tmp_path: Path) -> None:
    serve_one(control, tmp_path)
    hungry = plain_model(tmp_path / "m2", "two")
    script = hungry / "inference.py"
    script.write_text(script.read_text() + "\nHOARD = bytearray(2_000_000_000)\n")

    with pytest.raises(DeploymentError, match="MemoryError"):
        control.deploy(DeploymentSpec("e", hungry, memory_limit=1_500_000_000))

    assert control.predict("e", ROW) == {"predictions": ["one"]}


def test_a_lost_record_is_no_new_endpoint_while_something_serves(
    control: EndpointControl, tmp_path: Path, folder: Path
) -> None:
    serve_one(control, tmp_path)
    (folder / "endpoint.json").unlink()
    bad = plain_model(tmp_path / "bad", "never")
    (bad / "inference.py").write_text("raise RuntimeError('boom')")
    with pytest.raises(DeploymentError):
        control.deploy(DeploymentSpec("e", bad))
    assert control.predict("e", ROW) == {"predictions": ["one"]}
    assert (folder / "endpoint.json").exists()
