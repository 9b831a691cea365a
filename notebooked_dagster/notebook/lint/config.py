"""What may be told to the audit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from notebooked_dagster.notebook.model import Severity

_RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.ERROR: 2}


@dataclass(frozen=True, slots=True)
class LintConfig:
    """The project's settings of the audit.

    Attributes:
        select: Only these rules, by id, prefix of an id, or name; all where empty.
        ignore: Not these rules.
        severities: Another severity for a rule, by id or name.
        threshold: Findings below this severity are not reported.
        max_logic_lines: Lines of logic a cell may hold (NB401).
        allowed_paths: Absolute paths that are everywhere the code runs, by their beginning (NB203).
    """

    select: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()
    severities: Mapping[str, Severity] = field(default_factory=dict)
    threshold: Severity = Severity.INFO
    max_logic_lines: int = 20
    allowed_paths: tuple[str, ...] = ("/opt/ml/", "/tmp/", "/dev/", "/proc/", "/etc/", "/usr/", "/bin/")


def matches(rule: str, name: str, patterns: Iterable[str]) -> bool:
    """Whether a rule is meant by one of ``patterns``: its id, a prefix of its id, its name, or ``*``."""
    for pattern in patterns:
        text = pattern.strip().lower()
        if text == "*" or text == name.lower() or (text and rule.lower().startswith(text)):
            return True
    return False


def at_least(severity: Severity, threshold: Severity) -> bool:
    """Whether ``severity`` is as bad as ``threshold`` or worse."""
    return _RANK[severity] >= _RANK[threshold]
