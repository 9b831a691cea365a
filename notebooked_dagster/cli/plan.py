"""``notebooked plan``: what training an experiment would send, cost and need. Changes nothing anywhere."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

from notebooked_dagster.errors import ConfigError, ProviderError

from .options import session, shared_options
from .project import Project, stale_code

if TYPE_CHECKING:
    from notebooked_dagster.providers.base import Plan

_MARKS = {"exists": "ok", "new": "new", "missing": "missing", "unknown": "?"}


@click.command("plan")
@click.argument("experiment")
@click.option("--provider", help="Where it would train; the declaration's where not given.")
@click.option("--policy", is_flag=True, help="Print only the least-privilege policies, as JSON.")
@shared_options
def plan_command(experiment: str, provider: str | None, policy: bool) -> None:
    """Show what training would send, cost and need, and what is missing. Nothing is changed anywhere.

    Exit code 2 where something is missing.
    """
    from notebooked_dagster.components.model_asset import experiment_of

    project = Project(session())
    spec = project.experiment(experiment)
    if not (spec.scripts / "train.py").is_file():
        raise ConfigError(
            f"The scripts of {spec.config.name!r} are not generated yet.",
            path=spec.scripts,
            hint=f"`notebooked convert {spec.config.name}`.",
        )
    provider = provider or spec.config.provider
    wanted = {"data_path": spec.config.data_path, "provider": provider}
    asked = experiment_of(spec, wanted, project.place.tracking_uri, None, run_id="plan")
    name = spec.config.endpoint_name if spec.config.endpoint.enabled else None
    found = project.provider(provider).plan(asked, name)
    if policy:
        session().emit(found.policies, lambda: json.dumps(found.policies, indent=2))
        return
    with project.instance() as instance:
        stale = stale_code(project, spec, instance)
    data: dict[str, Any] = {**dataclasses.asdict(found), "stale": stale}
    session().emit(data, lambda: _text(found, stale))
    missing = sum(item.state == "missing" for item in found.items)
    if missing:
        raise ProviderError(
            f"{missing} thing{'s are' if missing > 1 else ' is'} missing for provider {found.provider!r}.",
            hint="They are marked above; nothing was sent.",
        )


def _text(plan: Plan, stale: list[str]) -> str:
    lines = [f"{plan.experiment} with provider {plan.provider}", ""]
    width = max(len(name) for name in plan.facts) if plan.facts else 0
    lines += [f"  {name:<{width}}  {value}" for name, value in plan.facts.items()]
    lines += [
        "",
        "Sent:",
        *(f"  {size:>10,} bytes  {name}" for name, size in plan.files.items()),
        "",
        "Looked at:",
    ]
    for item in plan.items:
        lines.append(f"  [{_MARKS[item.state]}] {item.text}" + (f" {item.hint}" if item.hint else ""))
    if stale:
        lines += [
            "",
            "No run has taken up what the notebook says now; the next one generates the scripts first.",
        ]
    return "\n".join(lines)
