"""A secret that was loaded is in nothing that is shown or kept."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebooked_dagster.config.values import interpolate
from notebooked_dagster.core import secrets
from notebooked_dagster.core.redaction import MASK, REDACTOR, Redactor, is_secret_name
from notebooked_dagster.errors import ConfigError, CredentialsError, MissingPackageError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    secrets.fetch.cache_clear()
    yield
    logger = logging.getLogger("notebooked")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@given(secret=st.text(min_size=6, max_size=40), before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_secret_is_masked_wherever_it_stands(secret: str, before: str, after: str) -> None:
    redactor = Redactor()
    redactor.add(secret)
    if "://" not in secret:
        masked = redactor.redact(f"{before}{secret}{after}")
        assert secret not in masked or secret in MASK
        assert (
            json.dumps(secret)[1:-1] not in redactor.redact(json.dumps({"value": secret})) or secret in MASK
        )


def test_of_an_address_only_the_password_is_a_secret() -> None:
    redactor = Redactor()
    redactor.add("postgresql://dagster:pw-12345@db:5432/x")
    assert redactor.redact("db:5432 pw-12345 dagster") == f"db:5432 {MASK} dagster"


def test_of_several_lines_each_is_masked_as_a_log_tells_them() -> None:
    redactor = Redactor()
    redactor.add("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASC\n-----END PRIVATE KEY-----")
    assert redactor.redact("key: MIIEvQIBADANBgkqhkiG9w0B") == f"key: {MASK}"
    assert redactor.redact("-----BEGIN PRIVATE KEY-----") == "-----BEGIN PRIVATE KEY-----"


def test_a_password_is_masked_as_urls_and_json_write_it() -> None:
    redactor = Redactor()
    redactor.add("postgresql://u:p%C3%A4%22ss%40word@db/x")
    plain = 'pä"ss@word'
    for said in (plain, quote(plain), json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1]):
        assert redactor.redact(said) == MASK


def test_short_values_are_left_alone() -> None:
    redactor = Redactor()
    redactor.add("true")
    assert redactor.redact("it is true") == "it is true"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("API_TOKEN", True), ("AWS_SECRET_ACCESS_KEY", True), ("DB_PASSWORD", True), ("NOTEBOOKED_DATABASE_URL", True),
        ("AZURE_STORAGE_KEY", True), ("STORAGE_CONNECTION_STRING", True), ("SLACK_WEBHOOK_URL", True), ("SSH_PASSPHRASE", True),
        ("AWS_ACCESS_KEY_ID", False), ("MAX_TOKENS", False), ("TOKENIZERS_PARALLELISM", False), ("TOKEN_FILE", False),
        ("PATH", False),
    ],
)  # fmt: skip
def test_a_variables_name_says_whether_it_is_secret(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


@given(
    text=st.binary(max_size=200),
    places=st.lists(st.integers(min_value=0, max_value=200), max_size=4),
)
def test_a_file_keeps_its_length(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, places: list[int]
) -> None:
    secret = b"s3cr3t-value"
    for place in places:
        text = text[:place] + secret + text[place:]
    path = tmp_path_factory.mktemp("log") / "log.txt"
    path.write_bytes(text)
    redactor = Redactor()
    redactor.add(secret.decode())
    redactor.redact_file(path)
    left = path.read_bytes()
    assert len(left) == len(text)
    assert secret not in left


def test_a_secret_across_two_blocks_of_a_long_file_is_masked(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    block = 4 * 1024 * 1024
    path.write_bytes(b"x" * (block - 5) + b"s3cr3t-value" + b"y" * block + b"s3cr3t-value")
    redactor = Redactor()
    redactor.add("s3cr3t-value")
    assert redactor.redact_file(path) == 2
    assert b"s3cr3t" not in path.read_bytes()


# Where they come from


def test_a_file_holds_a_secret_and_one_key_of_it_can_be_picked(tmp_path: Path) -> None:
    path = tmp_path / "db.json"
    path.write_text('{"user": "u", "password": "from-a-file-1"}\n')
    found = interpolate({"mlflow": {"password": f"${{file:{path}#password}}"}}, {})
    assert found == {"mlflow": {"password": "from-a-file-1"}}
    assert REDACTOR.redact("it is from-a-file-1") == f"it is {MASK}"


def test_a_secret_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    path.write_text("00123456")
    assert interpolate({"x": f"${{file:{path}}}"}, {}) == {"x": "00123456"}


@pytest.mark.parametrize("key", ["#nothing", "#password#x"])
def test_what_a_secret_has_not_is_said_without_what_it_has(tmp_path: Path, key: str) -> None:
    path = tmp_path / "db.json"
    path.write_text('{"password": "from-a-file-2"}')
    with pytest.raises(ConfigError) as caught:
        interpolate({"a": {"b": f"${{file:{path}{key}}}"}}, {})
    assert caught.value.key == "a.b"
    assert "from-a-file-2" not in str(caught.value)


def test_a_missing_file_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        interpolate({"a": f"${{file:{tmp_path / 'none'}}}"}, {})
    assert caught.value.key == "a"


def test_secrets_manager_is_asked_once(tmp_path: Path) -> None:
    import boto3

    from tests.clouds.kit import aws_server

    with aws_server(tmp_path / "aws"):
        boto3.client("secretsmanager").create_secret(
            Name="prod/db", SecretString='{"password": "from-aws-1"}'
        )
        for _ in range(2):
            assert interpolate({"p": "${aws-secret:prod/db#password}"}, {}) == {"p": "from-aws-1"}
        assert secrets.fetch.cache_info().hits == 1
        with pytest.raises(ConfigError, match="no secret 'prod/none'"):
            interpolate({"p": "${aws-secret:prod/none}"}, {})


@pytest.mark.parametrize("region", ["eu-central-1", ""])
def test_without_credentials_or_a_region_it_says_so(monkeypatch: pytest.MonkeyPatch, region: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    with pytest.raises(CredentialsError, match="cannot be read"):
        secrets.fetch("aws-secret", "x")


def test_a_keyring_that_is_locked_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class KeyringError(Exception):
        pass

    def refuse(service: str, user: str) -> str:
        raise KeyringError("No recommended backend was available.")

    module = ModuleType("keyring")
    module.get_password, module.errors = refuse, SimpleNamespace(KeyringError=KeyringError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", module)
    with pytest.raises(CredentialsError, match="No recommended backend"):
        secrets.fetch("keyring", "service/user")


def test_a_file_that_is_no_text_is_refused_without_a_byte_of_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfesecret")
    with pytest.raises(ConfigError, match="UTF-8") as caught:
        secrets.fetch("file", str(tmp_path / "key"))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("scheme", ["gcp-secret", "azure-secret"])
def test_a_manager_whose_package_is_not_there_names_it(scheme: str) -> None:
    with pytest.raises(MissingPackageError, match="pip install"):
        secrets.fetch(scheme, "vault/name")


def test_dotenv_adds_what_the_environment_has_not(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\nB='two words'\n")
    environment = {"A": "kept"}
    assert secrets.load_dotenv(tmp_path, environment) == ["B"]
    assert environment == {"A": "kept", "B": "two words"}


def test_a_dotenv_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe=1\n")
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        secrets.load_dotenv(tmp_path, {})
    assert caught.value.path == tmp_path / ".env"
