"""Every sample experiment through its whole asset graph: observed, generated, trained, compared, deployed, asked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.providers.local import LocalProvider
from notebooked_dagster.resources import Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
SAMPLES = sorted(path.parent.name for path in (ROOT / "assets").glob("*/defs.yaml"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This repository's declarations and notebooks, with the parity check in every job."""
    for name in ("assets", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "config.yaml").write_text("defaults: {tracking: false, parity: {with_job: true}}\n")
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(tmp_path))
    yield tmp_path
    provider = LocalProvider(tmp_path / ".notebooked")
    for endpoint in provider.list_endpoints():
        provider.delete_endpoint(endpoint.name)


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample(sample: str, project: Path) -> None:
    if sample == "digits_torch":
        pytest.importorskip("torch")
    defs = project_definitions(Workplace.here())
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def(f"{sample}_job").execute_in_process(instance=instance)
        assert result.success
        outcomes = {item.check_name: item for item in result.get_asset_check_evaluations()}
        failed = {name: item.description for name, item in outcomes.items() if not item.passed}
        assert failed == {}
        assert {
            "skew",
            "lint",
            "metric_gate",
            "parity",
            "smoke_prediction",
            "endpoint_health",
        } <= outcomes.keys()
        made = {
            event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key
        }
        assert made == {"training_code", "inference_code", "model", "endpoint"}
