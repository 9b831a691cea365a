"""Keys under version control are refused, in a real repository of git's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from notebooked_dagster.cli import doctor, main
from notebooked_dagster.cli.doctor import Check
from notebooked_dagster.core import tracked
from notebooked_dagster.core.settings import Settings
from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.resources import Workplace

KEY = "-----BEGIN " + "PRIVATE KEY-----\\nMIIE\\n-----END " + "PRIVATE KEY-----\\n"
FILES = {
    ".env": "LOG_LEVEL=debug\nexport WAREHOUSE_PASSWORD='hunter2hunter2'\nAPI_TOKEN=abc123abc123\n",
    "keys/robot.json": '{"type": "service_account", "private_key_id": "1", "private_key": "' + KEY + '"}',
    "adc.json": '{"type": "authorized_user", "client_id": "x", "refresh_token": "1//hunter2hunter2"}',
    "azure.json": '{"clientId": "a", "clientSecret": "hunter2hunter2", "tenantId": "b"}',
    ".azure/msal_token_cache.json": '{"AccessToken": {}, "RefreshToken": {"x": {"secret": "hunter2hunter2"}}}',
    ".aws/credentials": "[default]\naws_access_key_id = AKIA\naws_secret_access_key = hunter2hunter2\n",
    "rootkey/credentials.csv": "Access key ID,Secret access key\nAKIA,hunter2hunter2\n",
    "server.pem": KEY.replace("\\n", "\n"),
}
HARMLESS = {
    ".env.example": "WAREHOUSE_PASSWORD=hunter2hunter2\n",
    "deploy/.env.dev": "LOG_LEVEL=debug\nAPI_TOKEN=${API_TOKEN}\nDB_PASSWORD=<password>\nOTHER_TOKEN=\n",
    "schema.json": '{"properties": {"private_key": {"type": "string"}}}',
    "broken.json": '{"private_key": ',
    "list.json": '["private_key", {"refresh_token": 1}]',
    "ca.pem": "-----BEGIN CERTIFICATE-----\nMIIE\n",
    ".aws/config": "[profile x]\nregion = eu-central-1\n",
    "big.json": '{"private_key": "' + KEY + '", "x": "' + "x" * 70_000 + '"}',
    "weird \n näme.json": "{}",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a repository, all of it committed but for what the tests add."""
    if shutil.which("git") is None:
        pytest.fail("git is needed for these tests")
    # Neither the configuration of the person who runs the tests nor a repository above.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    made = tmp_path / "project"
    made.mkdir()
    git(made, "init", "-q")
    add(made, {"assets/none/defs.yaml": "", "notebooks/x.ipynb": "{}"})
    return made


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def add(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "add", "-A", "-f")
    git(root, "commit", "-q", "--allow-empty", "-m", "x")


def checks(root: Path) -> dict[str, Check]:
    """What the doctor says of keys, without its other checks, which take seconds."""
    found = list(doctor._tracked_keys(Settings(project_root=root)))
    assert "hunter2" not in str(found)
    return {check.name.removeprefix("keys in git: "): check for check in found}


def states(root: Path) -> set[str]:
    return {check.state for check in checks(root).values()}


def test_a_clean_project_is_fine(root: Path) -> None:
    add(root, HARMLESS)
    found = checks(root)
    assert found.pop("keys in git").state == "ok"
    # Nothing secret is in it yet.
    assert {name: check.state for name, check in found.items()} == {"deploy/.env.dev": "warning"}


def test_each_kind_of_key_is_an_error_that_says_what_to_do(root: Path) -> None:
    add(root, FILES)
    found = checks(root)
    assert {name for name, check in found.items() if check.state == "error"} == set(FILES) == set(found)
    assert "WAREHOUSE_PASSWORD, API_TOKEN" in found[".env"].message
    assert "service account" in found["keys/robot.json"].message
    assert "git rm --cached keys/robot.json" in found["keys/robot.json"].fix
    assert "revoke" in found["adc.json"].fix


def test_what_git_does_not_keep_is_nobodys_business(root: Path) -> None:
    (root / ".gitignore").write_text(".env\n*.json\n")
    git(root, "add", ".gitignore")
    for name in (".env", "adc.json"):
        (root / name).write_text(FILES[name])
    assert states(root) == {"ok"}
    tracked.refuse_tracked_environment(root)


@pytest.mark.parametrize("way", ["no repository", "no git", "another's repository in the environment"])
def test_git_is_not_needed(root: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    add(root, FILES)
    if way == "no repository":
        shutil.rmtree(root / ".git")
    elif way == "no git":
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setenv("GIT_DIR", str(root / "none"))
        assert "error" in states(root)
        return
    found = checks(root)
    assert states(root) == {"ok"}
    assert "not looked for" in found["keys in git"].message
    tracked.refuse_tracked_environment(root)


def test_a_code_location_with_secrets_in_a_tracked_env_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(root))
    (root / "assets/none/defs.yaml").unlink()
    (root / "assets/none").rmdir()
    add(root, {".env": "LOG_LEVEL=debug\n"})
    project_definitions(Workplace.here())
    add(root, {".env": FILES[".env"]})
    with pytest.raises(ConfigError, match="WAREHOUSE_PASSWORD, API_TOKEN") as caught:
        project_definitions(Workplace.here())
    assert "git rm --cached .env" in (caught.value.hint or "")
    assert "hunter2" not in str(caught.value)
    git(root, "rm", "-q", "--cached", ".env")
    project_definitions(Workplace.here())


def test_the_doctor_looks_for_keys_in_git_and_in_config_yaml(root: Path) -> None:
    add(
        root,
        {
            "adc.json": FILES["adc.json"],
            "config.yaml": "mlflow: {tracking_uri: 'http://x', password: hunter2hunter2}\n",
        },
    )
    done = CliRunner().invoke(main, ["--project", str(root), "doctor", "--json"])
    assert done.exit_code == 1
    assert "A secret stands here in plain text" in done.stdout
    assert "keys in git: adc.json" in done.stdout
    assert "hunter2" not in done.stdout


def test_a_project_in_a_part_of_a_repository_answers_for_that_part(root: Path) -> None:
    add(root, {"inner/.env": FILES[".env"], "adc.json": FILES["adc.json"]})
    assert tracked.tracked_files(root / "inner") == [".env"]
    with pytest.raises(ConfigError):
        tracked.refuse_tracked_environment(root / "inner")
