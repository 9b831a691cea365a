"""Object storage by configuration: an IO manager and resources for users' own assets, and what steps print in a bucket."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
import yaml
from google.cloud import storage

from notebooked_dagster.config import ProjectConfig
from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.errors import ConfigError, MissingPackageError
from notebooked_dagster.resources import Workplace
from notebooked_dagster.resources.objects import storage_resources
from tests.clouds.gcp_kit import BUCKET as GCS_BUCKET
from tests.clouds.gcp_kit import gcp_server
from tests.clouds.kit import BUCKET, aws_server
from tests.end_to_end.dagster_kit import SmallProject

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"
OWN = """
import dagster as dg
from dagster_aws.s3 import S3Resource


@dg.asset
def numbers() -> list[int]:
    return [1, 2, 3]


@dg.asset
def total(numbers: list[int], s3: S3Resource) -> int:
    buckets = [item["Name"] for item in s3.get_client().list_buckets()["Buckets"]]
    return sum(numbers) + len(buckets)
"""


def of(**storage: object) -> ProjectConfig:
    return ProjectConfig.model_validate({"storage": storage})


def documented(module: str) -> dict[str, object]:
    """The block of dagster.yaml that the page on deployment has for a module."""
    blocks = re.findall(r"```yaml\n(.*?)```", DEPLOYMENT.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (yaml.safe_load(block) for block in blocks if f"module: {module}" in block)
    return found


def test_an_asset_of_the_users_beside_an_experiment_is_stored_in_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = SmallProject(tmp_path / "project", "parity: false")
    (project.root / "config.yaml").write_text(f"storage: {{io_manager: s3, s3: {{bucket: {BUCKET}}}}}\n")
    (project.root / "assets" / "own").mkdir()
    (project.root / "assets" / "own" / "tables.py").write_text(OWN)
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(project.root))
    with aws_server(tmp_path / "aws") as server, dg.DagsterInstance.ephemeral() as instance:
        definitions = project_definitions(Workplace.here())
        done = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("numbers"), dg.AssetKey("total")]
        )
        assert done.success
        listed = server.s3().list_objects_v2(Bucket=BUCKET, Prefix="dagster/")["Contents"]
        assert sorted(item["Key"] for item in listed) == ["dagster/numbers", "dagster/total"]
        assert done.asset_value("total") == 7
        # Our own assets have nothing to store there.
        ours = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey(["iris", "training_code"])]
        )
        assert ours.success
        assert server.s3().list_objects_v2(Bucket=BUCKET, Prefix="dagster/")["KeyCount"] == 2


def test_google_s_storage_takes_its_bucket_from_the_provider_s_section(tmp_path: Path) -> None:
    config = {"gcp": {"project": "p", "bucket": GCS_BUCKET}, "storage": {"io_manager": "gcs"}}
    found = storage_resources(ProjectConfig.model_validate(config))
    assert sorted(found) == ["gcs", "io_manager"]
    assert found["io_manager"].gcs_bucket == GCS_BUCKET
    assert found["gcs"].project == "p"


def test_azure_s_storage_asks_for_no_key() -> None:
    found = storage_resources(of(io_manager="adls2", adls2={"account": "acct", "container": "files"}))
    assert sorted(found) == ["adls2", "io_manager"]
    assert found["adls2"].credential.credential_type == "default_azure_credential"
    assert found["io_manager"].adls2_file_system == "files"


def test_a_resource_without_an_io_manager() -> None:
    assert sorted(storage_resources(of(s3={"bucket": "b", "region": "eu-central-1"}))) == ["s3"]
    assert storage_resources(of()) == {}


@pytest.mark.parametrize("key", ["s3", "gcs"])
def test_a_bucket_has_to_be_named(key: str) -> None:
    with pytest.raises(ConfigError, match="No bucket is named"):
        storage_resources(of(io_manager=key))


def test_an_account_has_to_be_named() -> None:
    with pytest.raises(ValueError, match="needs `adls2"):
        of(io_manager="adls2")


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dagster_aws.s3", None)
    with pytest.raises(MissingPackageError) as caught:
        storage_resources(of(io_manager="s3", s3={"bucket": "b"}))
    assert "notebooked-dagster[aws]" in str(caught.value.hint)


@contextmanager
def instance_with(folder: Path, module: str) -> Iterator[dg.DagsterInstance]:
    """An instance whose dagster.yaml has the documented block."""
    folder.mkdir()
    (folder / "dagster.yaml").write_text(
        yaml.safe_dump({**documented(module), "telemetry": {"enabled": False}})
    )
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        yield instance


def logged(instance: dg.DagsterInstance) -> str:
    """What a step printed, read back from where it was sent."""

    @dg.op
    def speaks() -> None:
        print("said in a step")

    @dg.job
    def speaking() -> None:
        speaks()

    done = speaking.execute_in_process(instance=instance)
    (event,) = (
        event.logs_captured_data for event in done.all_events if event.event_type_value == "LOGS_CAPTURED"
    )
    manager = instance.compute_log_manager
    log_key = manager.build_log_key_for_run(done.run_id, event.file_key)
    # What lies on this machine is only a copy.
    shutil.rmtree(Path(manager.local_manager.get_captured_local_path(log_key, "out")).parent)  # type: ignore[attr-defined]
    data = manager.get_log_data(log_key)
    return (data.stdout or b"").decode()


def test_what_steps_print_lies_in_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with aws_server(tmp_path / "aws") as server:
        monkeypatch.setenv("NOTEBOOKED_LOG_BUCKET", BUCKET)
        with instance_with(tmp_path / "home", "dagster_aws.s3.compute_log_manager") as instance:
            assert "said in a step" in logged(instance)
        names = [item["Key"] for item in server.s3().list_objects_v2(Bucket=BUCKET)["Contents"]]
        assert any(name.startswith("compute-logs/storage/") and name.endswith(".out") for name in names)


def test_what_steps_print_lies_in_cloud_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gcp_server(tmp_path / "gcp") as server:
        monkeypatch.setenv("NOTEBOOKED_LOG_BUCKET", GCS_BUCKET)
        # With STORAGE_EMULATOR_HOST it would show no credentials, and the server asks for some.
        here = partial(storage.Client, project="p", client_options={"api_endpoint": server.url})
        monkeypatch.setattr(storage, "Client", here)
        with instance_with(tmp_path / "home", "dagster_gcp.gcs.compute_log_manager") as instance:
            assert "said in a step" in logged(instance)


def test_the_block_for_azure_is_one_that_dagster_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKED_LOG_BUCKET", "logs")
    monkeypatch.setenv("NOTEBOOKED_LOG_ACCOUNT", "acct")
    with instance_with(tmp_path / "home", "dagster_azure.blob.compute_log_manager") as instance:
        assert type(instance.compute_log_manager).__name__ == "AzureBlobComputeLogManager"
