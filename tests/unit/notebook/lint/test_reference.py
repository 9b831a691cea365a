"""The reference page of the rules is what the catalogue says."""

from __future__ import annotations

import re

from docs.generate import FOLDER, NOTICE, rules_page
from notebooked_dagster.notebook.lint import RULES


def test_the_page_is_current() -> None:
    assert (FOLDER / "rules.md").read_text(encoding="utf-8") == f"{NOTICE}{rules_page().rstrip()}\n"


def test_every_rule_has_id_name_and_sentences() -> None:
    assert len({rule.name for rule in RULES.values()}) == len(RULES)
    for identifier, rule in RULES.items():
        assert re.fullmatch(r"NB\d{3}", identifier)
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.name)
        assert all(text.endswith(".") for text in (rule.summary, rule.why, rule.fix))
