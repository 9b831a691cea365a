"""Versions of registered models in Unity Catalog: what Model Serving serves.

The public REST API has no call that creates a version. MLflow's client for Unity Catalog makes one in three steps: create it,
put its files below ``/Models``, finalize it. They are made here with the SDK's credentials, and without MLflow's retries,
which would hide for minutes that Databricks is away.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import DeploymentError
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.cloud.package import requirements
from notebooked_dagster.providers.cloud.serving import serving_code
from notebooked_dagster.providers.run_tracking import model_facts

from . import pyfunc
from .session import DatabricksSession, code_of, once, translated
from .storage import Storage

_API = "/api/2.0/mlflow/unity-catalog"
_LOADER = "notebooked_pyfunc"
_ANYTHING = [{"type": "any"}]


class Registry:
    """The models of one schema.

    Args:
        session: Credentials.
        storage: Our folder of a volume in the schema.
    """

    def __init__(self, session: DatabricksSession, storage: Storage) -> None:
        self._session = session
        self._storage = storage

    def full_name(self, endpoint: str) -> str:
        """The registered model of an endpoint."""
        # Not every tool takes a hyphen in a name of Unity Catalog; no two endpoints share a model.
        own = endpoint.replace("_", "__").replace("-", "_")
        return f"{self._storage.catalog}.{self._storage.schema}.notebooked_{own}"

    def register(self, experiment: Experiment, folder: Path, endpoint: str) -> str:
        """Make a model the next version of an endpoint's; returns its number, which nobody else gets."""
        with (
            tempfile.TemporaryDirectory() as scratch,
            translated(f"A version of endpoint {endpoint!r} cannot be registered"),
        ):
            packed = Path(scratch) / "model"
            write_model(experiment, folder, packed)
            self._model(endpoint)
            version = self._created(endpoint, experiment)
            try:
                for file in sorted(path for path in packed.rglob("*") if path.is_file()):
                    self._storage.upload(
                        file, self._place(endpoint, version, file.relative_to(packed).as_posix())
                    )
                self._finalized(endpoint, version)
            except BaseException:
                self.remove(endpoint, version)
                raise
        return version

    def _place(self, endpoint: str, version: str, name: str) -> str:
        return f"/Models/{self.full_name(endpoint).replace('.', '/')}/{version}/{name}"

    def _model(self, endpoint: str) -> None:
        """The registered model; made where there is none."""
        models = self._session.client.registered_models
        try:
            self._session.again(lambda: models.get(self.full_name(endpoint)))
            return
        except Exception as error:
            if code_of(error) != 404:
                raise
        catalog, schema, name = self.full_name(endpoint).split(".")
        try:
            self._session.again(
                lambda: models.create(
                    catalog_name=catalog,
                    schema_name=schema,
                    name=name,
                    comment=f"What the endpoint {endpoint} serves, by notebooked-dagster.",
                )
            )
        except Exception as error:
            # Somebody made it at the same moment, or the reply to an earlier try was lost.
            if code_of(error) != 409:
                raise

    def _created(self, endpoint: str, experiment: Experiment) -> str:
        # Each try is told from the others by its source, so that a lost reply leaves no version behind.
        source = f"notebooked:{experiment.name}/{uuid.uuid4().hex}"
        query = {"name": self.full_name(endpoint), "source": source}
        for attempt in (1, 2, 3):
            try:
                made = once(
                    lambda: self._session.client.api_client.do(
                        "POST", f"{_API}/model-versions/create", body=query
                    )
                )
                return str(made["model_version"]["version"])
            except Exception as error:
                if attempt == 3 or not self._session.is_worth_another(error):
                    raise
            for found in self._versions(endpoint):
                if found.source == source:
                    return str(found.version)
            self._session.back_off(attempt)
        raise AssertionError  # the third attempt raises

    def _finalized(self, endpoint: str, version: str) -> None:
        query = {"name": self.full_name(endpoint), "version": version}
        self._session.again(
            lambda: self._session.client.api_client.do("POST", f"{_API}/model-versions/finalize", body=query)
        )

    def _versions(self, endpoint: str) -> list[Any]:
        try:
            return self._session.again(
                lambda: list(self._session.client.model_versions.list(self.full_name(endpoint)))
            )
        except Exception as error:
            if code_of(error) == 404:
                return []
            raise

    def versions(self, endpoint: str) -> list[str]:
        """The versions there are of an endpoint's model."""
        with translated(f"The versions of endpoint {endpoint!r} cannot be listed"):
            return [str(found.version) for found in self._versions(endpoint)]

    def remove(self, endpoint: str, version: str) -> None:
        """Remove a version, where it is there."""
        with translated(f"Version {version} of endpoint {endpoint!r} cannot be removed"):
            try:
                self._session.again(
                    lambda: self._session.client.model_versions.delete(self.full_name(endpoint), int(version))
                )
            except Exception as error:
                if code_of(error) != 404:
                    raise

    def remove_all(self, endpoint: str) -> None:
        """Remove an endpoint's model with its versions."""
        with translated(f"The model of endpoint {endpoint!r} cannot be removed"):
            try:
                self._session.again(
                    lambda: self._session.client.registered_models.delete(self.full_name(endpoint))
                )
            except Exception as error:
                if code_of(error) != 404:
                    raise


def write_model(experiment: Experiment, folder: Path, target: Path) -> None:
    """Write a model with its code as a model of MLflow's. Raises DeploymentError where its signature cannot be read."""
    code = serving_code(experiment, folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            _put(target / "data" / path.relative_to(folder), path.read_bytes())
    for path in sorted(code.iterdir()):
        if path.suffix == ".py" or path.name == "source_map.json":
            _put(target / "code" / path.name, path.read_bytes())
    _put(target / "code" / f"{_LOADER}.py", Path(pyfunc.__file__).read_bytes())
    needed = requirements("inference", code, experiment.scripts).decode()
    lines = [f"mlflow=={installed('mlflow-skinny')}", *(line for line in needed.splitlines() if line.strip())]
    python = ".".join(map(str, sys.version_info[:3]))
    _put(target / "requirements.txt", "\n".join(lines).encode())
    # JSON is YAML too, and needs no library to be written.
    dependencies = [f"python={python}", "pip", {"pip": lines}]
    _put(
        target / "conda.yaml",
        json.dumps({"channels": ["conda-forge"], "dependencies": dependencies}).encode(),
    )
    _put(
        target / "python_env.yaml",
        json.dumps({"python": python, "dependencies": ["-r requirements.txt"]}).encode(),
    )
    document = {
        "flavors": {
            "python_function": {
                "loader_module": _LOADER,
                "code": "code",
                "data": "data",
                "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
                "python_version": python,
            }
        },
        "mlflow_version": installed("mlflow-skinny"),
        "model_uuid": uuid.uuid4().hex,
        "utc_time_created": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}",
        "signature": _signature(model_facts(folder)),
    }
    _put(target / "MLmodel", json.dumps(document, indent=1).encode())


def _signature(facts: Mapping[str, Any]) -> dict[str, str]:
    # Unity Catalog takes no model without one, nor one that says only half.
    given = facts.get("signature") or {}
    if not isinstance(given, Mapping):
        raise DeploymentError("The model's signature in model.json is damaged.", hint="Train again.")
    found = {}
    for side in ("inputs", "outputs"):
        said = given.get(side)
        if isinstance(said, Mapping) and "tensor" in said:
            # An array, as MLflow says it.
            said = [{"type": "tensor", "tensor-spec": said["tensor"]}]
        found[side] = said if isinstance(said, str) and said else json.dumps(said or _ANYTHING)
    return found


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
