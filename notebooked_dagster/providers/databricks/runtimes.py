"""Which of Databricks' runtimes trains: the one that has our Python.

The generated requirements are pinned to what is installed beside Dagster, so a runtime fits where its Python is ours.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

# The release notes of the runtimes with long-term support, and of the serverless environments, as of 2026-11.
_CLUSTERS: dict[tuple[int, int], str] = {
    (3, 10): "14.3.x-scala2.12",
    (3, 11): "15.4.x-scala2.12",
    (3, 12): "16.4.x-scala2.12",
}
_SERVERLESS: dict[tuple[int, int], str] = {(3, 10): "1", (3, 11): "2", (3, 12): "3"}


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime and why it is this one.

    Attributes:
        version: As the API has it: a cluster's ``spark_version``, or an ``environment_version``.
        python: Its Python; None where it is the user's own choice.
        reason: One sentence.
    """

    version: str
    python: tuple[int, int] | None
    reason: str

    @property
    def fits(self) -> bool:
        """Whether the requirements were pinned on the same Python."""
        return self.python is None or self.python == sys.version_info[:2]


def choose(own: str | None, *, serverless: bool) -> Runtime:
    """The runtime of a cluster or of serverless compute; the user's own where one is named."""
    if own is not None:
        return Runtime(own, None, "named in the options")
    known, ours = (_SERVERLESS if serverless else _CLUSTERS), sys.version_info[:2]
    python = ours if ours in known else max(known)
    reason = (
        "has our Python" if python == ours else "the newest Python that Databricks has a runtime for here"
    )
    return Runtime(known[python], python, reason)
