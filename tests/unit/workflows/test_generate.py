"""The CI files: valid by their platforms' schemas, pinned, without privileges they do not need."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from notebooked_dagster.cli import workflow as command
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.workflows import ACTIONS, PLATFORMS, PROVIDERS, WorkflowOptions, generate_workflow
from notebooked_dagster.workflows.compare import FORMATS

BIN = Path(sys.executable).parent


def made(platform: str = "github", provider: str = "local", **more: Any) -> str:
    given = {
        "experiments": ["iris", "wine"],
        "notebooks": ["notebooks/iris.ipynb", "notebooks/my wine.ipynb"],
        **more,
    }
    return generate_workflow(WorkflowOptions(platform=platform, provider=provider, **given))


def run(*words: str) -> str:
    done = subprocess.run([str(BIN / words[0]), *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_follows_the_schema_of_its_platform(provider: str, tmp_path: Path) -> None:
    github, gitlab = tmp_path / "a.yml", tmp_path / "b.yml"
    github.write_text(made("github", provider))
    gitlab.write_text(made("gitlab", provider))
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(github))
    run(
        "check-jsonschema",
        "--builtin-schema",
        "vendor.gitlab-ci",
        "--data-transform",
        "gitlab-ci",
        str(gitlab),
    )


def test_an_auditor_of_workflows_finds_nothing(provider: str, tmp_path: Path) -> None:
    path = tmp_path / ".github" / "workflows" / "notebooks.yml"
    path.parent.mkdir(parents=True)
    path.write_text(made("github", provider))
    assert "No findings" in run("zizmor", "--offline", "--persona", "pedantic", "--no-progress", str(path))


def test_actions_are_pinned_to_commits(provider: str) -> None:
    used = re.findall(r"uses: (\S+?)@(\S+) # (\S+)", made("github", provider))
    assert used
    assert made("github", provider).count("uses:") == len(used)
    for name, commit, release in used:
        assert ACTIONS[name] == (commit, release)
        assert re.fullmatch(r"[0-9a-f]{40}", commit)


def test_nothing_is_permitted_that_is_not_asked_for(provider: str) -> None:
    workflow = yaml.safe_load(made("github", provider))
    assert workflow["permissions"] == {}
    writes = {
        name: {key for key, value in job["permissions"].items() if value == "write"}
        for name, job in workflow["jobs"].items()
    }
    federated = set() if provider in ("local", "pi") else {"id-token"}
    assert writes == {"check": set(), "train": federated, "compare": {"pull-requests"}, "deploy": federated}
    # No key is kept anywhere: a cloud is entered by federation alone.
    assert "secrets." not in made("github", provider)


def test_where_the_runner_is_ones_own_it_is_asked_for_and_keeps_what_is_deployed(provider: str) -> None:
    own = provider in ("local", "pi")
    github = yaml.safe_load(made("github", provider))["jobs"]["deploy"]
    assert (github["runs-on"], github["steps"][0]["with"].get("clean")) == (
        (["self-hosted"], False) if own else ("ubuntu-24.04", None)
    )
    gitlab = yaml.safe_load(made("gitlab", provider))["deploy"]
    assert (gitlab.get("tags"), gitlab.get("variables")) == (
        (["notebooked"], {"GIT_STRATEGY": "fetch", "GIT_CLEAN_FLAGS": "none"}) if own else (None, None)
    )


def test_what_installs_packages_of_a_pull_request_has_no_token_to_write_with() -> None:
    compare = yaml.safe_load(made("github"))["jobs"]["compare"]
    assert "env" not in compare
    with_token = [step["name"] for step in compare["steps"] if "GH_TOKEN" in step.get("env", {})]
    assert with_token == ["Collect", "Comment"]


def test_metrics_are_shown_of_a_model_that_did_not_pass_too(provider: str) -> None:
    jobs = yaml.safe_load(made("github", provider))["jobs"]
    for name in ("train", "deploy"):
        steps = jobs[name]["steps"]
        assert [step["if"] for step in steps if "if" in step] == [
            "${{ !cancelled() && steps.run.outcome != 'skipped' }}"
        ] * 2
        assert [step.get("id") for step in steps].count("run") == 1
    assert "needs.train.result != 'skipped'" in jobs["compare"]["if"]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_experiment_is_there(platform: str) -> None:
    workflow = yaml.safe_load(made(platform))
    if platform == "github":
        for job in ("train", "deploy"):
            assert workflow["jobs"][job]["strategy"]["matrix"]["experiment"] == ["iris", "wine"]
    else:
        assert workflow[".experiment"]["parallel"]["matrix"] == [{"EXPERIMENT": ["iris", "wine"]}]


@pytest.mark.parametrize(
    "name", ["a b.ipynb", "$(touch x).ipynb", "it's.ipynb", 'q"q.ipynb', "a: b #c.ipynb"]
)
def test_a_name_of_a_file_is_no_code(name: str) -> None:
    workflow = yaml.safe_load(made("github", notebooks=[name]))
    audit = next(step for step in workflow["jobs"]["check"]["steps"] if step.get("name") == "Audit")
    assert shlex.split(audit["run"].replace("\\\n", " "))[-1] == name
    lines = yaml.safe_load(made("gitlab", notebooks=[name]))["check"]["script"]
    assert shlex.split(next(line for line in lines if line.startswith("notebooked lint --")))[-1] == name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"experiments": []}, "no experiment"),
        ({"branch": "a b"}, "branch"),
        ({"branch": "$(x)"}, "branch"),
        ({"experiments": ["a; b"]}, "experiment"),
        ({"platform": "jenkins"}, "jenkins"),
        ({"provider": "moon"}, "moon"),
    ],
)
def test_what_would_not_survive_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        made(**options)


def test_the_command_offers_what_there_is() -> None:
    # It names them itself, so that its help imports nothing.
    assert (tuple(PLATFORMS), PROVIDERS, FORMATS) == (
        command._PLATFORMS,
        command._PROVIDERS,
        command._FORMATS,
    )
