"""LocalProvider passes the contract."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.registry import get_provider
from tests.contract.scripts import write_scripts
from tests.contract.suite import ProviderContract


class TestLocal(ProviderContract):
    @pytest.fixture
    def provider(self, tmp_path: Path):
        return get_provider("local", state_dir=tmp_path / "state", stop_grace=1.0)

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        return Experiment("sample", write_scripts(tmp_path / "scripts"))

    def test_what_python_compiles_of_packages_is_kept_and_of_the_scripts_is_not(
        self, provider, experiment, tmp_path: Path
    ) -> None:
        packages = tmp_path / "packages"
        packages.mkdir()
        (packages / "package.py").write_text("")
        (experiment.scripts / "support.py").write_text("import package\n")
        script = experiment.scripts / "train.py"
        script.write_text(f"import support\n{script.read_text()}")
        job = provider.train(dataclasses.replace(experiment, environment={"PYTHONPATH": str(packages)}))
        assert list(packages.rglob("*.pyc"))
        assert not list(Path(str(job.model_uri)).parent.rglob("*.pyc"))

    def test_an_endpoint_has_the_port_that_was_asked_for(self, provider, experiment) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        job = provider.train(experiment)
        asked = dataclasses.replace(experiment, options={"endpoint": {"port": port}})
        try:
            assert provider.deploy(asked, str(job.model_uri), "ported").url == f"http://127.0.0.1:{port}"
            # A new version, and one that asks for none, keep it.
            assert provider.deploy(experiment, str(job.model_uri), "ported").url.endswith(f":{port}")
            assert any("ready" in line for line in provider.endpoint_logs("ported"))
        finally:
            provider.delete_endpoint("ported")
