"""The audit through ``lint`` and ``render``: what each rule finds, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from notebooked_dagster.errors import ConfigError
from notebooked_dagster.notebook.analysis import analyse_path
from notebooked_dagster.notebook.lint import RULES, LintConfig, LintPlugin, Rule, lint, render
from notebooked_dagster.notebook.lint.locate import FileLines
from notebooked_dagster.notebook.model import Analysis, Finding, Severity
from notebooked_dagster.notebook.tags import TagVocabulary

# Put together here so that no scanner takes this file for a leak.
AWS_KEY = "AKIA" + "QY3FZ7KLMNP2RSTW"
GITHUB = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
PASSWORD = "corr3ct-" + "horse-battery"
API_KEY = "9f86d081884c7d65" + "9a2feaa0c55ad015"


def cell(source: str, count: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "source": source.splitlines(keepends=True),
        "metadata": more.get("metadata", {}),
        "execution_count": count,
        "outputs": more.get("outputs", []),
    }


def printed(text: str) -> list[dict[str, Any]]:
    return [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}]


class Lint:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "example.ipynb"
        self.analysis: Analysis

    def __call__(
        self,
        *cells: Any,
        config: LintConfig | None = None,
        metadata: Any = None,
        plugins: Any = (),
        tags: TagVocabulary | None = None,
    ) -> list[Finding]:
        from notebooked_dagster.notebook.analysis import AnalysisOptions, analyse
        from notebooked_dagster.notebook.reader import read_notebook

        document = {
            "nbformat": 4,
            "nbformat_minor": 4,
            "metadata": {"language_info": {"name": "python"}, **(metadata or {})},
            "cells": [cell(item) if isinstance(item, str) else item for item in cells],
        }
        self.path.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
        notebook = read_notebook(self.path, keep_output_text=True)
        self.analysis = analyse(notebook, AnalysisOptions(tags or TagVocabulary()))
        return lint(self.analysis, config, plugins=plugins)


@pytest.fixture
def audit(tmp_path: Path) -> Lint:
    return Lint(tmp_path)


def places(findings: list[Finding], rule: str) -> list[tuple[int | None, int | None]]:
    return [(f.cell, f.line) for f in findings if f.rule == rule]


def test_a_tidy_notebook_has_no_findings(audit: Lint) -> None:
    assert audit(cell("import math\n", 1), cell("radius = 2.0\narea = math.pi * radius**2", 2)) == []


def test_a_name_whose_cell_was_deleted_is_told_with_the_missing_counts(audit: Lint) -> None:
    found = audit(cell("x = 1", 1), cell("print(x + gone)", 3))
    (undefined,) = [f for f in found if f.rule == "NB102"]
    assert (undefined.cell, undefined.line, undefined.severity) == (1, 1, Severity.ERROR)
    assert "deleted" in undefined.message
    assert "In 2" in undefined.message


def test_counts_out_of_order_name_the_cell_above(audit: Lint) -> None:
    found = audit(cell("a = 1", 5), cell("b = 2", 3))
    (order,) = [f for f in found if f.rule == "NB103"]
    assert order.cell == 1
    assert "In [3]" in order.message
    assert "cell 1" in order.message


def test_a_repeated_count_means_two_sessions(audit: Lint) -> None:
    found = audit(cell("a = 1", 1), cell("b = 2", 1))
    assert "different sessions" in next(f.message for f in found if f.rule == "NB103")


def test_gaps_are_information_only(audit: Lint) -> None:
    found = audit(cell("a = 1", 1), cell("b = 2", 4))
    assert [(f.rule, f.severity) for f in found] == [("NB104", Severity.INFO)]
    assert "(2, 3)" in found[0].message


def test_never_run_cells_have_no_order(audit: Lint) -> None:
    assert audit("a = 1", "b = a") == []


def test_a_value_read_from_below_is_order_dependent(audit: Lint) -> None:
    found = audit(cell("rate = 0.1", 1), cell("print(rate)", 3), cell("rate = 0.5", 2))
    (finding,) = [f for f in found if f.rule == "NB105"]
    assert (finding.cell, finding.line) == (1, 1)
    assert "cell 3" in finding.message
    assert "cell 1" in finding.message


@pytest.mark.parametrize("again", ["import math", "import math, os", "import os, math"])
def test_an_import_repeated_below_changes_nothing(audit: Lint, again: str) -> None:
    assert not places(audit(cell("import math", 1), cell("print(math.pi)", 3), cell(again, 2)), "NB105")


def test_a_cell_rerun_after_its_reader_is_not_order_dependent(audit: Lint) -> None:
    assert not places(audit(cell("rate = 0.1", 1), cell("print(rate)", 2), cell("rate = 0.5", 3)), "NB105")


def test_a_failed_cell_is_told_unless_it_is_meant_to_fail(audit: Lint) -> None:
    error = [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]
    meant = cell("1 / 0", 2, outputs=error, metadata={"tags": ["raises-exception"]})
    assert places(audit(cell("1 / 0", 1, outputs=error), meant), "NB106") == [(0, None)]


def test_star_imports(audit: Lint) -> None:
    assert places(audit("import os\nfrom math import *"), "NB107") == [(0, 2)]


@pytest.mark.parametrize(
    "source",
    [
        f'key = "{AWS_KEY}"',
        f'login(token="{GITHUB}")',
        f'password = "{PASSWORD}"',
        f'db = {{"password": "{PASSWORD}"}}',
        f'os.environ["API_KEY"] = "{API_KEY}"',
        f'api_key = os.getenv("API_KEY", "{API_KEY}")',
        f'engine = create_engine("postgresql://scott:{PASSWORD}@db.internal/x")',
        f'client.secret_key = "{API_KEY}"',
        f'!curl -H "Authorization: {GITHUB}" x',
        f'password = "{PASSWORD}"\nthis does not parse',
    ],
)
def test_secrets_in_sources_are_errors_and_never_shown(audit: Lint, source: str) -> None:
    found = [f for f in audit(source) if f.rule == "NB201"]
    assert [f.severity for f in found] == [Severity.ERROR]
    for format in ("text", "json", "sarif", "github"):
        text = render(found, audit.analysis.notebook, format)
        for secret in (AWS_KEY, GITHUB, PASSWORD, API_KEY):
            assert secret not in text
            assert secret[:8] not in text


@pytest.mark.parametrize(
    "source",
    [
        'digest = "9f86d081884c7d659a2feaa0c55ad0159f86d081884c7d659a2feaa0c55ad015"',
        'run_id = "123e4567-e89b-12d3-a456-426614174000"',
        'api_key = "YOUR_API_KEY"',
        'api_key = "<your key here>"',
        'api_key = os.environ["OPENAI_API_KEY"]',
        'key_name = "OPENAI_API_KEY"; api_key = os.getenv("API_KEY", "")',
        'tokenizer = "bert-base-uncased"',
        'pad_token = "<pad>"',
        'sep_token = "[SEP]"',
        'x = get(token="mean")',
        'password = input("Password: ")',
        'password = "password"',
        'url = "https://user:password@example.com"',
        'secret_name = "prod/db/main"',
        'access_token_url = "https://login.example.org/oauth2/token"',
        'primary_key = "customer_id_2024"',
        'image = "' + "iVBORw0KGgoAAAANSUhEUgAA" * 40 + '"',
    ],
)
def test_what_only_looks_like_a_secret_is_left_alone(audit: Lint, source: str) -> None:
    assert not places(audit(source), "NB201")


def test_a_secret_in_an_output_is_found_and_not_shown(audit: Lint) -> None:
    found = audit(cell("print(key)\n", 1, outputs=printed(f"using {AWS_KEY}\n")))
    assert places(found, "NB202") == [(0, None)]
    assert AWS_KEY not in render(found, audit.analysis.notebook)


def test_images_and_hashes_in_outputs_are_no_secrets(audit: Lint) -> None:
    image = [{"output_type": "display_data", "metadata": {}, "data": {"image/png": f"{AWS_KEY}AAAA"}}]
    html = printed(f'<img src="data:image/png;base64,AAAA{AWS_KEY}">\nsha256 {"ab12" * 16}\n')
    assert not places(audit(cell("plot()", 1, outputs=image), cell("show()", 2, outputs=html)), "NB202")


def test_a_secret_in_prose(audit: Lint) -> None:
    prose = {"cell_type": "markdown", "metadata": {}, "source": f"# Keys\nuse {GITHUB}"}
    assert places(audit(prose), "NB201") == [(0, 2)]


@pytest.mark.parametrize(
    "source",
    [
        'df = read_csv("/home/ann/data.csv")',
        'df = read_csv("/Users/ann/data.csv")',
        'p = "C:\\\\Users\\\\ann\\\\x.csv"',
        'p = r"D:\\data\\x.csv"',
        'p = "C:/data/x.csv"',
        'p = f"/mnt/share/{name}.csv"',
        'root = "/content/drive/MyDrive/x"',
        'df = read_csv("/srv/data/x.csv")',
        'p = "\\\\\\\\server\\\\share\\\\x"',
        "!ls /content/drive/MyDrive",
        "%cd /home/ann/project",
    ],
)
def test_absolute_paths(audit: Lint, source: str) -> None:
    assert places(audit(source), "NB203") == [(0, 1)]


@pytest.mark.parametrize(
    "source",
    [
        'df = read_csv("data/x.csv")',
        'df = read_csv("../data/x.csv")',
        'url = "https://example.com/home/x"',
        'uri = "s3://bucket/home/x"',
        'route = "/api/v1/items"',
        'model_dir = "/opt/ml/model"',
        'open("/tmp/x/y")',
        'text = "a:\\n- b"',
        '"""/home is where the heart is"""',
        'x = "/".join(parts)',
    ],
)
def test_what_is_no_absolute_path(audit: Lint, source: str) -> None:
    assert not places(audit(source), "NB203")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("!pip install pandas", "pandas is"),
        ("%pip install numpy==2.0.0 \\\n    pandas \\\n    lightgbm", "pandas, lightgbm are"),
        ("%pip install -q -U pandas scikit-learn==1.5", "pandas is"),
        ("%pip install 'pandas>=2' numpy", "pandas, numpy are"),
        ("!python -m pip install torch[cuda]", "torch is"),
        ("!pip install git+https://github.com/a/tool.git", "tool.git is"),
        ("!conda install -y -c conda-forge lightgbm", "lightgbm is"),
        ("try:\n    import x\nexcept ImportError:\n    !pip install x", "x is"),
    ],
)
def test_unpinned_installs(audit: Lint, source: str, names: str) -> None:
    (finding,) = [f for f in audit(source) if f.rule == "NB204"]
    assert finding.message.startswith(names)


@pytest.mark.parametrize(
    "source",
    [
        "!pip install pandas==2.2.3",
        "!pip install -r requirements.txt",
        "!pip install --index-url https://pypi.example/simple numpy==2.0.0",
        "!pip install -e .",
        "!pip install git+https://github.com/a/tool.git@1a2b3c4d5e",
        "!conda install numpy=2.0",
        "!pip install {package}",
        "# !pip install pandas",
    ],
)
def test_pinned_installs(audit: Lint, source: str) -> None:
    assert not places(audit(source), "NB204")


def test_an_index_with_a_password_is_not_shown(audit: Lint) -> None:
    found = audit(f"!pip install --extra-index-url https://me:{PASSWORD}@pypi.internal/simple tool")
    assert {"NB201", "NB204"} <= {f.rule for f in found}
    assert PASSWORD not in render(found, audit.analysis.notebook)


def test_saved_outputs_are_information(audit: Lint) -> None:
    (finding,) = audit(cell("print(1)", 1, outputs=printed("1\n")))
    assert (finding.rule, finding.severity, finding.cell) == ("NB205", Severity.INFO, None)


@pytest.mark.parametrize("call", ["input('?')", "exit()", "sys.exit(1)", "breakpoint()", "getpass.getpass()"])
def test_interactive_calls(audit: Lint, call: str) -> None:
    assert places(audit(f"import sys, getpass\nx = {call}"), "NB206") == [(0, 2)]


def test_logic_counts_code_and_nothing_else(audit: Lint) -> None:
    body = "".join(f"    x = x + {n}  # step\n\n    # prose\n" for n in range(19))
    function = f'def f(x):\n    """Long.\n\n    Text.\n    """\n{body}'
    assert not places(audit(function), "NB401")
    assert places(audit(function + "    return x * 2\n"), "NB401") == [(0, None)]
    assert not places(audit(function + "    return x * 2\n", config=LintConfig(max_logic_lines=40)), "NB401")


def test_imports_and_constants_are_no_logic(audit: Lint) -> None:
    assert not places(audit("\n".join(f"C{n} = {n}" for n in range(40)), "import os\n" * 40), "NB401")


def test_a_misspelt_tag_names_the_nearest(audit: Lint) -> None:
    tagged = cell("x = 1", metadata={"tags": ["preproces", "train", "hide-input"]})
    (finding,) = audit(tagged)
    assert finding.rule == "NB003"
    assert "preprocess" in finding.fix


def test_a_prefixed_tag(audit: Lint) -> None:
    tagged = cell("x = 1", metadata={"tags": ["nb:train", "nb:trian"]})
    (finding,) = audit(tagged, tags=TagVocabulary("nb:"))
    assert "'nb:trian'" in finding.message
    assert "nb:train" in finding.fix


def test_what_analysis_says_is_part_of_it(audit: Lint) -> None:
    found = audit("x = (1", "print(later)", "later = 1", "%%bash\nls")
    assert {"NB002", "NB101", "NB004"} <= {f.rule for f in found}


PIP = "!pip install pandas"


@pytest.mark.parametrize(
    "ignored",
    [
        cell(f"# notebooked: ignore NB204\n{PIP}"),
        cell(f"# notebooked: ignore unpinned-install, NB001\n{PIP}"),
        cell(f"# notebooked: ignore NB2\n{PIP}"),
        cell(f"# notebooked: ignore\n{PIP}"),
        cell(PIP, metadata={"tags": ["nb-ignore-NB204"]}),
        cell(PIP, metadata={"notebooked": {"ignore": ["NB204"]}}),
        cell(PIP, metadata={"notebooked.ignore": "NB204"}),
    ],
)
def test_a_cell_ignores_a_rule_for_itself_only(audit: Lint, ignored: dict[str, Any]) -> None:
    assert places(audit(ignored, PIP), "NB204") == [(1, 1)]


def test_a_comment_behind_code_ignores_for_its_line_only(audit: Lint) -> None:
    source = 'a = "/home/ann/a"  # notebooked: ignore NB203\nb = "/home/ann/b"'
    assert places(audit(source), "NB203") == [(0, 2)]


def test_a_notebook_and_a_project_ignore_rules(audit: Lint) -> None:
    assert not places(audit(PIP, metadata={"notebooked": {"ignore": ["NB204"]}}), "NB204")
    assert not places(audit(PIP, config=LintConfig(ignore=frozenset({"unpinned-install"}))), "NB204")


def test_select_threshold_and_severity(audit: Lint) -> None:
    cells = (PIP, "from math import *", cell("print(1)", 1, outputs=printed("1")))
    assert {f.rule for f in audit(*cells, config=LintConfig(select=frozenset({"NB2"})))} == {"NB204", "NB205"}
    assert "NB205" not in {f.rule for f in audit(*cells, config=LintConfig(threshold=Severity.WARNING))}
    raised = audit(*cells, config=LintConfig(severities={"NB204": Severity.ERROR}))
    assert next(f for f in raised if f.rule == "NB204").severity is Severity.ERROR


def test_a_plugin_adds_rules_that_can_be_ignored(audit: Lint) -> None:
    rule = Rule("MY001", "no-print", Severity.INFO, "A cell prints.", "Logs are kept.", "Log it.")
    plugin = LintPlugin(
        (rule,),
        lambda analysis, config: (
            rule.at("print is called.", s.cell, s.first_line)
            for s in analysis.statements
            if "print" in s.calls
        ),
    )
    assert places(audit("print(1)", plugins=[plugin]), "MY001") == [(0, 1)]
    assert not places(audit("# notebooked: ignore MY001\nprint(1)", plugins=[plugin]), "MY001")


def test_a_plugin_that_fails_is_named(audit: Lint) -> None:
    rule = Rule("MY002", "bad", Severity.INFO, "", "", "")

    def check(analysis: Analysis, config: LintConfig) -> list[Finding]:
        raise KeyError("oops")

    with pytest.raises(ConfigError, match=r"MY002.*KeyError"):
        audit("x = 1", plugins=[LintPlugin((rule,), check)])


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("as_list", [True, False])
def test_lines_of_the_file(tmp_path: Path, indent: int | None, as_list: bool) -> None:
    sources = ['"source"\n', "x = {\n", '  "cells": [1]}\n', "marker = 1"]
    first = {"cell_type": "markdown", "metadata": {"source": ["no"]}, "source": []}
    second = cell("".join(sources), outputs=printed('{"source": ["x"]}'))
    second["source"] = sources if as_list else "".join(sources)
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps({"metadata": {"cells": [{}]}, "cells": [first, second]}, indent=indent))
    line = FileLines(path).line(1, 4)
    assert "marker" in path.read_text().splitlines()[line - 1]
    assert (line > 5) == (indent is not None)
    assert FileLines(path).line(None, None) == 1


def test_github_annotations_are_one_line_each(audit: Lint) -> None:
    found = audit("x = 1\n" + PIP, 'p = "/home/a%b/c,d:e"')
    lines = render(found, audit.analysis.notebook, "github").splitlines()
    text = audit.path.read_text().splitlines()
    pip = next(line for line in lines if "NB204" in line)
    number = int(pip.partition("line=")[2].partition(",")[0])
    assert PIP in text[number - 1]
    assert pip.startswith("::warning file=")
    assert "title=NB204 unpinned-install (cell 1)::" in pip
    assert any("a%25b" in line for line in lines)
    assert len(lines) == len(found)


SARIF = {
    "type": "object",
    "required": ["version", "runs", "$schema"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "additionalProperties": False,
                "properties": {
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name", "rules"],
                                "properties": {
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "required": ["id"],
                                            "additionalProperties": False,
                                            "properties": {
                                                "id": {"type": "string"},
                                                "name": {"type": "string"},
                                                "shortDescription": {"$ref": "#/$defs/message"},
                                                "fullDescription": {"$ref": "#/$defs/message"},
                                                "help": {"$ref": "#/$defs/message"},
                                                "defaultConfiguration": {"type": "object"},
                                            },
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message", "ruleId", "ruleIndex", "locations"],
                            "additionalProperties": False,
                            "properties": {
                                "ruleId": {"type": "string"},
                                "ruleIndex": {"type": "integer", "minimum": 0},
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "message": {"$ref": "#/$defs/message"},
                                "partialFingerprints": {"additionalProperties": {"type": "string"}},
                                "locations": {
                                    "items": {
                                        "additionalProperties": False,
                                        "required": ["physicalLocation"],
                                        "properties": {
                                            "physicalLocation": {
                                                "properties": {
                                                    "artifactLocation": {
                                                        "properties": {"uri": {"format": "uri-reference"}}
                                                    },
                                                    "region": {
                                                        "properties": {
                                                            "startLine": {"type": "integer", "minimum": 1}
                                                        }
                                                    },
                                                }
                                            },
                                            "logicalLocations": {"type": "array"},
                                        },
                                    }
                                },
                            },
                        },
                    },
                },
            },
        },
    },
    "$defs": {
        "message": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
    },
}


def test_sarif_has_the_structure_of_its_schema(audit: Lint) -> None:
    found = audit(PIP, "from math import *", "print(nowhere)")
    log = json.loads(render(found, audit.analysis.notebook, "sarif"))
    jsonschema.validate(log, SARIF)
    (run,) = log["runs"]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    assert len(run["results"]) == len(found)


def test_sarif_fingerprints_survive_cells_above(audit: Lint) -> None:
    def prints(*cells: str) -> set[str]:
        log = json.loads(render(audit(*cells), audit.analysis.notebook, "sarif"))
        return {result["partialFingerprints"]["notebookedCell/v1"] for result in log["runs"][0]["results"]}

    assert prints(PIP) == prints("x = 1", PIP)


def test_json_and_text_number_cells_from_one(audit: Lint) -> None:
    found = audit("x = 1", PIP)
    data = json.loads(render(found, audit.analysis.notebook, "json"))
    assert data["notebooks"][0]["findings"][0]["cell"] == 2
    assert data["counts"]["warning"] == 1
    text = render(found, audit.analysis.notebook)
    assert "cell 2, line 1: warning NB204" in text
    assert "\x1b" not in text
    assert "\x1b" in render(found, audit.analysis.notebook, colour=True)


def test_nothing_to_report(audit: Lint) -> None:
    assert render(audit("x = 1"), audit.analysis.notebook).endswith("nothing to report.")


def test_every_rule_analysis_reports_is_in_the_catalogue() -> None:
    import re

    from notebooked_dagster.notebook import observations

    source = Path(observations.__file__).read_text(encoding="utf-8")
    for identifier, name, severity in re.findall(r'"(NB\d+)", "([\w-]+)", Severity\.(\w+)', source):
        rule = RULES[identifier]
        assert (rule.name, rule.severity.name) == (name, severity)


def test_the_samples_have_no_error_findings() -> None:
    folder = Path(__file__).parents[4] / "notebooks" / "experiments"
    for path in sorted(folder.glob("*.ipynb")):
        errors = [f for f in lint(analyse_path(path), plugins=()) if f.severity is Severity.ERROR]
        assert errors == [], path.name
