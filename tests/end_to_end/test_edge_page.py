"""The edge daemon's page in a real browser, while somebody plays."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import mido
import mido.sockets
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NOTEBOOKED = str(Path(sys.executable).with_name("notebooked"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The page's address, and the port that keys are played on."""
    keys, web = free_port(), free_port()
    config = {
        "name": "studio",
        "ports": [
            {"name": "keys", "kind": "tcp", "listen": keys},
            {"name": "<img src=x onerror=alert(1)>", "kind": "tcp", "connect": "127.0.0.1:1"},
        ],
        "clock": {"bpm": 96.5},
        "record": {"always": True},
        "web": {"port": web},
    }
    (tmp_path / "device.yaml").write_text(json.dumps(config))
    process = subprocess.Popen(
        [NOTEBOOKED, "edge", "daemon", "--config", str(tmp_path / "device.yaml")],
        cwd=tmp_path, env=dict(os.environ), stderr=(tmp_path / "log").open("wb"),
    )  # fmt: skip
    url = f"http://127.0.0.1:{web}"
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{url}/healthz").raise_for_status()
            break
        except httpx.HTTPError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail((tmp_path / "log").read_text())
            time.sleep(0.1)
    yield url, keys
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_the_page_shows_ports_tempo_and_events_as_they_come(
    daemon: tuple[str, int], browser_page: Page
) -> None:
    url, number = daemon
    problems: list[str] = []
    browser_page.on("pageerror", lambda error: problems.append(str(error)))
    browser_page.on(
        "console", lambda message: problems.append(message.text) if message.type == "error" else None
    )
    browser_page.on("dialog", lambda dialog: problems.append("a name was taken for HTML"))
    browser_page.goto(url)
    browser_page.get_by_text("96.5 BPM").wait_for(timeout=20_000)
    assert browser_page.title() == "studio - notebooked edge"
    assert browser_page.locator("#link").inner_text() == "live"
    ports = browser_page.locator("#ports")
    assert "keys\ttcp\tnot connected" in ports.inner_text()
    assert "<img src=x onerror=alert(1)>" in ports.inner_text()
    keys = mido.sockets.connect("127.0.0.1", number)
    ports.get_by_text("connected", exact=True).wait_for(timeout=5_000)
    keys.send(mido.Message("note_on", note=61, velocity=99))
    browser_page.locator("#events li").first.wait_for(timeout=5_000)
    assert "keys: note_on channel=0 note=61 velocity=99" in browser_page.locator("#events").inner_text()
    browser_page.get_by_text("● recording").wait_for(timeout=5_000)
    assert "received\tkeys\t1" in browser_page.locator("#counters").inner_text()
    assert [text for text in problems if "favicon" not in text and "404" not in text] == []
