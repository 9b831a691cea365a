"""What a person sees in the Dagster UI, in a real browser, after a real run."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

from notebooked_dagster.notebook.reader import read_notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
LOCATION = "locations/__repository__@notebooked_dagster"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module", autouse=True)
def job(run_command: Run) -> None:
    """One experiment has gone through the graph."""
    finished = run_command(
        "dagster", "job", "execute", "-m", "notebooked_dagster.definitions", "-j", "wine_untagged_job"
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]


def text_of(page: Page, url: str, *wanted: str) -> str:
    """The page's text once all of ``wanted`` (regular expressions) are on it."""
    page.goto(url)
    deadline = time.monotonic() + 45
    while True:
        text = page.inner_text("body")
        missing = [pattern for pattern in wanted if not re.search(pattern, text)]
        if not missing:
            return text
        if time.monotonic() > deadline:
            pytest.fail(f"{url} never showed {missing}; it shows:\n{text[:3000]}")
        page.wait_for_timeout(250)


def test_the_asset_graph_of_an_experiment(webserver: str, browser_page: Page) -> None:
    url = f"{webserver}/{LOCATION}/asset-groups/wine_untagged/lineage"
    parts = [rf"\b{name}\b" for name in ("notebook", "training_code", "inference_code", "model", "endpoint")]
    text_of(browser_page, url, *parts, r"(?s)(Materialized.*){4}", "Observed", r"2 / 2 Passed")


def test_the_model_shows_its_metrics_and_where_it_came_from(webserver: str, browser_page: Page) -> None:
    text = text_of(browser_page, f"{webserver}/assets/wine_untagged/model", "metric acc")
    assert "0.925925" in text
    assert "LogisticRegression" in text
    assert "wine_untagged.ipynb" in text


def test_the_notebook_shows_what_it_says(webserver: str, browser_page: Page) -> None:
    first = read_notebook(ROOT / "notebooks" / "experiments" / "wine_untagged.ipynb").description
    words = re.findall(r"\w+", first.splitlines()[-1])[:4]
    text_of(browser_page, f"{webserver}/assets/wine_untagged/notebook", r"\W+".join(words), "(?i)jupyter")


def test_the_launchpad_offers_the_declared_hyperparameters(webserver: str, browser_page: Page) -> None:
    text = text_of(
        browser_page, f"{webserver}/{LOCATION}/jobs/digits_classifier_job/playground", "Launch Run"
    )
    browser_page.get_by_text("hyperparameters").first.wait_for(timeout=45_000)
    text = browser_page.inner_text("body")
    assert re.search(r"C:\s*5\.0", text)
    assert "only_if_changed" in text


def test_the_endpoint_says_where_it_answers(webserver: str, browser_page: Page) -> None:
    text = text_of(browser_page, f"{webserver}/assets/wine_untagged/endpoint", r"http://127\.0\.0\.1:\d+")
    assert "champion" in text
