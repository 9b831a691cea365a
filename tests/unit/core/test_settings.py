from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.core.root import find_project_root
from notebooked_dagster.core.settings import Settings
from notebooked_dagster.errors import ConfigError


def test_the_root_is_found_from_a_folder_below_it(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "dagster.yaml").touch()
    deep = tmp_path / "notebooks" / "experiments"
    deep.mkdir(parents=True)
    assert find_project_root(deep) == tmp_path.resolve()


def test_a_folder_that_is_no_project_is_its_own_root(tmp_path: Path) -> None:
    assert find_project_root(tmp_path) == tmp_path.resolve()


def test_the_environment_moves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(tmp_path))
    monkeypatch.setenv("NOTEBOOKED_STATE_DIR", "elsewhere")
    settings = Settings()
    assert settings.state == tmp_path.resolve() / "elsewhere"
    assert settings.scripts == tmp_path.resolve() / "scripts"


def test_a_variable_that_is_set_to_nothing_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(tmp_path))
    for name in ("STATE_DIR", "SCRIPTS_DIR", "TRACKING_URI"):
        monkeypatch.setenv(f"NOTEBOOKED_{name}", "")
    settings = Settings()
    assert settings.state == tmp_path.resolve() / ".notebooked"
    assert settings.tracking_uri is None


def test_a_root_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(tmp_path / "no"))
    with pytest.raises(ConfigError, match=r"no: NOTEBOOKED_PROJECT_ROOT is not a folder"):
        _ = Settings().root
