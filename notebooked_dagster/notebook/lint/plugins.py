"""Rules of third parties, through the entry point group ``notebooked_dagster.lint_rules``.

An entry point names a :class:`LintPlugin`::

    # my_rules.py
    NO_PRINT = Rule("MY001", "no-print", Severity.INFO, "A cell prints.", "Logs are kept.", "Log it.")

    def check(analysis, config):
        for statement in analysis.statements:
            if "print" in statement.calls:
                yield NO_PRINT.at("print is called.", statement.cell, statement.first_line)

    plugin = LintPlugin(rules=(NO_PRINT,), check=check)

    # pyproject.toml
    [project.entry-points."notebooked_dagster.lint_rules"]
    my_rules = "my_rules:plugin"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from notebooked_dagster.errors import ConfigError
from notebooked_dagster.notebook.model import Analysis, Finding

from .catalogue import RULES, Rule
from .config import LintConfig

ENTRY_POINT_GROUP = "notebooked_dagster.lint_rules"
Check = Callable[[Analysis, LintConfig], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class LintPlugin:
    """Rules and the function that applies them.

    Attributes:
        rules: What it may report; their ids may not be ours.
        check: Called once a notebook; pure.
    """

    rules: tuple[Rule, ...]
    check: Check


@cache
def installed_plugins() -> tuple[LintPlugin, ...]:
    """The plugins of all installed packages.

    Raises:
        ConfigError: An entry point cannot be imported, is no LintPlugin, or takes an id of ours.
    """
    plugins = []
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP)):
        key = f"{ENTRY_POINT_GROUP}.{point.name}"
        try:
            plugin = point.load()
        except (ImportError, AttributeError) as problem:
            raise ConfigError(
                f"The lint rules {point.value} cannot be imported: {problem}.",
                key=key,
                hint="Repair or uninstall the package that declares them.",
            ) from problem
        if not isinstance(plugin, LintPlugin):
            raise ConfigError(
                f"{point.value} is not a LintPlugin.", key=key, hint="Let the entry point name one."
            )
        taken = sorted({rule.id for rule in plugin.rules} & RULES.keys())
        if taken:
            raise ConfigError(
                f"{point.value} uses ids of built-in rules: {', '.join(taken)}.",
                key=key,
                hint="Give them a prefix of their own.",
            )
        plugins.append(plugin)
    return tuple(plugins)
