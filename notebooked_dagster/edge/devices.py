"""Which devices there are: from ``edge.yaml``, or from the launcher's own configuration in ``dagster.yaml``."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from notebooked_dagster.config.document import Document, KeyPath, key_text, read_documents
from notebooked_dagster.errors import ConfigError

FILE = "edge.yaml"
LAUNCHER = "notebooked_dagster.edge.launcher"
_VERSION = r"\d+\.\d+(\.\d+)?"
# ssh takes what begins with a dash for an option.
_WORD = r"^[^-\s]\S*$"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"


class Device(BaseModel):
    """One device, as it is declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME, description="What runs call it by: the tag `notebooked/device`.")
    host: str = Field(pattern=_WORD, description="Its address or name in the network.")
    user: str | None = Field(
        None, pattern=_WORD, description="Who logs in; the user of this process where not given."
    )
    port: int = Field(22, ge=1, le=65535, description="Where its SSH server listens.")
    key: Path | None = Field(None, description="The private key; what ssh finds by itself where not given.")
    host_key: str | None = Field(
        None,
        description="The device's public key, `ssh-ed25519 AAAA…`; or else `known_hosts` has to know it.",
    )
    known_hosts: Path | None = Field(
        None, description="A file of known hosts; the user's own where not given."
    )
    labels: frozenset[str] = Field(
        frozenset(), description="Groups it belongs to: the tag `notebooked/device-label`."
    )
    capacity: int = Field(1, ge=1, le=64, description="How many runs it may have at a time.")
    folder: PurePosixPath = Field(
        PurePosixPath("notebooked"), description="Its working folder; relative to the user's home."
    )
    environment: tuple[str, ...] = Field(
        (), description="Names of variables of this host that runs there may see. No other gets there."
    )
    python: str | None = Field(
        None,
        description="An interpreter on the device that has all that runs need; uv makes one where not given.",
    )
    python_version: str | None = Field(None, description="Which Python uv takes for the environment.")
    agent_python: str = Field("python3", description="The interpreter of our agent: Python 3.11 or newer.")
    wheels: str | None = Field(
        None,
        description="A folder of wheels on the device, relative to `folder`, that somebody fills; nothing else is asked then.",
    )
    offline: bool = Field(
        False,
        description="It has no internet: this host downloads the wheels that it needs, and uv, and brings them there.",
    )

    @field_validator("host_key")
    @classmethod
    def _is_key(cls, value: str | None) -> str | None:
        if value is not None and (len(value.split()) < 2 or len(value.splitlines()) > 1):
            raise ValueError(
                "has to be a type and a key, as `ssh-keyscan` prints them behind the host's name"
            )
        return value

    @field_validator("folder")
    @classmethod
    def _is_folder(cls, value: PurePosixPath) -> PurePosixPath:
        if ".." in value.parts or value == PurePosixPath(".") or str(value).startswith("~"):
            raise ValueError("has to be a folder of its own, relative to the home or absolute")
        return value

    @model_validator(mode="after")
    def _is_one_way(self) -> Device:
        if self.offline and self.wheels is not None:
            raise ValueError(
                "either `offline`, and this host brings wheels, or `wheels`, and somebody else does"
            )
        if self.offline and not re.fullmatch(_VERSION, self.python_version or "3.11"):
            raise ValueError("`python_version` has to be a number such as 3.11 where the device is offline")
        return self

    @property
    def address(self) -> str:
        """As people write it."""
        return (
            f"{self.user + '@' if self.user else ''}{self.host}{f':{self.port}' if self.port != 22 else ''}"
        )


class Fleet(BaseModel):
    """All devices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    devices: tuple[Device, ...] = Field((), description="The devices.")

    @field_validator("devices")
    @classmethod
    def _unique(cls, value: tuple[Device, ...]) -> tuple[Device, ...]:
        names = [device.name for device in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"name {name!r} twice")
        return value

    def get(self, name: str) -> Device | None:
        """A device by its name."""
        return next((device for device in self.devices if device.name == name), None)


def load_fleet(path: Path) -> Fleet:
    """The devices of ``edge.yaml``. Relative paths in it are relative to its folder.

    Raises:
        ConfigError: The file is missing, or something in it is wrong.
    """
    documents = read_documents(path)
    return _fleet(documents[0].data, path.parent, documents[0])


def fleet_of(devices: Sequence[Mapping[str, Any]], base: Path) -> Fleet:
    """The devices that ``dagster.yaml`` lists. Raises ConfigError."""
    return _fleet({"devices": list(devices)}, base, None)


def launcher_config(root: Path) -> dict[str, Any]:
    """The configuration of our run launcher, in ``dagster.yaml`` of the instance or else of the project."""
    home = os.environ.get("DAGSTER_HOME")
    for folder in (Path(home), root) if home else (root,):
        path = folder / "dagster.yaml"
        if path.exists():
            found = _mapping(_yaml(path), path, "").get("run_launcher")
            found = _mapping(found, path, "run_launcher")
            if found.get("module") == LAUNCHER:
                config = _mapping(found.get("config"), path, "run_launcher.config")
                return {name: _told(value) for name, value in config.items()}
    return {}


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"It cannot be read: {told}.", path=path) from error


def _mapping(value: Any, path: Path, key: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError("This has to be a mapping.", path=path, key=key or None)
    return value


def launcher_state(root: Path, state: Path) -> Path:
    """Where this host keeps what it needs for devices: as the launcher is told, or in the project's state folder."""
    told = launcher_config(root).get("state_dir")
    return root / str(told) if told else state / "edge"


def _told(value: Any) -> Any:
    """As Dagster reads it: ``{env: NAME}`` is that variable's value."""
    if isinstance(value, Mapping) and set(value) == {"env"}:
        return os.environ.get(value["env"], "")
    return value


def declared_fleet(root: Path) -> Fleet:
    """The devices of a project, wherever the launcher has them from; none where nothing declares any. Raises ConfigError."""
    config = launcher_config(root)
    if "devices" in config:
        return fleet_of(config["devices"], root)
    path = root / str(config.get("devices_file", FILE))
    return load_fleet(path) if path.exists() else Fleet(devices=())


def with_device(path: Path, entry: Mapping[str, Any]) -> str:
    """The text of ``edge.yaml`` with another device at its end; what is there stays as it is.

    Raises:
        ConfigError: The file is wrong, or its end is not the end of the list.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else "devices:\n"
    item = yaml.safe_dump([dict(entry)], sort_keys=False, allow_unicode=True)
    before = yaml.safe_load(text)
    expected = {**before, "devices": [*(before.get("devices") or ()), dict(entry)]}
    added = f"{text.rstrip()}\n{textwrap.indent(item, ' ' * _indentation(text))}"
    try:
        right = yaml.safe_load(added) == expected
    except yaml.YAMLError:
        right = False
    if not right:
        raise ConfigError(
            "Nothing was written: the list of devices is not at the end of the file, or is written in one line.",
            path=path,
            hint=f"Add this to it:\n{item}",
        )
    return added


def _indentation(text: str) -> int:
    """Of the items of the list of devices."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    for key, value in root.value:
        if key.value == "devices" and isinstance(value, yaml.SequenceNode):
            return int(value.start_mark.column)
    return 2


def _fleet(data: Any, base: Path, document: Document | None) -> Fleet:
    path = document.path if document is not None else None
    if not isinstance(data, Mapping):
        raise ConfigError(
            "This has to be a mapping with the key `devices`.", path=path, hint="Write `devices:` and a list."
        )
    try:
        fleet = Fleet.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key: KeyPath = tuple(first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{message[:1].upper()}{message[1:]}.",
            path=path,
            line=document.line(key) if document is not None else None,
            key=key_text(key),
            hint=_hint(first["type"], key),
        ) from error
    return Fleet(devices=tuple(_absolute(device, base) for device in fleet.devices))


def _hint(kind: str, key: KeyPath) -> str | None:
    if kind == "extra_forbidden":
        return f"There are {', '.join(Device.model_fields if len(key) > 1 else Fleet.model_fields)}."
    if kind == "missing":
        return f"Write `{key[-1]}: …`."
    return None


def _absolute(device: Device, base: Path) -> Device:
    paths = {
        name: base / Path(os.path.expandvars(value)).expanduser()
        for name in ("key", "known_hosts")
        if (value := getattr(device, name)) is not None
    }
    return device.model_copy(update=paths)


def names(devices: Iterable[Device]) -> str:
    """Their names, for a message."""
    return ", ".join(sorted(device.name for device in devices)) or "none"
