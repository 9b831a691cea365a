"""Which container trains and serves: one of Google's prebuilt training containers that has our Python.

The generated requirements are pinned to what is installed beside Dagster, so a container fits where its Python is ours.
That rules out the prebuilt prediction containers, whose Python is older than any we run on: models are served in the
container they were trained in, which installs any requirements.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

# Artifact Registry of Google's, `{place}` being us, europe or asia. Names as public repositories use them, read 2026-11-21
# (3.10 is also on Google's list of supported frameworks; 3.11 was seen in use only); none was pulled from here.
_REGISTRY = "{place}-docker.pkg.dev/vertex-ai/training/pytorch-{processor}.{version}:latest"
_VERSIONS: dict[tuple[int, int], str] = {(3, 11): "2-4.py311", (3, 10): "2-4.py310"}


@dataclass(frozen=True, slots=True)
class Image:
    """A container and why it is this one.

    Attributes:
        uri: As Artifact Registry has it.
        python: Its Python; None where it is the user's own.
        reason: One sentence.
    """

    uri: str
    python: tuple[int, int] | None
    reason: str

    @property
    def fits(self) -> bool:
        """Whether the requirements were pinned on the same Python."""
        return self.python is None or self.python == sys.version_info[:2]


def choose(region: str, accelerator: str | None, own: str | None) -> Image:
    """The container for a region and a machine with or without GPU; the user's own where one is named."""
    if own is not None:
        return Image(own, None, "named in the options")
    ours = sys.version_info[:2]
    python = ours if ours in _VERSIONS else max(_VERSIONS)
    continent = region.split("-")[0]
    place = {"europe": "europe", "me": "europe", "africa": "europe", "asia": "asia", "australia": "asia"}
    uri = _REGISTRY.format(
        place=place.get(continent, "us"), processor="gpu" if accelerator else "cpu", version=_VERSIONS[python]
    )
    reason = "has our Python" if python == ours else "the newest Python that Google has a container for"
    return Image(uri, python, reason)
