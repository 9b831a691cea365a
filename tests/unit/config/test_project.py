"""config.yaml: what is wrong is said with file, line, key and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.config import ProjectConfig, load_project, project_or_default
from notebooked_dagster.errors import ConfigError


def load(tmp_path: Path, text: str, **environment: str) -> ProjectConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_project(path, environment)


def refused(tmp_path: Path, text: str, **environment: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environment)
    assert caught.value.path == tmp_path / "config.yaml"
    return caught.value


FULL = """\
mlflow:
  tracking_uri: http://127.0.0.1:5000
  password: ${MLFLOW_PW}
aws:
  region: eu-central-1
  role_arn: ${ROLE}
azure:
gcp:
  project: p
defaults:
  provider: sagemaker
experiments:
  - name: wine
    notebook: notebooks/wine.ipynb
    data_path: s3://bucket/wine.csv
    description: Which grower?
    hyperparameters: {C: 0.5, kernel: rbf, layers: [8, 4], nothing: null}
    instance_type: ml.m5.large
    instance_count: 2
  - name: digits-two
    provider: local
    notebook: notebooks/digits.ipynb
"""


def test_every_section_is_read(tmp_path: Path) -> None:
    project = load(tmp_path, FULL, ROLE="arn:aws:iam::1:role/r", MLFLOW_PW="k")
    wine, digits = project.experiments
    assert (wine.provider, wine.instance_count, wine.instance_type) == ("sagemaker", 2, "ml.m5.large")
    assert wine.hyperparameters == {"C": 0.5, "kernel": "rbf", "layers": [8, 4], "nothing": None}
    assert (digits.provider, digits.key, digits.endpoint_name) == ("local", "digits_two", "digits-two")
    assert project.mlflow.tracking_uri == "http://127.0.0.1:5000"


def test_a_project_with_a_name_may_delete_its_orphans(tmp_path: Path) -> None:
    found = load(tmp_path, "name: ours\nautomation: {delete_orphans: true}\n")
    assert found.automation.delete_orphans


def test_a_secret_is_hidden_and_comes_from_the_environment(tmp_path: Path) -> None:
    project = load(tmp_path, FULL, ROLE="arn:aws:iam::1:role/r", MLFLOW_PW="s3cr3t")
    assert project.mlflow.password is not None
    assert project.mlflow.password.get_secret_value() == "s3cr3t"
    assert "s3cr3t" not in repr(project) + str(project) + project.model_dump_json()


@pytest.mark.parametrize("value", ["abc123", "123456", "'zqzq'"])
def test_a_literal_secret_is_refused_and_not_repeated(tmp_path: Path, value: str) -> None:
    error = refused(tmp_path, f"mlflow:\n  username: x\n  password: {value}\n")
    assert (error.line, error.key) == (3, "mlflow.password")
    assert value.strip("'") not in error.message + str(error.details)
    assert "${PASSWORD}" in (error.hint or "")


@pytest.mark.parametrize("value", ["abc123", "${AWS_KEY}"])
@pytest.mark.parametrize("key", ["aws.secret_access_key", "azure.client_secret", "gcp.credentials_file"])
def test_credentials_of_a_cloud_have_no_place_here(tmp_path: Path, key: str, value: str) -> None:
    section, _, name = key.partition(".")
    error = refused(
        tmp_path, f"{section}:\n  region: x\n  {name}: {value}\n".replace("  region: x\n", ""), AWS_KEY="k"
    )
    assert (error.line, error.key) == (2, key)
    assert "SDK" in (error.hint or "")
    assert "abc123" not in str(error)


def test_wrong_options_of_a_provider_are_told_with_their_line(tmp_path: Path) -> None:
    text = "experiments:\n- name: a\n  notebook: a.ipynb\n  provider: sagemaker\n  options:\n    training:\n      spott: true\n"
    error = refused(tmp_path, text)
    assert (error.line, error.key) == (7, "experiments[0].options.training.spott")
    assert "spot" in (error.hint or "")


def test_the_section_azure_is_checked(tmp_path: Path) -> None:
    text = "azure:\n  subscription_id: ${SUBSCRIPTION:-}\n  workspace: w\n  training: {spot: true}\n"
    section = load(tmp_path, text).azure
    assert (section.subscription_id, section.workspace, section.training.spot) == (None, "w", True)
    error = refused(tmp_path, "azure:\n  subscription_id: mine\n")
    assert (error.line, error.key) == (2, "azure.subscription_id")
    error = refused(tmp_path, "azure:\n  identity: jobs\n")
    assert "userAssignedIdentities" in error.message
    text = "experiments:\n- name: a\n  notebook: a.ipynb\n  provider: azure\n  options:\n    training:\n      spott: true\n"
    error = refused(tmp_path, text)
    assert (error.line, error.key) == (7, "experiments[0].options.training.spott")


def test_a_wrong_secret_is_not_quoted(tmp_path: Path) -> None:
    error = refused(tmp_path, "mlflow: {password: [1, 2]}\nlocal: {stop_grace: '${GRACE}'}", GRACE="hunter2")
    assert "hunter2" in str(error)  # not secret by its name
    error = refused(tmp_path, "aws: {regionn: 1, session_token: '${TOKEN}'}", TOKEN="hunter2")
    assert "hunter2" not in str(error) + str(error.details) + repr(error.__cause__)


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("", None, None, "empty"),
        ("# nothing\n", None, None, "empty"),
        ("- a\n- b\n", 1, None, "a mapping of keys, not a list"),
        ("aws:\n  region: a\n  region: b\n", 3, "aws.region", "line 2 and on line 3"),
        ("aws:\n\tregion: a\n", 2, None, "tab"),
        ("aws: {region: [}\n", 1, None, "not valid YAML"),
        ("experimets: []\n", 1, "experimets", "Did you mean `experiments`?"),
        ("experiments: 5\n", 1, "experiments", "a list, not a number"),
        (
            "experiments:\n  - name: a\n    notebok: a.ipynb\n",
            3,
            "experiments[0].notebok",
            "Did you mean `notebook`?",
        ),
        ("experiments:\n  - notebook: a.ipynb\n", 2, "experiments[0].name", "missing"),
        ("experiments:\n  - name: no\n    notebook: a.ipynb\n", 2, "experiments[0].name", "quote it"),
        ("experiments:\n  - name: 3\n    notebook: a.ipynb\n", 2, "experiments[0].name", "'experiment_3'"),
        (
            "experiments:\n  - name: ../x\n    notebook: a.ipynb\n",
            2,
            "experiments[0].name",
            "cannot be a name",
        ),
        ("experiments:\n  - name: a\n    notebook: a.py\n", 3, "experiments[0].notebook", ".ipynb"),
        (
            "experiments:\n  - name: a\n    notebook: a.ipynb\n    instance_count: two\n",
            4,
            "experiments[0].instance_count",
            "a whole number, not 'two'",
        ),
        (
            "experiments:\n  - name: a\n    notebook: a.ipynb\n    endpoint: {wieght: 5}\n",
            4,
            "experiments[0].endpoint.wieght",
            "Did you mean `weight`?",
        ),
        (
            "experiments:\n  - name: a\n    notebook: a.ipynb\n    schedule: tomorrow\n",
            4,
            "experiments[0].schedule.cron",
            "no cron expression",
        ),
        (
            "experiments:\n  - name: a\n    notebook: a.ipynb\n    schedule: {cron: '@daily', timezone: Mars}\n",
            4,
            "experiments[0].schedule.timezone",
            "no time zone",
        ),
        (
            "experiments:\n  - name: a\n    notebook: a.ipynb\n    data_path: x/{partition}.csv\n",
            2,
            "experiments[0]",
            "`partitions` is not set",
        ),
        # Two projects in the folder /project would delete each other's endpoints.
        ("automation:\n  delete_orphans: true\n", 1, "automation", "needs the project's `name`"),
        ("aws:\n  region: ${NOWHERE}\n", 2, "aws.region", "NOWHERE is not set"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    tmp_path: Path, text: str, line: int | None, key: str | None, says: str
) -> None:
    error = refused(tmp_path, text)
    assert (error.line, error.key) == (line, key)
    assert says in str(error)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    error = refused(
        tmp_path, "experiments:\n  - name: a\n    notebook: a.py\n    instance_count: 0\n    x: 1\n"
    )
    assert [problem["line"] for problem in error.details["problems"]] == [5, 3, 4]


@pytest.mark.parametrize("second", ["name: a_b", "name: a-b", "name: c\n    endpoint: a-b"])
def test_two_experiments_cannot_be_one(tmp_path: Path, second: str) -> None:
    error = refused(
        tmp_path, f"experiments:\n  - name: a-b\n    notebook: a.ipynb\n  - {second}\n    notebook: b.ipynb\n"
    )
    assert error.line == 4


def test_two_without_an_endpoint_do_not_collide(tmp_path: Path) -> None:
    text = "experiments:\n  - {name: a, notebook: a.ipynb, endpoint: e}\n  - {name: b, notebook: b.ipynb, endpoint: false}"
    assert len(load(tmp_path, text).experiments) == 2


def test_the_environment_wins(tmp_path: Path) -> None:
    project = load(
        tmp_path,
        "mlflow: {tracking_uri: http://a}\nexperiments: [{name: my-exp, notebook: a.ipynb, hyperparameters: {C: 1.0}}]",
        NOTEBOOKED_MLFLOW__TRACKING_URI="http://b",
        NOTEBOOKED_EXPERIMENTS__MY_EXP__HYPERPARAMETERS__C="2.5",
        NOTEBOOKED_EXPERIMENTS__MY_EXP__PROVIDER="azure",
        NOTEBOOKED_AUTOMATION__INTERVAL="5",
    )
    assert project.mlflow.tracking_uri == "http://b"
    assert project.experiments[0].hyperparameters == {"C": 2.5}
    assert project.experiments[0].provider == "azure"
    assert project.automation.interval == 5


def test_an_override_of_an_unknown_key_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, "aws: {}", NOTEBOOKED_AWS__REGIN="x")
    assert error.key == "aws.regin"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${N}", 8),
        ("{{ env.N }}", 8),
        ("{{ env('N') }}", 8),
        ("${MISSING:-3}", 3),
        ("{{ env('MISSING', '3') }}", 3),
        ("x-${N}", "x-8"),
        ("plain", "plain"),
    ],
)
def test_references_to_the_environment(tmp_path: Path, written: str, value: object) -> None:
    text = f'experiments: [{{name: a, notebook: a.ipynb, hyperparameters: {{h: "{written}"}}}}]'
    assert load(tmp_path, text, N="8").experiments[0].hyperparameters == {"h": value}


def test_without_a_file_the_environment_still_counts(tmp_path: Path) -> None:
    project = project_or_default(tmp_path, {"NOTEBOOKED_AWS__REGION": "eu-west-1"})
    assert project.aws.region == "eu-west-1"
    assert project.experiments == ()


def test_a_missing_and_a_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_project(tmp_path / "nowhere.yaml", {})
    (tmp_path / "config.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_project(tmp_path / "config.yaml", {})


def test_the_example_is_valid(tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "config.yaml.example"
    (experiment,) = load(tmp_path, example.read_text(encoding="utf-8")).experiments
    assert experiment.owners == ("team:data-science",)


def test_a_value_that_contains_itself_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, "mlflow: &a\n  tracking_uri: *a\n")
    assert (error.line, error.key) == (2, "mlflow.tracking_uri")
    assert "contains itself" in error.message


def test_an_anchor_may_be_used_in_two_places(tmp_path: Path) -> None:
    text = "experiments:\n- {name: a, notebook: a.ipynb, environment: &e {X: '1'}}\n- {name: b, notebook: b.ipynb, environment: *e}\n"
    assert [item.environment for item in load(tmp_path, text).experiments] == [{"X": "1"}] * 2


@pytest.mark.parametrize("text", ["defaults:\n  foo: 1\n", "defaults:\n  timeout: -1\n"])
def test_a_wrong_default_is_told_where_it_stands(tmp_path: Path, text: str) -> None:
    error = refused(tmp_path, text)
    assert error.line == 2
    assert (error.key or "").startswith("defaults.")


def test_a_config_yaml_that_is_no_file_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        project_or_default(tmp_path, {})
