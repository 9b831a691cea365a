"""Our logs, and Dagster's in the same lines."""

import io
import json
import logging
from pathlib import Path

import dagster as dg
import pytest
import yaml

from notebooked_dagster.core import logs
from notebooked_dagster.core.redaction import MASK, REDACTOR
from notebooked_dagster.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs"


def test_json_lines_hold_what_was_bound_and_no_secret() -> None:
    REDACTOR.add("log-s3cr3t-1")
    stream = io.StringIO()
    logs.configure("json", level=logging.INFO, stream=stream)
    log = logging.getLogger("notebooked.test")
    with logs.about(run="r1", asset=None), logs.about(provider="sagemaker"):
        log.info("asked with %s", "log-s3cr3t-1")
        try:
            raise ValueError("log-s3cr3t-1 is wrong")
        except ValueError:
            log.exception("it failed")
    log.info("afterwards")
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == f"asked with {MASK}"
    assert (first["run"], first["provider"], first["level"]) == ("r1", "sagemaker", "info")
    assert "asset" not in first
    assert "ValueError" in second["error"]
    assert "run" not in third
    assert "log-s3cr3t-1" not in stream.getvalue()


def test_text_is_for_people_and_a_second_set_up_replaces_the_first() -> None:
    one, two = io.StringIO(), io.StringIO()
    logs.configure("text", level=logging.INFO, stream=one)
    logs.configure("text", level=logging.INFO, stream=two)
    with logs.about(device="pi-1"):
        logging.getLogger("notebooked.edge").warning("no answer")
    assert one.getvalue() == ""
    assert two.getvalue() == "warning: no answer (device=pi-1)\n"


def test_a_format_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "xml")
    with pytest.raises(ConfigError, match="'xml'") as caught:
        logs.configure()
    assert caught.value.key == logs.VARIABLE


@dg.asset
def sold(context: dg.AssetExecutionContext) -> None:
    context.log.info("sold for %s", "log-s3cr3t-2")
    raise ValueError("nothing left")


@pytest.mark.filterwarnings("ignore:Handling yaml-defined logging configuration")
def test_what_a_run_says_comes_in_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    REDACTOR.add("log-s3cr3t-2")
    recipe = (
        (DOCS / "deployment.md").read_text().partition("# dagster.yaml\npython_logs")[2].partition("```")[0]
    )
    with dg.instance_for_test(overrides=yaml.safe_load(f"python_logs{recipe}")) as instance:
        dg.materialize([sold], instance=instance, raise_on_error=False)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (said,) = [line for line in lines if line["message"].startswith("sold")]
    assert said["message"] == f"sold for {MASK}"
    assert (said["level"], said["step"]) == ("info", "sold")
    (failed,) = [line for line in lines if line.get("event") == "STEP_FAILURE"]
    assert failed["run"] == said["run"]
    assert "nothing left" in failed["error"]
