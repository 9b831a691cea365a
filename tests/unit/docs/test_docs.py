from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from docs import generate
from notebooked_dagster.config import ExperimentConfig

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").rglob("*.md"))
    if ".venv" not in path.parts
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_the_reference_pages_say_what_the_code_says() -> None:
    assert [path.name for path in generate.out_of_date()] == [], "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_test_that_the_page_of_devices_names_is_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/edge").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/edge.md").read_text(encoding="utf-8"))
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_every_option_of_defs_yaml_is_described() -> None:
    described = generate.attribute_texts(ExperimentConfig)
    assert [name for name in ExperimentConfig.model_fields if not described.get(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_defs_yaml_in_the_pages_is_valid(page: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        document = yaml.safe_load(block)
        if isinstance(document, dict) and str(document.get("type", "")).endswith("NotebookExperiment"):
            ExperimentConfig.model_validate({"name": "example", **document["attributes"]})
