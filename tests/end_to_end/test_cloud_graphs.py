"""One experiment in four clouds through the whole graph: a word of its ``defs.yaml`` says which.

All of them are made by one ``dagster`` process, in one project; what is asked afterwards is asked in this one. SageMaker's own
module has the commands as processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from notebooked_dagster.cli import main
from tests.clouds import databricks_kit, gcp_kit, kube_kit
from tests.clouds.azure import GROUP, WORKSPACE
from tests.clouds.azure_kit import azure_server
from tests.clouds.databricks_kit import databricks_server
from tests.clouds.gcp_kit import gcp_server
from tests.clouds.kube_kit import kube_server
from tests.end_to_end.dagster_kit import SmallProject

pytestmark = pytest.mark.slow
DECLARED = "notebook: notebooks/iris.ipynb\ntracking: false\nparity: false\nmetric_gate: {{metric: accuracy, min: 0.5}}\nprovider: {}"
COST = "cost (USD, estimated)"


@dataclass(frozen=True)
class Cloud:
    """A cloud that an experiment of its name is trained and served in.

    Attributes:
        server: Its server.
        section: Of ``config.yaml``, and its content for that server.
        uri: What a model's address begins with.
        left: What the server has of endpoints and their models.
        costs: Whether a training's cost is known.
    """

    server: Callable[[Path], AbstractContextManager[Any]]
    section: Callable[[Any], tuple[str, dict[str, Any]]]
    uri: str
    left: Callable[[Any], list[Any]]
    costs: bool = True


def _azure(server: Any) -> tuple[str, dict[str, Any]]:
    return "azure", {"resource_group": GROUP, "workspace": WORKSPACE, "endpoint_url": server.url, "poll": 0.1}


CLOUDS = {
    "azure": Cloud(
        azure_server,
        _azure,
        "azureml://datastores/workspaceblobstore/paths/notebooked/",
        lambda server: list(server.ml.endpoints),
    ),
    "vertex": Cloud(
        gcp_server,
        lambda server: ("gcp", gcp_kit.settings(server)),
        f"gs://{gcp_kit.BUCKET}/",
        lambda server: [*server.vertex.endpoints, *server.vertex.models],
    ),
    "kubernetes": Cloud(
        kube_server,
        lambda server: ("kubernetes", kube_kit.settings(server)),
        f"s3://{kube_kit.BUCKET}/",
        lambda server: [*server.cluster.things["services"], *server.cluster.things["deployments"]],
        costs=False,
    ),
    "databricks": Cloud(
        databricks_server,
        lambda server: ("databricks", databricks_kit.settings(prices={"i3.xlarge": 3600.0})),
        "dbfs:///Volumes/",
        lambda server: [*server.workspace.endpoints, *server.workspace.models],
    ),
}


@dataclass(frozen=True)
class Made:
    """What one run of Dagster's made of all of them."""

    servers: dict[str, Any]
    output: str
    instance: dg.DagsterInstance

    def metadata(self, name: str) -> dict[str, Any]:
        """The model's."""
        event = self.instance.get_latest_materialization_event(dg.AssetKey([name, "model"]))
        assert event is not None
        assert event.asset_materialization is not None
        return {key: item.value for key, item in event.asset_materialization.metadata.items()}

    def smoke(self, name: str) -> str:
        """How the endpoint's first prediction went."""
        key = dg.AssetCheckKey(dg.AssetKey([name, "endpoint"]), "smoke_prediction")
        (found,) = self.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        return str(found.status.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("clouds")
    with ExitStack() as stack:
        servers = {name: stack.enter_context(cloud.server(folder / name)) for name, cloud in CLOUDS.items()}
        project = SmallProject(folder / "project")
        (project.root / "assets" / "iris" / "defs.yaml").unlink()
        for name in CLOUDS:
            project.declare(name, DECLARED.format(name))
        sections = (cloud.section(servers[name]) for name, cloud in CLOUDS.items())
        config = {
            section: {key: value for key, value in given.items() if key not in ("log_grace", "claim")}
            for section, given in sections
        }
        (project.root / "config.yaml").write_text(json.dumps(config))
        done = project.run(
            "dagster", "asset", "materialize", "-m", "notebooked_dagster.definitions", "--select", "*"
        )
        assert done.returncode == 0, done.stderr[-3000:]
        stack.enter_context(inside(project))
        yield Made(servers, done.stdout + done.stderr, stack.enter_context(dg.DagsterInstance.get()))


@contextmanager
def inside(project: SmallProject) -> Iterator[None]:
    """This process in the project."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in project.environment.items():
            patch.setenv(name, value)
        patch.chdir(project.root)
        yield


def notebooked(*arguments: str) -> Result:
    """The command, in this process."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize("name", CLOUDS)
def test_one_word_changed_trains_and_serves_there(made: Made, name: str) -> None:
    cloud, server = CLOUDS[name], made.servers[name]
    metadata = made.metadata(name)
    assert metadata["model_uri"].startswith(cloud.uri)
    assert (metadata.get(COST, 0) > 0) is cloud.costs
    assert made.smoke(name) == "SUCCEEDED"

    (job,) = [item for item in json.loads(notebooked("--json", "jobs").stdout) if item["provider"] == name]
    told = notebooked("logs", job["id"]).stdout
    assert "metric accuracy" in told
    # The clouds' logs are in the run's.
    assert made.output.count("metric accuracy") == len(CLOUDS)
    assert "would get a new version" in notebooked("plan", name).stdout

    assert len(json.loads(notebooked("predict", name).stdout)["predictions"]) == 3
    assert "is kept" in notebooked("delete-endpoint", name, "--yes").stdout
    assert cloud.left(server) == []
