"""What deployments have in common in every cloud: roles, shares, what is packed, and the check of the input.

A version of an endpoint is an archive and a description (``deployment.json``) in our folder of the cloud's storage. Which
version has which role is kept where the cloud changes it together with the traffic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import (
    ConfigError,
    DataError,
    DeploymentConflictError,
    DeploymentError,
    InvalidInputError,
    NotebookedError,
    ProviderError,
)
from notebooked_dagster.providers.base import Deployment, EndpointStatus, Experiment
from notebooked_dagster.providers.inference_code import newer_code
from notebooked_dagster.providers.run_tracking import model_facts
from notebooked_dagster.serving.worker.request import RequestError, decode
from notebooked_dagster.serving.worker.signature import Signature

from .package import requirements, write_archive
from .waiting import OutOfReachError

ROLES = ("champion", "challenger", "previous")


class InputCheck:
    """Holds requests against the signature of the model that serves, as the local server does.

    Args:
        document: The description of an endpoint's champion; it may raise EndpointNotFoundError.
    """

    def __init__(self, document: Callable[[str], Mapping[str, Any]]) -> None:
        self._document = document
        self._signatures: dict[str, Signature] = {}

    def check(self, name: str, body: bytes) -> None:
        """Raise InvalidInputError where a body is none for an endpoint's model."""
        try:
            try:
                self._signature(name).check(decode(body, "application/json"))
            except RequestError:
                # Perhaps another model serves by now.
                self.forget(name)
                self._signature(name).check(decode(body, "application/json"))
        except RequestError as error:
            raise InvalidInputError(
                error.message, details={"status": error.status, "endpoint": name, **error.fields}
            ) from error

    def forget(self, name: str) -> None:
        """Another model serves."""
        self._signatures.pop(name, None)

    def _signature(self, name: str) -> Signature:
        if name not in self._signatures:
            document = self._document(name)
            self._signatures[name] = Signature.parse((document.get("signature") or {}).get("inputs"))
        return self._signatures[name]


def check_weight(weight: int) -> None:
    """Raise ConfigError where a share is none."""
    if not 1 <= weight <= 100:
        raise ConfigError(f"weight has to be between 1 and 100, not {weight}.", key="weight")


def check_shares(name: str, weights: Mapping[str, int], served: Mapping[str, int]) -> None:
    """Raise DeploymentError where these are no shares of the versions that are served."""
    strange = sorted(set(weights) - set(served))
    if strange:
        raise DeploymentError(
            f"Endpoint {name!r} does not serve version {strange[0]!r}.",
            hint=f"It serves: {', '.join(sorted(served))}. A previous version comes back with a rollback.",
        )
    if sum(weights.values()) != 100 or any(not 0 <= share <= 100 for share in weights.values()):
        raise DeploymentError(
            f"The shares have to add up to 100, not {sum(weights.values())}.", hint="Name every version."
        )


def roles_after(roles: Mapping[str, str], version: str, weight: int) -> dict[str, str]:
    """Which version has which role once a new one is deployed with a share."""
    if "champion" not in roles:
        return {"champion": version}
    if weight < 100:
        kept = {"previous": roles["previous"]} if "previous" in roles else {}
        return {"champion": roles["champion"], "challenger": version, **kept}
    return {"champion": version, "previous": roles["champion"]}


def roles_back(name: str, roles: Mapping[str, str]) -> dict[str, str]:
    """Which version has which role after a rollback. Raises DeploymentError where there is nothing to go back to."""
    if "previous" not in roles:
        raise DeploymentError(
            f"Endpoint {name!r} has no previous version to go back to.",
            hint="Deploy the model you want: `notebooked deploy EXPERIMENT --model-uri …`.",
        )
    return {"champion": roles["previous"], "previous": roles["champion"]}


def model_folder(
    uri: str,
    scheme: str,
    models: Path,
    fetch: Callable[[str, Path], None],
    tracking_uri: str | None,
) -> Path:
    """A model's folder on this machine, whatever names it.

    Args:
        uri: A folder, an archive in the cloud, ``models:/…`` or ``runs:/…``.
        scheme: Of the cloud's addresses: ``gs://``.
        models: Where fetched models are kept; its parent's parent is the state folder.
        fetch: Fetches and unpacks an archive of the cloud into a folder of ``models``.
        tracking_uri: The MLflow server.

    Raises:
        DeploymentError: There is no model.
    """
    try:
        if uri.startswith(scheme):
            target = (
                models / "".join(c if c.isalnum() or c in ".-" else "_" for c in uri[len(scheme) :])[-180:]
            )
            if not target.is_dir():
                fetch(uri, target)
            return target
        if uri.startswith(("models:/", "runs:/")):
            from notebooked_dagster.tracking import Tracking, local_uri

            address = tracking_uri or local_uri(models.parent.parent)
            return Tracking(address, "").resolve(uri, cache=models)
    except (DataError, ProviderError) as error:
        if isinstance(error, OutOfReachError):
            raise
        raise DeploymentError(
            f"The model {uri} cannot be fetched: {error.message}", hint=error.hint
        ) from error
    folder = Path(uri).expanduser()
    if not folder.is_dir() or not any(folder.iterdir()):
        raise DeploymentError(
            f"There is no model in {uri}.",
            hint=f"Give a folder, a {scheme} archive, models:/name@alias or runs:/id.",
        )
    return folder


def serving_code(experiment: Experiment, folder: Path) -> Path:
    """The folder with the code that serves a model: newer code that fits it, else its own, else the experiment's."""
    own = folder if (folder / "inference.py").is_file() else experiment.scripts
    return newer_code(experiment.scripts, folder) or own


def pack(experiment: Experiment, folder: Path, target: Path) -> bytes:
    """Write the archive that serves a model: the model, and its code in ``code/``. Returns the requirements."""
    code = serving_code(experiment, folder)
    needed = requirements("inference", code, experiment.scripts)
    scripts = {
        f"code/{file.name}": file.read_bytes()
        for file in sorted(code.iterdir())
        if file.suffix == ".py" or file.name == "source_map.json"
    }
    write_archive(target, {"": folder}, {**scripts, "code/requirements.txt": needed})
    return needed


def description(
    experiment: Experiment, folder: Path, model_uri: str, version: str, labels: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """``deployment.json`` of a version; ``more`` is the cloud's own."""
    facts = model_facts(folder)
    return {
        "version": version,
        "model_uri": model_uri,
        "created_at": datetime.now(UTC).isoformat(),
        "labels": {
            "experiment": experiment.name,
            "metrics": json.dumps(facts.get("metrics", {})),
            **labels,
        },
        "signature": facts.get("signature"),
        "input_example": facts.get("input_example"),
        **more,
    }


def deployments(
    roles: Mapping[str, str],
    weights: Mapping[str, int],
    documents: Mapping[str, Mapping[str, Any]],
    statuses: Mapping[str, EndpointStatus],
) -> tuple[Deployment, ...]:
    """The versions of an endpoint; one that has no status is not there and kept for a rollback."""
    found = []
    for role, version in roles.items():
        document = documents.get(version, {})
        created = document.get("created_at")
        found.append(
            Deployment(
                version=version,
                model_uri=str(document.get("model_uri", "")),
                weight=weights.get(version, 0),
                role=role,
                status=statuses.get(version, EndpointStatus.STOPPED),
                created_at=datetime.fromisoformat(created) if created else None,
                labels=document.get("labels", {}),
            )
        )
    return tuple(found)


def parsed(name: str, text: bytes) -> Any:
    """What an endpoint answered. Raises ProviderError where that is no JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ProviderError(f"Endpoint {name!r} did not answer with JSON: {text[:200]!r}.") from error


def model_error(name: str, status: int, said: str, hint: str) -> NotebookedError:
    """What the server of a model answered that is no prediction, as ours; ``hint`` says where its log is."""
    details = {"status": status, "endpoint": name}
    if 400 <= status < 500:
        return InvalidInputError(f"Endpoint {name!r} refused the input: {said[:2000]}", details=details)
    return ProviderError(f"Endpoint {name!r} failed to answer: {said[:2000]}", hint=hint, details=details)


def unready(name: str, reason: str, *, serves: bool, hint: str, traceback: str) -> DeploymentError:
    """A version that never got ready; ``serves`` where another one goes on serving."""
    said = " It serves what it served before." if serves else ""
    text = f"Endpoint {name!r} did not become healthy: {reason.rstrip('.')}.{said}"
    return DeploymentError(f"{text}\n{traceback}".rstrip(), hint=hint, details={"reason": reason})


def conflict(name: str, reason: str) -> DeploymentConflictError:
    """Somebody else is at it."""
    return DeploymentConflictError(
        f"Endpoint {name!r} is being changed by somebody else: {reason}.".replace("..", "."),
        hint="Wait until it is done, then deploy again.",
    )
