"""Where Dagster keeps what it knows is one environment variable."""

from __future__ import annotations

import traceback
from pathlib import Path

import dagster as dg
import pytest

from notebooked_dagster.errors import ConfigError, ProviderError
from notebooked_dagster.resources.storage import VARIABLE


def home(tmp_path: Path) -> str:
    (tmp_path / "dagster.yaml").write_text(
        "storage:\n  custom:\n    module: notebooked_dagster.resources.storage\n    class: ProjectStorage\n"
        f"    config: {{base_dir: {tmp_path / 'kept'}}}\n"
    )
    return str(tmp_path)


def test_without_it_sqlite_files_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with dg.DagsterInstance.from_config(home(tmp_path)) as instance:
        assert instance.get_runs_count() == 0
        # A process that Dagster starts gets the same.
        with dg.DagsterInstance.from_ref(instance.get_ref()) as again:
            assert type(again.run_storage) is type(instance.run_storage)
    assert (tmp_path / "kept" / "history" / "runs.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:s3cr3t@host/x",
        "nonsense",
        "sqlite:///x",
        # An @ or a colon in the password that is not written as %40 or %3A.
        "postgresql://u:p@ss:s3cr3t@host:5432/x",
        "postgresql://u:x@host:s3cr3t/x",
    ],
)
def test_an_address_of_something_else_is_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv(VARIABLE, url)
    with pytest.raises(ConfigError, match=VARIABLE) as caught, dg.DagsterInstance.from_config(home(tmp_path)):
        pass
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


def test_a_database_that_does_not_answer_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "postgresql://u:s3cr3t@127.0.0.1:1/dagster")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with (
        pytest.raises(ProviderError, match=r"dagster at 127\.0\.0\.1:1") as caught,
        dg.DagsterInstance.from_config(home(tmp_path)),
    ):
        pass
    printed = capfd.readouterr()
    assert "s3cr3t" not in str(caught.value) + printed.out + printed.err
