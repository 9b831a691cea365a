"""The section ``databricks``: what is refused, and that no key can be written there."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.config.loading import load_project
from notebooked_dagster.errors import ConfigError


def section(tmp_path: Path, text: str) -> object:
    path = tmp_path / "config.yaml"
    path.write_text(f"databricks: {{{text}}}\n")
    return load_project(path, {}).databricks


def test_a_host_is_written_as_people_write_it(tmp_path: Path) -> None:
    found = section(tmp_path, "host: dbc-1.cloud.databricks.com/, catalog: '', training: {spot: true}")
    assert found.host == "https://dbc-1.cloud.databricks.com"  # type: ignore[attr-defined]
    assert found.catalog is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["token", "client_secret", "password"])
def test_there_is_no_key_for_a_secret(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        section(tmp_path, f"{key}: dapi123")
    assert "Credentials are found" in str(caught.value)
    assert "dapi123" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host: 'https://example.com/sql/1'", "is no workspace"),
        ("catalog: 'a.b'", "no name in Unity Catalog"),
        ("training: {serverless: true, spot: true}", "has no cluster"),
        ("endpoint: {canary: [50, 10]}", "have to grow"),
        ("endpoint: {workload_size: Tiny}", "Small"),
        ("training: {tags: {'a#b': c}}", "The tag 'a#b' is none"),
    ],
)
def test_what_cannot_be_is_said_with_its_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        section(tmp_path, text)
