"""LocalProvider passes the contract."""

from __future__ import annotations

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
