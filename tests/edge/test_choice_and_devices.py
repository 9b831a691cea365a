"""Which devices there are, which one takes a run, and what is said where none does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from notebooked_dagster.edge.choice import DEVICE, LABEL, choose, wanted
from notebooked_dagster.edge.devices import Device, Fleet, declared_fleet, load_fleet, with_device
from notebooked_dagster.edge.ssh import Link
from notebooked_dagster.errors import ConfigError, DeviceUnreachableError

FLEET = Fleet(
    devices=(
        Device(name="one", host="a", labels=frozenset({"studio"}), capacity=1),
        Device(name="two", host="b", labels=frozenset({"studio", "big"}), capacity=4),
        Device(name="three", host="c"),
    )
)


def chosen(tags: dict[str, str], load: dict[str, int], silent: frozenset[str] = frozenset()) -> str | None:
    device = choose(FLEET, tags, load, silent)
    return device.name if device is not None else None


def test_a_run_goes_to_the_device_it_names() -> None:
    assert chosen({DEVICE: "three"}, {}) == "three"
    assert chosen({DEVICE: "three"}, {"three": 1}) is None
    assert not wanted({"notebooked/experiment": "iris"})


def test_the_least_loaded_device_of_a_label_takes_it() -> None:
    assert chosen({LABEL: "studio"}, {"one": 0, "two": 1}) == "one"
    assert chosen({LABEL: "studio"}, {"one": 1, "two": 3}) == "two"
    assert chosen({LABEL: "studio"}, {"one": 1, "two": 4}) is None
    assert chosen({LABEL: "studio", DEVICE: "two"}, {}) == "two"


def test_a_silent_device_comes_last_and_is_no_reason_to_refuse() -> None:
    assert chosen({LABEL: "studio"}, {"two": 3}, frozenset({"one"})) == "two"
    assert chosen({LABEL: "studio"}, {"two": 4}, frozenset({"one"})) == "one"


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({DEVICE: "thre"}, "Did you mean three?"),
        ({DEVICE: "nine"}, "There is no device 'nine'; there are: one, three, two."),
        ({LABEL: "garden"}, "No device has the label 'garden'; there are: big, studio."),
        ({DEVICE: "three", LABEL: "studio"}, "the run asks for both"),
    ],
)
def test_where_none_fits_the_message_says_what_there_is(tags: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(tags, {})
    assert words in str(caught.value)


@given(st.dictionaries(st.sampled_from(["one", "two", "three"]), st.integers(0, 6)))
def test_capacity_is_never_exceeded(load: dict[str, int]) -> None:
    device = choose(FLEET, {LABEL: "studio"}, load)
    full = all(load.get(name, 0) >= (FLEET.get(name) or FLEET.devices[0]).capacity for name in ("one", "two"))
    assert (device is None) == full
    assert device is None or load.get(device.name, 0) < device.capacity


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("devices:\n  - name: a\n", ["line 2", "devices[0].host", "Write `host: …`."]),
        ("devices:\n  - {name: a, host: b, prot: 3}\n", ["devices[0].prot", "There are name, host"]),
        ("devices:\n  - {name: a, host: b}\n  - {name: a, host: c}\n", ["'a' twice"]),
        ("devices:\n  - {name: ../a, host: b}\n", ["devices[0].name"]),
        ("devices:\n  - {name: a, host: b, folder: ../c}\n", ["a folder of its own"]),
        ("devices:\n  - {name: a, host: b, capacity: 0}\n", ["devices[0].capacity"]),
        ("devices:\n  - {name: a, host: b, host_key: AAAA}\n", ["ssh-keyscan"]),
        ("devices:\n  - {name: a, host: -oProxyCommand=b}\n", ["devices[0].host"]),
        ("devices:\n  - {name: a, host: b, user: c d}\n", ["devices[0].user"]),
        ('devices:\n  - {name: a, host: b, host_key: "a b\\nc d"}\n', ["ssh-keyscan"]),
        ("- a\n", ["a mapping with the key `devices`"]),
    ],
)
def test_a_wrong_declaration_is_told_with_its_place(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "edge.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_fleet(tmp_path / "edge.yaml")
    assert all(word in str(caught.value) for word in words), str(caught.value)


BY_HAND = "# mine\ndevices:\n    - name: a   # the first\n      host: b\n# the end\n"


@pytest.mark.parametrize(
    "text", [None, "devices:\n- {name: a, host: b}", BY_HAND, "devices:\n  -   name: a\n      host: b\n\n\n"]
)
def test_a_device_is_added_behind_what_was_written_by_hand(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "edge.yaml"
    if text is not None:
        path.write_text(text)
    found = with_device(path, {"name": "new", "host": "c", "labels": ["x"]})
    path.write_text(found)
    assert [device.name for device in load_fleet(path).devices] == ["a", "new"][text is None :]
    assert found.startswith((text or "").rstrip())


@pytest.mark.parametrize(
    "text", ["devices: [{name: a, host: b}]\n", "{}\n", "devices:\n- {name: a, host: b}\n...\n"]
)
def test_where_a_device_cannot_be_added_the_entry_is_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "edge.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="Nothing was written") as caught:
        with_device(path, {"name": "new", "host": "c"})
    assert "- name: new" in str(caught.value)


def test_the_devices_are_the_launchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("THE_FILE", "others.yaml")
    launcher = {"module": "notebooked_dagster.edge.launcher", "class": "PiRunLauncher"}

    def names(config: dict[str, object]) -> list[str]:
        text = yaml.safe_dump({"run_launcher": {**launcher, "config": config}})
        (tmp_path / "dagster.yaml").write_text(text)
        return [device.name for device in declared_fleet(tmp_path / "project").devices]

    (tmp_path / "project").mkdir()
    assert names({"devices_file": {"env": "THE_FILE"}}) == []
    (tmp_path / "project/others.yaml").write_text("devices:\n- {name: a, host: b}\n")
    assert names({"devices_file": {"env": "THE_FILE"}}) == ["a"]
    assert names({"devices": [{"name": "c", "host": "d"}]}) == ["c"]
    for wrong in (
        "run_launcher: [",
        "- a",
        "run_launcher: a",
        f"run_launcher: {{module: {launcher['module']}, config: [a]}}",
    ):
        (tmp_path / "dagster.yaml").write_text(wrong)
        with pytest.raises(ConfigError, match=r"dagster\.yaml"):
            declared_fleet(tmp_path / "project")


def test_sshs_own_configuration_of_a_host_holds(tmp_path: Path) -> None:
    options = Link(Device(name="a", host="alias", host_key="ssh-ed25519 AAAA"), tmp_path).options()
    assert not {"-F", "-p"} & set(options)
    # Whatever address the alias stands for, the key is looked for under the name that we write.
    assert "HostKeyAlias=a" in options
    assert (tmp_path / "known_hosts/a").read_text() == "a ssh-ed25519 AAAA\n"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "edge.yaml").write_text("devices:\n  - {name: a, host: b, key: keys/pi}\n")
    assert load_fleet(tmp_path / "edge.yaml").devices[0].key == tmp_path / "keys/pi"


def test_a_device_that_is_slow_is_not_told_as_one_that_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of ssh itself only that it gave nothing back matters here.
    ssh = tmp_path / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nexec sleep 60\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=os.pathsep)
    link = Link(Device(name="a", host="alias", host_key="ssh-ed25519 AAAA"), tmp_path)
    monkeypatch.setattr(link, "close", lambda: None)
    with pytest.raises(DeviceUnreachableError, match="no whole answer") as caught:
        link.ask("hello", timeout=0.2)
    assert caught.value.hint is not None
    assert "busy" in caught.value.hint
