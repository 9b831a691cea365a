"""The audit: every rule over one analysis, then what the project and the notebook asked to ignore."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from notebooked_dagster.errors import ConfigError, NotebookedError
from notebooked_dagster.notebook.model import Analysis, Finding

from . import code, order, places, secrets
from .config import LintConfig, at_least, matches
from .ignores import Ignores
from .plugins import LintPlugin, installed_plugins

_FAMILIES = (order.check, code.check, places.check, secrets.check)


def lint(
    analysis: Analysis, config: LintConfig | None = None, *, plugins: Sequence[LintPlugin] | None = None
) -> list[Finding]:
    """All findings, in notebook order; those of the whole notebook first.

    Args:
        analysis: Of a notebook read with ``keep_output_text=True``, or secrets in outputs are not seen.
        config: The project's settings.
        plugins: Rules of third parties; the installed ones where None.

    Raises:
        ConfigError: A third party's rule cannot be loaded or failed.
    """
    config = config or LintConfig()
    ignores = Ignores(analysis.notebook)
    kept: dict[Finding, None] = {}
    for finding in _all(analysis, config, installed_plugins() if plugins is None else plugins):
        finding = _with_severity(finding, config)
        if _wanted(finding, config) and not ignores.covers(finding):
            kept[finding] = None
    return sorted(kept, key=_place)


def _all(analysis: Analysis, config: LintConfig, plugins: Sequence[LintPlugin]) -> Iterator[Finding]:
    yield from order.explain(list(analysis.findings), analysis)
    for family in _FAMILIES:
        yield from family(analysis, config)
    for plugin in plugins:
        names = ", ".join(rule.id for rule in plugin.rules)
        try:
            yield from plugin.check(analysis, config)
        except NotebookedError:
            raise
        except Exception as problem:
            raise ConfigError(
                f"The lint rules {names} failed: {type(problem).__name__}: {problem}.",
                path=analysis.notebook.path,
                hint="Report it to their author, or ignore them in the configuration by uninstalling the package.",
            ) from problem


def _with_severity(finding: Finding, config: LintConfig) -> Finding:
    severity = config.severities.get(finding.rule) or config.severities.get(finding.name)
    return replace(finding, severity=severity) if severity else finding


def _wanted(finding: Finding, config: LintConfig) -> bool:
    if not at_least(finding.severity, config.threshold):
        return False
    if config.select and not matches(finding.rule, finding.name, config.select):
        return False
    return not matches(finding.rule, finding.name, config.ignore)


def _place(finding: Finding) -> tuple[int, int, str, str]:
    cell = -1 if finding.cell is None else finding.cell
    return (cell, finding.line or 0, finding.rule, finding.message)
