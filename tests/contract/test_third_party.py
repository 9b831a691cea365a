"""A provider from another package: found by its entry point, and held to the same contract."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from notebooked_dagster.errors import (
    ConfigError,
    MissingPackageError,
    ProviderError,
)
from notebooked_dagster.providers.base import Capability, Experiment
from notebooked_dagster.providers.registry import available, get_provider
from tests.contract.scripts import write_scripts
from tests.contract.suite import ProviderContract


def install(site: Path, package: str, **entry_points: str) -> None:
    """Lay out an installed distribution as pip would."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (info / "entry_points.txt").write_text("[notebooked_dagster.providers]\n" + "\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


class TestInline(ProviderContract):
    @pytest.fixture
    def provider(self, site: Path, tmp_path: Path):
        install(site, "inline-provider", inline="tests.contract.third_party:InlineProvider")
        return get_provider("inline", folder=str(tmp_path / "jobs"))

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        return Experiment("sample", write_scripts(tmp_path / "scripts"))


def test_an_installed_provider_is_listed_with_its_package(site):
    install(site, "inline-provider", inline="tests.contract.third_party:InlineProvider")
    info = available()["inline"]
    assert info.usable
    assert info.origin == "inline-provider"
    assert info.capabilities == frozenset({Capability.TRAIN})


def test_a_broken_provider_is_reported_and_hurts_no_other(site):
    (site / "raises_at_import.py").write_text("1 / 0\n")
    (site / "needs_a_sdk.py").write_text("import sdk_that_is_not_installed\n")
    install(
        site,
        "broken",
        raises="raises_at_import:Provider",
        gone="module_that_is_gone:Provider",
        sdk="needs_a_sdk:Provider",
        wrong="json:JSONDecoder",
        abstract="notebooked_dagster.providers.base:BaseProvider",
    )
    found = available()
    assert found["local"].usable
    assert {name for name, info in found.items() if info.origin == "broken"} == {
        "raises", "gone", "sdk", "wrong", "abstract",
    }  # fmt: skip
    assert "ZeroDivisionError" in found["raises"].problem
    assert "module_that_is_gone" in found["gone"].problem
    assert "pip install" in found["sdk"].hint
    with pytest.raises(MissingPackageError, match="sdk_that_is_not_installed"):
        get_provider("sdk")
    for name in ("raises", "wrong", "abstract"):
        with pytest.raises(ProviderError):
            get_provider(name)
    assert get_provider("local").name == "local"


def test_a_missing_extra_is_named(site):
    (site / "cloudy.py").write_text("import boto3_that_is_not_installed\n")
    install(site, "cloudy", rainy="cloudy:Provider")
    with pytest.raises(MissingPackageError, match="boto3_that_is_not_installed"):
        get_provider("rainy")


def test_a_built_in_name_cannot_be_taken(site):
    install(site, "thief", local="tests.contract.third_party:InlineProvider")
    assert get_provider("local").capabilities > {Capability.DEPLOY}


def test_vertex_goes_by_two_names(tmp_path):
    assert (
        get_provider("gcp", state_dir=tmp_path).name
        == get_provider("vertex", state_dir=tmp_path).name
        == "vertex"
    )


def test_an_unknown_provider_and_an_unknown_setting_are_configuration_errors():
    with pytest.raises(ConfigError, match=r"There is: .*local"):
        get_provider("nowhere")
    with pytest.raises(ConfigError, match="state_dir"):
        get_provider("local", colour="blue")


def test_nothing_is_imported_until_asked():
    import subprocess

    code = (
        "import sys, notebooked_dagster.providers.registry as r; "
        "print([m for m in ('mlflow', 'fastapi', 'dagster', 'notebooked_dagster.providers.local') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
