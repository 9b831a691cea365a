"""The metrics of two states of a project, side by side: a pull request's and its base's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from notebooked_dagster.config import MetricGate
from notebooked_dagster.errors import ConfigError

FORMATS = ("text", "markdown", "json", "openmetrics")
#: Relative changes below this are the arithmetic of another machine, not of another model.
NOISE = 1e-9


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one experiment.

    Attributes:
        experiment: Whose.
        metric: Its name in ``metrics.json``.
        base: What it was; None where it was not there.
        head: What it is now; None where it is gone.
    """

    experiment: str
    metric: str
    base: float | None
    head: float | None

    @property
    def difference(self) -> float | None:
        """By how much it changed; None where there is nothing to compare."""
        return None if self.base is None or self.head is None else self.head - self.base

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``same``, ``new`` or ``gone``. Whether more is better is told by the metric's name."""
        if self.base is None or self.head is None:
            return "new" if self.base is None else "gone"
        if math.isclose(self.base, self.head, rel_tol=NOISE, abs_tol=0.0) or self.base == self.head:
            return "same"
        if math.isnan(self.base) or math.isnan(self.head):
            # What is not a number is worse than any that is, whichever way is better.
            lost, had = math.isnan(self.head), math.isnan(self.base)
            return "same" if lost and had else "worse" if lost else "better"
        more_is_better = MetricGate(metric=self.metric, better_than="champion").higher_is_better
        return "better" if (self.head > self.base) == more_is_better else "worse"


def read_metrics(path: Path) -> dict[str, dict[str, float]]:
    """The metrics of each experiment, from what ``notebooked --json status`` printed.

    Args:
        path: One such file, or a folder of them; a folder that is not there holds nothing.

    Raises:
        ConfigError: A file is not what ``status`` prints.
    """
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path] if path.exists() else []
    found: dict[str, dict[str, float]] = {}
    for file in files:
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            for item in document if isinstance(document, list) else [document]:
                metrics = (item.get("model") or {}).get("metrics") or {}
                found[str(item["experiment"])] = {str(name): float(value) for name, value in metrics.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise ConfigError(
                f"This is not what `notebooked --json status` prints: {problem}.",
                path=file,
                hint="Write it with `notebooked --json status EXPERIMENT > FILE`.",
            ) from problem
    return found


def compare(
    base: Mapping[str, Mapping[str, float]], head: Mapping[str, Mapping[str, float]]
) -> list[Comparison]:
    """Every metric of every experiment of either, in order of their names."""
    return [
        Comparison(name, metric, base.get(name, {}).get(metric), head.get(name, {}).get(metric))
        for name in sorted({*base, *head})
        for metric in sorted({*base.get(name, {}), *head.get(name, {})})
    ]


def render(rows: Sequence[Comparison], form: str) -> str:
    """The comparison as ``text``, ``markdown`` (a comment), ``json``, or ``openmetrics`` (what GitLab shows)."""
    if form == "json":
        return json.dumps(
            [
                {"experiment": row.experiment, "metric": row.metric, "base": row.base, "head": row.head,
                 "difference": row.difference, "verdict": row.verdict}
                for row in rows
            ],
            indent=2,
        )  # fmt: skip
    if form == "openmetrics":
        return _open_metrics(rows)
    if form == "markdown":
        return _markdown(rows)
    if not rows:
        return "There are no metrics."
    return "\n".join(
        f"{row.experiment} {row.metric}: {_shown(row.base)} -> {_shown(row.head)} ({row.verdict})"
        for row in rows
    )


def _markdown(rows: Sequence[Comparison]) -> str:
    if not rows:
        return "### Metrics\n\nNo experiment was trained."
    lines = [
        "### Metrics",
        "",
        "| experiment | metric | base | here | change | |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in rows:
        change = "" if row.difference is None else f"{row.difference:+.4g}"
        word = f"**{row.verdict}**" if row.verdict == "worse" else row.verdict
        name = row.metric.replace("|", "\\|")
        lines.append(
            f"| {row.experiment} | {name} | {_shown(row.base)} | {_shown(row.head)} | {change} | {word} |"
        )
    return "\n".join(lines)


def _open_metrics(rows: Sequence[Comparison]) -> str:
    lines = [
        f'{re.sub(r"[^a-zA-Z0-9_]", "_", row.metric)}{{experiment="{row.experiment}"}} {row.head!r}'
        for row in rows
        if row.head is not None
    ]
    return "\n".join([*lines, "# EOF"])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
