"""Blobs as the provider uses them: the same tests against Microsoft's emulator and against our stand-in of the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from notebooked_dagster.errors import ConfigError, DataError, DeploymentConflictError
from notebooked_dagster.providers.azure.storage import Storage, account_url, split
from tests.clouds.azure_kit import azure_provider, azure_server
from tests.clouds.azurite import ACCOUNT, Credential, azurite, program


class Workspace:
    """A workspace with one datastore, whose blobs are Azurite's."""

    def __init__(self, host: str) -> None:
        self.credential = Credential()
        self._properties = {
            "datastoreType": "AzureBlob", "accountName": ACCOUNT, "containerName": "store", "endpoint": host, "protocol": "https",
        }  # fmt: skip

        self.subscription, self.resource_group, self.workspace_name = "s", "g", "w"

    def call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        return {"properties": self._properties}


@pytest.fixture(scope="module", params=["ours", "azurite"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "azurite" and program() is None:
        pytest.skip("Azurite is not installed: `make test` installs it where there is npm")
    return str(request.param)


@pytest.fixture(scope="module")
def emulator(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("blobs")
    if kind == "ours":
        with azure_server(folder / "azure") as server:
            yield azure_provider(folder / "state", server).session
        return
    with azurite(folder) as (host, authority), pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(authority))
        session = Workspace(host)
        Storage(session, "workspaceblobstore", "")._container("workspaceblobstore").create_container()  # type: ignore[arg-type]
        yield session


@pytest.fixture
def storage(emulator: Any, request: pytest.FixtureRequest) -> Storage:
    return Storage(emulator, "workspaceblobstore", request.node.name.replace("[", "-").replace("]", ""))


def test_what_is_written_is_read(storage: Storage, tmp_path: Path) -> None:
    place = storage.uri("a", "ünï code.txt")
    assert storage.read(place) is None
    assert storage.write(place, b"one")
    assert storage.write(place, b"two")
    assert not storage.write(place, b"three", new=True)
    assert storage.read(place) == b"two"
    storage.fetch(place, tmp_path / "x" / "y")
    assert (tmp_path / "x" / "y").read_bytes() == b"two"
    with pytest.raises(DataError, match="There is no"):
        storage.fetch(storage.uri("nothing"), tmp_path / "z")


def test_what_is_large_or_empty_arrives_whole(storage: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * (70 * 4096)
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "empty").write_bytes(b"")
    for name in ("large", "empty"):
        storage.upload(tmp_path / name, storage.uri(name))
        storage.fetch(storage.uri(name), tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / name).read_bytes()


def test_a_folder_is_the_same_on_the_other_side(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(60):
        path = source / f"part-{number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    storage.upload_folder(source, storage.uri("folder"))
    storage.write(storage.uri("folder-two", "x"), b"")
    assert len(list(storage.names(storage.uri("folder")))) == 60
    storage.fetch_folder(storage.uri("folder"), tmp_path / "target")
    assert {path.relative_to(tmp_path / "target") for path in (tmp_path / "target").rglob("*.txt")} == {
        path.relative_to(source) for path in source.rglob("*.txt")
    }
    assert storage.remove_below(storage.uri("folder")) == 60
    assert storage.holds(storage.uri("folder-two"))
    with pytest.raises(DataError, match="nothing at"):
        storage.fetch_folder(storage.uri("folder"), tmp_path / "target")
    assert (tmp_path / "target" / "part-0" / "0.txt").exists()


def test_blobs_that_stand_for_folders_are_no_files(storage: Storage, tmp_path: Path) -> None:
    for name in ("folder/sub", "folder/sub/deep", "folder/sub/deep/x.txt", "folder/y.txt"):
        storage.write(storage.uri(*name.split("/")), b"" if "." not in name else b"text")
    storage.fetch_folder(storage.uri("folder"), tmp_path / "target")
    found = sorted(
        path.relative_to(tmp_path / "target").as_posix() for path in (tmp_path / "target").rglob("*.txt")
    )
    assert found == ["sub/deep/x.txt", "y.txt"]
    kept = storage.uri("folder", "y.txt")
    assert storage.remove_below(storage.uri("folder"), but=kept) == 3
    assert list(storage.names(storage.uri("folder"))) == [kept]


def test_data_is_sent_once_for_its_content(storage: Storage, tmp_path: Path) -> None:
    data = tmp_path / "numbers.csv"
    data.write_text("1")
    first = storage.put_data(data)
    assert storage.read(first) == b"1"
    assert storage.put_data(data) == first
    data.write_text("2")
    assert storage.put_data(data) != first


def test_a_lock_is_one_person_s_and_leaves_nothing(storage: Storage) -> None:
    place = storage.uri("lock")
    with (
        storage.lock(place, "taken"),
        pytest.raises(DeploymentConflictError, match="taken"),
        storage.lock(place, "taken"),
    ):
        pass
    assert storage.read(place) is None
    with storage.lock(place, "taken"):
        assert storage.read(place) == b""


def test_a_lock_that_somebody_has_taken_over_is_no_longer_held(storage: Storage) -> None:
    from azure.storage.blob import BlobLeaseClient

    place = storage.uri("lock")
    with storage.lock(place, "taken") as hold:
        hold()
        blob = storage._blob(place)
        BlobLeaseClient(blob).break_lease(lease_break_period=0)
        blob.acquire_lease(lease_duration=60)
        with pytest.raises(DeploymentConflictError, match="taken"):
            hold()


def test_an_address_has_a_short_and_a_long_form() -> None:
    long = "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/store/paths/a/b.csv"
    assert split(long) == split("azureml://datastores/store/paths/a/b.csv") == ("store", "a/b.csv")
    with pytest.raises(DataError, match="no address in a datastore"):
        split("https://somewhere/else")


def test_what_another_workspace_has_under_the_same_name_is_not_ours(storage: Storage, tmp_path: Path) -> None:
    storage.write(storage.uri("model", "a.txt"), b"a")
    long = storage.long(storage.uri("model"))
    storage.fetch_folder(long, tmp_path / "model")
    assert (tmp_path / "model" / "a.txt").read_text() == "a"
    other = long.replace("/workspaces/", "/workspaces/not-")
    with pytest.raises(DataError, match="another workspace"):
        storage.fetch_folder(other, tmp_path / "other")


def test_accounts_have_a_name_except_in_an_emulator() -> None:
    assert account_url("mine", "core.windows.net", "https") == "https://mine.blob.core.windows.net"
    assert (
        account_url("mine", "core.usgovcloudapi.net", "https") == "https://mine.blob.core.usgovcloudapi.net"
    )
    assert account_url("mine", "127.0.0.1:10000", "https") == "https://127.0.0.1:10000/mine"


def test_a_datastore_that_is_no_blobs_is_refused() -> None:
    session = SimpleNamespace(call=lambda *given, **more: {"properties": {"datastoreType": "AzureFile"}})
    with pytest.raises(ConfigError, match="AzureFile"):
        Storage(session, "files", "x").account()  # type: ignore[arg-type]
