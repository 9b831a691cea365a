"""CI files: GitHub Actions and GitLab CI that check notebooks, train, gate, compare and deploy.

Every action is pinned to a commit, every job has the least permissions, and a cloud is entered by OIDC federation: no file
and no secret store holds a key. Values that are not ours reach a shell through its environment, never through its text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import ConfigError

PLATFORMS = {"github": ".github/workflows/notebooks.yml", "gitlab": ".gitlab-ci.yml"}
PROVIDERS = ("local", "sagemaker", "azure", "gcp", "kubernetes", "databricks", "pi")
# Endpoints are on the runner, or where only it reaches them; there is no cloud to enter.
_OWN_RUNNER = ("local", "pi")
#: Action -> the commit of its release, and the release; read from the actions' repositories in November 2026.
ACTIONS = {
    "actions/checkout": ("3d3c42e5aac5ba805825da76410c181273ba90b1", "v7.0.1"),
    "actions/setup-python": ("5fda3b95a4ea91299a34e894583c3862153e4b97", "v7.0.0"),
    "actions/upload-artifact": ("bbbca2ddaa5d8feaa63e36b76fdaad77386f024f", "v7.0.0"),
    "aws-actions/configure-aws-credentials": ("e6de054238d6b7531b4efff3b6587d9aade6a06c", "v6.2.3"),
    "google-github-actions/auth": ("7c6bc770dae815cd3e89ee6cdf493a5fab2cc093", "v3.0.0"),
    "azure/login": ("f5d393ae46f8fde4be8b75f32e3fc50e654ad0ca", "v3.0.1"),
}
_BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class WorkflowOptions:
    """What a CI file is made for.

    Attributes:
        experiments: Names of the experiments as Dagster takes them; each has its job.
        notebooks: Paths of their notebooks, relative to the project.
        platform: ``github`` or ``gitlab``.
        provider: Where the experiments train and serve; decides how CI identifies itself there.
        branch: What is deployed.
        python: Version of Python.
        requirements: The file that installs the project.
    """

    experiments: Sequence[str]
    notebooks: Sequence[str]
    platform: str = "github"
    provider: str = "local"
    branch: str = "main"
    python: str = "3.11"
    requirements: str = "requirements.txt"

    @property
    def own_runner(self) -> bool:
        """Whether the deployment runs on a machine of the user's, and needs no identity in a cloud."""
        return self.provider in _OWN_RUNNER


def generate_workflow(options: WorkflowOptions) -> str:
    """The text of a CI file. The same options give the same bytes.

    Raises:
        ConfigError: There is no experiment, or an option would not survive in YAML and shells.
    """
    if not options.experiments:
        raise ConfigError(
            "There is no experiment to make a workflow for.",
            hint="`notebooked init` writes a declaration for each notebook that trains.",
        )
    for key, value, form in (
        ("branch", options.branch, _BRANCH),
        *(("experiment", name, _WORD) for name in options.experiments),
    ):
        if not form.fullmatch(value):
            raise ConfigError(f"{value!r} cannot be the name of a {key}.", key=key)
    if options.platform not in PLATFORMS:
        raise ConfigError(
            f"There is no platform {options.platform!r}.", hint=f"There are {', '.join(PLATFORMS)}."
        )
    if options.provider not in PROVIDERS:
        raise ConfigError(
            f"There is no recipe for {options.provider!r}.", hint=f"There are {', '.join(PROVIDERS)}."
        )
    text: str = (
        _environment()
        .get_template(f"{options.platform}.yml.j2")
        .render(
            o=options,
            uses={name: f"{name}@{commit} # {release}" for name, (commit, release) in ACTIONS.items()},
        )
    )
    return text


@cache
def _environment() -> Any:
    import json

    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        # GitHub's own `${{ … }}` stays as it is.
        variable_start_string="[[",
        variable_end_string="]]",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    # A JSON string is a YAML string.
    environment.filters["sh"] = shlex.quote
    environment.filters["q"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment
