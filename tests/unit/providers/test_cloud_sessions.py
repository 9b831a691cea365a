"""A cloud's session says what is wrong with the installation, the configuration or the network, and does not wait for it."""

from __future__ import annotations

import sys
import time

import pytest

from notebooked_dagster.errors import ConfigError, MissingPackageError
from notebooked_dagster.providers.databricks.session import DatabricksSession
from notebooked_dagster.providers.sagemaker.session import AwsSession
from notebooked_dagster.providers.vertex import session as vertex


def test_a_part_of_googles_sdk_is_not_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # As where MLflow has brought google.auth along.
    monkeypatch.setitem(sys.modules, "google.api_core.exceptions", None)
    with (
        pytest.raises(MissingPackageError, match=r"notebooked-dagster\[gcp\]"),
        vertex.translated("Anything"),
    ):
        pass


def test_a_region_that_aws_does_not_have() -> None:
    with pytest.raises(ConfigError, match="'Frankfurt am Main' is no region of AWS") as caught:
        _ = AwsSession("Frankfurt am Main", None, None).partition
    assert caught.value.key == "aws.region"


def test_a_cluster_s_bucket_has_a_key_for_its_region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(ConfigError, match=r"Set kubernetes\.storage\.region") as caught:
        _ = AwsSession(None, None, None, needed_by="kubernetes", extra="kubernetes").region
    assert caught.value.key == "kubernetes.storage.region"


def test_a_workspace_out_of_reach_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", "any")
    began = time.monotonic()
    assert DatabricksSession("http://127.0.0.1:1", None).host == "http://127.0.0.1:1"
    # The SDK's own patience is 300 seconds.
    assert time.monotonic() - began < 100
