"""Registered models: versions, the aliases ``champion`` and ``challenger``, and the folder behind a version."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import filelock

from notebooked_dagster.errors import TrackingError

from .access import translated

CHAMPION = "champion"
CHALLENGER = "challenger"
_PREVIOUS = "notebooked/previous_champion"
_MODELS_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/]+)|/(?P<version>[^/]+))")
_RUNS_URI = re.compile(r"runs:/(?P<run>[^/]+)(?:/(?P<path>.+))?")


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """One version of a registered model. ``source`` is MLflow's word for where the model lies."""

    name: str
    version: str
    run_id: str | None
    source: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


class ModelRegistry:
    """The registered models of one server.

    Args:
        client: An ``MlflowClient``.
        uri: The server's address, for messages and the artifact store.
    """

    def __init__(self, client: Any, uri: str) -> None:
        self._client = client
        self._uri = uri

    def register(
        self, name: str, run_id: str, artifact: str, *, tags: Mapping[str, str], alias: str | None
    ) -> RegisteredVersion:
        """A new version for a run's model; the version there is where the run was registered before."""
        with translated(f"The model {name!r} cannot be registered"):
            self._ensure_model(name)
            for known in self._client.search_model_versions(f"name='{name}'"):
                if known.run_id == run_id:
                    return self.get(name, str(known.version))
            source, model_id = self._source(run_id, artifact)
            made = self._client.create_model_version(
                name, source=source, run_id=run_id, tags=dict(tags), model_id=model_id, await_creation_for=30
            )
            if alias is not None:
                self._client.set_registered_model_alias(name, alias, made.version)
        return self.get(name, str(made.version))

    def _ensure_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise

    def _source(self, run_id: str, artifact: str) -> tuple[str, str | None]:
        """The model in its MLflow flavour where training logged one, so that MLflow's own tools load the version."""
        run = self._client.get_run(run_id)
        outputs = getattr(run, "outputs", None)
        for output in reversed(list(getattr(outputs, "model_outputs", None) or [])):
            return str(self._client.get_logged_model(output.model_id).artifact_location), str(output.model_id)
        return f"{run.info.artifact_uri.rstrip('/')}/{artifact}", None

    def get(self, name: str, version: str) -> RegisteredVersion:
        """One version, by number or by alias.

        Raises:
            TrackingError: There is none.
        """
        with translated(f"There is no version {version!r} of model {name!r}"):
            if version.isdigit():
                found = self._client.get_model_version(name, version)
            else:
                found = self._client.get_model_version_by_alias(name, version)
                # By alias the server leaves the aliases out.
                found = self._client.get_model_version(name, found.version)
            return RegisteredVersion(
                name,
                str(found.version),
                found.run_id or None,
                found.source,
                tuple(found.aliases),
                dict(found.tags),
            )

    def find(self, name: str, alias: str) -> RegisteredVersion | None:
        """The version an alias points at; None where there is no such alias or model."""
        try:
            return self.get(name, alias)
        except TrackingError as error:
            if error.details.get("code") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version."""
        with translated(f"Alias {alias!r} of model {name!r} cannot be set"):
            self._client.set_registered_model_alias(name, alias, version)

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias; nothing happens where it is not there."""
        with translated(f"Alias {alias!r} of model {name!r} cannot be removed"):
            self._client.delete_registered_model_alias(name, alias)

    def promote(self, name: str, version: str | None = None) -> RegisteredVersion:
        """Make a version the champion; the one before it is remembered for ``demote``."""
        chosen = self.get(name, version or CHALLENGER)
        champion = self.find(name, CHAMPION)
        if champion is not None and champion.version == chosen.version:
            return chosen
        with translated(f"Version {chosen.version} of model {name!r} cannot be promoted"):
            if champion is not None:
                self._client.set_model_version_tag(name, chosen.version, _PREVIOUS, champion.version)
            self._client.set_registered_model_alias(name, CHAMPION, chosen.version)
            if CHALLENGER in chosen.aliases:
                self._client.delete_registered_model_alias(name, CHALLENGER)
        return self.get(name, chosen.version)

    def demote(self, name: str) -> RegisteredVersion:
        """Make the previous champion the champion again.

        Raises:
            TrackingError: There was none before this one.
        """
        champion = self.get(name, CHAMPION)
        previous = champion.tags.get(_PREVIOUS)
        if previous is None:
            raise TrackingError(
                f"Model {name!r} had no champion before version {champion.version}.",
                hint="Promote the version you want.",
            )
        self.set_alias(name, CHAMPION, previous)
        return self.get(name, previous)

    def resolve(self, uri: str, artifact: str, cache: Path) -> Path:
        """The folder behind ``models:/`` and ``runs:/``.

        Raises:
            TrackingError: There is no such model, or its run kept no model folder.
        """
        run_id, path = self._run_of(uri, artifact)
        with translated(f"The model {uri} cannot be fetched"):
            root = self._client.get_run(run_id).info.artifact_uri
            parts = urlsplit(root)
            if parts.scheme in ("", "file"):
                folder = Path(unquote(parts.path)) / path
            else:
                folder = self._fetched(run_id, path, cache)
        if not folder.is_dir() or not any(folder.iterdir()):
            raise TrackingError(
                f"Run {run_id} kept no model folder {path!r}.",
                hint="Only models trained through this project have one; train again, or deploy a folder.",
            )
        return folder

    def _run_of(self, uri: str, artifact: str) -> tuple[str, str]:
        if match := _MODELS_URI.fullmatch(uri):
            version = self.get(match["name"], match["alias"] or match["version"])
            if not version.run_id:
                raise TrackingError(f"Version {version.version} of model {version.name!r} belongs to no run.")
            return version.run_id, artifact
        if match := _RUNS_URI.fullmatch(uri):
            return match["run"], match["path"] or artifact
        raise TrackingError(
            f"{uri!r} names no model.",
            hint="Use models:/name@champion, models:/name/3, runs:/id or a folder.",
        )

    def _fetched(self, run_id: str, path: str, cache: Path) -> Path:
        target = cache / run_id / path
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f"{run_id}.lock", timeout=600):
            if target.is_dir():
                return target
            temporary = Path(tempfile.mkdtemp(prefix=".fetch-", dir=cache))
            try:
                fetched = Path(self._client.download_artifacts(run_id, path, str(temporary)))
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(fetched, target)  # noqa: PTH105
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return target
