"""The contract in real accounts: ``pytest -m live``. docs/clouds.md says which variables name them, and what it costs.

Without ``-m live`` these tests are deselected; a cloud whose variables are missing is skipped.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment
from tests.contract import suite
from tests.contract.live import ACCOUNTS, Fenced, live_provider
from tests.contract.scripts import write_scripts
from tests.contract.suite import ProviderContract

# A machine takes minutes to come.
_SECONDS = 3600.0


class LiveContract(ProviderContract):
    name: str

    @pytest.fixture
    def provider(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fenced]:
        missing = ACCOUNTS[self.name].missing()
        if missing:
            pytest.skip(f"no account of {self.name}: {', '.join(missing)} not set")
        monkeypatch.setattr(suite, "SOON", _SECONDS)
        yield from live_provider(self.name, tmp_path / "state")

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        # A cloud never forgets a job's name, and the contract's tokens are always the same.
        return Experiment(f"live-{secrets.token_hex(4)}", write_scripts(tmp_path / "scripts"))


@pytest.mark.live
@pytest.mark.timeout(2 * _SECONDS)
class TestLiveSageMaker(LiveContract):
    name = "sagemaker"


@pytest.mark.live
@pytest.mark.timeout(2 * _SECONDS)
class TestLiveAzure(LiveContract):
    name = "azure"


@pytest.mark.live
@pytest.mark.timeout(2 * _SECONDS)
class TestLiveVertex(LiveContract):
    name = "vertex"
