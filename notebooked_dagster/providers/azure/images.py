"""Which environment trains and which one serves: a base image of Azure's, with our Python and the notebook's packages.

The generated requirements are pinned to what is installed beside Dagster, so a container fits where its Python is ours.
The Python of Azure's curated environments is mostly older; but Azure Machine Learning builds an image from a base image
and a conda file by itself, once for each content. An environment is therefore named by its content: the same
requirements are the same environment, whichever experiment, job or endpoint asks first, and are built once.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .session import AzureSession

_GPU = re.compile(r"(?i)standard_n[cdv]")
# Tags as the repository `Azure/azureml-assets` and users of it quote them, read 2026-11-21.
AS_OF = "2026-07-15"
_CPU_BASE = "mcr.microsoft.com/azureml/openmpi5.0-ubuntu24.04:20260715.v1"
_GPU_BASE = "mcr.microsoft.com/azureml/openmpi5.0-cuda12.4-ubuntu22.04:20260715.v1"
# What starts the scoring script; Azure asks for it in every environment that serves.
SERVER = "azureml-inference-server-http>=1.4,<2"


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment of the workspace and why it is this one.

    Attributes:
        name: Its name; empty where the user named one that is there.
        version: Its version: a hash of ``properties``.
        properties: What it is made of, as Resource Manager takes it.
        given: The user's own, as Resource Manager takes it.
        base: The image it begins with.
        reason: One sentence.
        installs: Whether the packages are in it; else they are installed when the job starts.
    """

    name: str
    version: str
    properties: Mapping[str, object] = field(default_factory=dict)
    given: str = ""
    base: str = ""
    reason: str = ""
    installs: bool = True

    def id(self, workspace: str) -> str:
        """Its id in a workspace."""
        return self.given or f"{workspace}/environments/{self.name}/versions/{self.version}"


def choose(
    kind: Literal["training", "inference"],
    workspace: str,
    instance_type: str | None,
    requirements: str,
    image: str | None,
    environment: str | None,
) -> Environment:
    """The environment for a kind of work.

    Args:
        kind: To train or to serve.
        workspace: The workspace's id.
        instance_type: Decides between CPU and GPU; None for a cluster's.
        requirements: The text of the requirements file.
        image: The user's own base image.
        environment: The user's own environment.
    """
    if environment is not None:
        return Environment(
            "",
            "",
            given=_given(environment, workspace),
            base=environment,
            reason="named in the options",
            installs=kind == "inference",
        )
    if image is not None and kind == "training":
        return _content("training", {"image": image, "osType": "Linux"}, "named in the options", False)
    base = image or (_GPU_BASE if instance_type is not None and _GPU.match(instance_type) else _CPU_BASE)
    packages = [line.strip() for line in requirements.splitlines() if line.strip() and line.strip()[0] != "#"]
    if kind == "inference":
        packages.append(SERVER)
    conda = {
        "name": "notebooked",
        "channels": ["conda-forge"],
        "dependencies": [
            f"python={sys.version_info[0]}.{sys.version_info[1]}",
            "pip",
            *([{"pip": packages}] if packages else []),
        ],
    }
    # JSON is YAML that no quoting can break.
    properties: dict[str, object] = {
        "image": base,
        "condaFile": json.dumps(conda, indent=1),
        "osType": "Linux",
    }
    return _content(kind, properties, "with our Python and the requirements", True)


def ensure(session: AzureSession, environment: Environment) -> None:
    """Make an environment that is not there yet; its name is its content, so that one that is there is the same."""
    if environment.given:
        return
    path = f"/environments/{environment.name}/versions/{environment.version}"
    what = f"The environment {environment.name!r} cannot be made"
    if session.call("GET", path, what=what, missing=True) is None:
        session.call("PUT", path, {"properties": dict(environment.properties)}, what=what)


def _content(kind: str, properties: dict[str, object], reason: str, installs: bool) -> Environment:
    digest = hashlib.sha256(json.dumps(properties, sort_keys=True).encode()).hexdigest()[:20]
    return Environment(
        f"nbd-{kind}",
        digest,
        properties,
        base=str(properties["image"]),
        reason=reason,
        installs=installs,
    )


def _given(environment: str, workspace: str) -> str:
    if environment.startswith("azureml:") and not environment.startswith("azureml://"):
        _, name, version = environment.split(":")
        return f"{workspace}/environments/{name}/versions/{version}"
    return environment
