"""Which container trains and which one serves, chosen from what the scripts import.

The generated requirements are pinned to what is installed beside Dagster, so a container fits where its Python is ours:
packages pinned on 3.12 may not exist for 3.10. That rules out SageMaker's scikit-learn and XGBoost containers, whose Python
is older than any we run on; AWS's Deep Learning Containers for PyTorch have a current one, install any requirements, and
serve with the same handlers. TensorFlow code trains in the TensorFlow container where its Python is ours.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from notebooked_dagster.errors import ConfigError

_GPU = re.compile(r"ml\.(g|p|gr)\d")
# Versions and their Python: SageMaker Python SDK 2.257.7, image_uri_config, read 2026-11-21.
_PYTORCH: dict[str, dict[tuple[int, int], str]] = {
    "training": {(3, 12): "2.8.0", (3, 11): "2.5.1"},
    "inference": {(3, 12): "2.6.0", (3, 11): "2.5.1"},
}
_TENSORFLOW = {(3, 12): "2.19.0"}


@dataclass(frozen=True, slots=True)
class Image:
    """A container and why it is this one.

    Attributes:
        uri: As ECR has it.
        framework: What is installed in it: ``pytorch``, ``tensorflow``, or ``custom``.
        python: Its Python; None where it is the user's own.
        reason: One sentence.
    """

    uri: str
    framework: str
    python: tuple[int, int] | None
    reason: str

    @property
    def fits(self) -> bool:
        """Whether the requirements were pinned on the same Python."""
        return self.python is None or self.python == sys.version_info[:2]


def choose(
    kind: Literal["training", "inference"],
    region: str,
    domain: str,
    instance_type: str | None,
    requirements: bytes,
    own: str | None,
) -> Image:
    """The container for a kind of work.

    Args:
        kind: To train or to serve.
        region: AWS region.
        domain: The partition's domain, ``amazonaws.com``.
        instance_type: Decides between CPU and GPU; None for serverless.
        requirements: The requirements file.
        own: What the user names instead.

    Raises:
        ConfigError: AWS publishes no such container in the region.
    """
    if own is not None:
        return Image(own, "custom", None, "named in the options")
    accounts = _accounts()
    if region not in accounts:
        raise ConfigError(
            f"AWS publishes no Deep Learning Containers in region {region!r} that we know of.",
            key="aws.region",
            hint=f"Name a container: options.{'training' if kind == 'training' else 'endpoint'}.image.",
        )
    framework, version, python = _pick(kind, requirements.decode("utf-8", "replace"))
    processor = "gpu" if instance_type is not None and _GPU.match(instance_type) else "cpu"
    tag = f"{version}-{processor}-py{python[0]}{python[1]}"
    reason = "the requirements name TensorFlow" if framework == "tensorflow" else "has our Python"
    uri = f"{accounts[region]}.dkr.ecr.{region}.{domain}/{framework}-{kind}:{tag}"
    return Image(uri, framework, python, reason)


def _pick(kind: str, requirements: str) -> tuple[str, str, tuple[int, int]]:
    ours = sys.version_info[:2]
    if kind == "training" and ours in _TENSORFLOW and re.search(r"(?mi)^(tensorflow|keras)\b", requirements):
        return "tensorflow", _TENSORFLOW[ours], ours
    versions = _PYTORCH[kind]
    python = ours if ours in versions else max(versions)
    return "pytorch", versions[python], python


@cache
def _accounts() -> dict[str, str]:
    found: dict[str, str] = json.loads(
        Path(__file__).with_name("registries.json").read_text(encoding="utf-8")
    )["accounts"]
    return found
