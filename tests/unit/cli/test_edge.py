"""The commands for devices, without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from notebooked_dagster.cli import edge, main
from notebooked_dagster.edge.journal import encode
from notebooked_dagster.edge.ssh import Link

DEVICES = "devices:\n  - {name: pi, host: a}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "assets").mkdir()
    (tmp_path / "config.yaml").write_text("{}\n")
    (tmp_path / "edge.yaml").write_text(DEVICES)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.delenv("NOTEBOOKED_PROJECT_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(project: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["--project", str(project), "edge", *words])
    return done.exit_code, done.output


def test_a_run_is_launched_by_this_interpreter_in_the_projects_instance(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = asked(project, "run", "job", "--device", "pi")
    assert (code, "DAGSTER_HOME is not set" in text) == (1, True)
    launcher = "{module: notebooked_dagster.edge.launcher, class: PiRunLauncher}"
    (project / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\nrun_launcher: {launcher}\n")
    called: list[Any] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, 0, "launched", "")

    monkeypatch.setattr(edge.subprocess, "run", run)
    code, text = asked(project, "run", "job", "--device", "pi")
    command = called[0]
    assert (code, command[command.index("--run-id") + 1] in text) == (0, True)
    assert command[:5] == [sys.executable, "-m", "dagster", "job", "launch"]
    assert json.loads(command[-1]) == {"notebooked/device": "pi"}


def test_a_key_that_is_not_there_is_refused_at_once(project: Path) -> None:
    code, text = asked(project, "add", "new", "pi@b", "--host-key", "ssh-ed25519 AAAA", "--key", "none")
    assert (code, "'none' does not exist" in text) == (1, True)
    assert (project / "edge.yaml").read_text() == DEVICES


def test_a_doctor_without_devices_says_so(project: Path) -> None:
    (project / "edge.yaml").unlink()
    code, text = asked(project, "doctor")
    assert (code, "edge add" in text) == (0, True)


def test_a_run_is_not_given_to_a_launcher_that_knows_no_devices(project: Path) -> None:
    (project / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    code, text = asked(project, "run", "job", "--device", "pi")
    assert (code, "launched by DefaultRunLauncher" in text) == (1, True)


@pytest.mark.parametrize("words", [("add", "new", "pi@b"), ("shell", "pi")])
def test_a_host_without_ssh_is_told_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PATH", str(project))
    code, text = asked(project, *words)
    assert (code, "apt install openssh-client" in text) == (1, True)
    assert (project / "edge.yaml").read_text() == DEVICES


@pytest.mark.parametrize("address", ["pi@b:ssh", "pi@b:99999", "fe80::1", "-oProxyCommand=b", "", "a@b@c"])
def test_what_is_no_address_is_told_before_anybody_is_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(edge, "_shown_key", None)
    code, text = asked(project, "add", "--yes", "new", "--", address)
    assert code in (1, 2)
    assert "Traceback" not in text
    assert any(word in text for word in ("address", "devices[0].host", "devices[0].port"))
    assert (project / "edge.yaml").read_text() == DEVICES


def test_an_address_of_ipv6_is_written_in_brackets(project: Path) -> None:
    code, text = asked(project, "add", "new", "pi@[fe80::1]:2222", "--host-key", "ssh-ed25519 AAAA")
    assert code == 0, text
    assert "host: fe80::1\n" in (project / "edge.yaml").read_text()


def test_a_damaged_journal_is_shown_up_to_the_damage(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode({"kind": "exit", "why": "exit", "code": 0})
    damaged = whole + whole.replace(b"exit", b"exot", 1) + whole
    monkeypatch.setattr(
        Link, "run", lambda self, command: subprocess.CompletedProcess(command, 0, damaged, b"")
    )
    code, text = asked(project, "logs", "abc")
    assert code == 0
    assert "the process ended" in text
    assert f"damaged at byte {len(whole)}" in text
