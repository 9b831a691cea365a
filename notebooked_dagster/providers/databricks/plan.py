"""What training an experiment would send, cost and need; only questions are asked that change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from notebooked_dagster.config.databricks import DatabricksTraining
from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.providers.arguments import data_location, is_url
from notebooked_dagster.providers.base import Experiment, Plan, PlanItem
from notebooked_dagster.providers.cloud.plan import (
    asked,
    last_items,
    price_facts,
    python_item,
    sent_files,
)
from notebooked_dagster.providers.cloud.provider import job_name
from notebooked_dagster.providers.jobs import JobSpec

from .policy import PRIVILEGES, caller_policy, data_policy, securables
from .session import code_of, translated
from .storage import volume_path
from .training import node_type, runtime

if TYPE_CHECKING:
    from .provider import DatabricksProvider


def plan(provider: DatabricksProvider, experiment: Experiment, endpoint_name: str | None) -> Plan:
    """See ``BaseProvider.plan``."""
    spec = provider.checked_spec(experiment)
    options = provider.options(experiment.options).training
    job_id = job_name(experiment.name, experiment.idempotency_token)
    data = data_location(experiment)
    cloud = _known(lambda: provider.session.cloud, "aws")
    environment = {**experiment.environment, "NOTEBOOKED_EXPERIMENT": experiment.name}
    request = provider.request(job_id, spec, environment, cloud)
    chosen = runtime(options)
    facts: dict[str, str | float] = {
        "workspace": _known(lambda: provider.session.host, "not known"),
        "volume": provider.storage.path(),
        "runtime": f"{chosen.version} ({chosen.reason})",
        "instance": _instance(spec, options),
        "time limit (s)": float(request["timeout_seconds"]),
    }
    facts.update(_cost(provider.prices, spec, options, request["timeout_seconds"]))
    principal, items = _caller(provider)
    if principal is not None:
        items += _looked(provider, principal, spec, options, data, endpoint_name)
    if not chosen.fits:
        items.append(python_item("runtime", chosen.python, "runtime: options.training.spark_version"))
    who = principal or "PRINCIPAL"
    where = (provider.storage.catalog, provider.storage.schema, provider.storage.volume)
    policies = {
        "caller": caller_policy(*where, who, serverless=options.serverless, policy_id=options.policy_id)
    }
    if data is not None and is_url(data):
        policies["data"] = data_policy(volume_path(data), who)
    return Plan(
        provider=provider.name,
        experiment=experiment.name,
        request=_shown(request),
        files=sent_files(provider, experiment),
        facts=facts,
        items=tuple(items),
        policies=policies,
    )


def _known(ask: Callable[[], str], otherwise: str) -> str:
    try:
        return ask()
    except NotebookedError:
        return otherwise


def _instance(spec: JobSpec, options: DatabricksTraining) -> str:
    if options.serverless:
        return "serverless"
    machine = node_type(spec.instance_type, options) or "what the policy says"
    return f"{spec.instance_count} x {machine}{', spot where there is any' if options.spot else ''}"


def _shown(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request without secrets: of variables, only references to Databricks' own secrets are in it."""
    shown: dict[str, Any] = json.loads(json.dumps(request))
    return shown


def _cost(
    prices: Mapping[str, float], spec: JobSpec, options: DatabricksTraining, limit: int
) -> Iterator[tuple[str, str | float]]:
    machine = None if options.serverless else node_type(spec.instance_type, options)
    hour = prices.get(machine) if machine else None
    # A machine costs what the cloud asks and what Databricks asks by the plan, the region and the contract.
    what = machine or ("serverless compute" if options.serverless else "what the policy says")
    yield from price_facts(
        hour,
        spec.instance_count,
        limit,
        unknown=f"not known for {what}; `databricks.prices` takes one (machine and DBUs together)",
        as_of="databricks.prices",
        spot=options.spot,
    )


def _caller(provider: DatabricksProvider) -> tuple[str | None, list[PlanItem]]:
    """Who asks; None where nothing else can be asked."""

    def ask() -> str:
        me = provider.session.again(lambda: provider.session.client.current_user.me())
        return str(me.user_name or me.display_name or me.id)

    found = _ask("The caller", ask)
    if isinstance(found, PlanItem):
        return None, [found]
    return found, [PlanItem("exists", f"The credentials are those of {found}.")]


def _looked(
    provider: DatabricksProvider,
    principal: str,
    spec: JobSpec,
    options: DatabricksTraining,
    data: str | None,
    endpoint_name: str | None,
) -> list[PlanItem]:
    items = [_volume(provider), *_grants(provider, principal, endpoint_name is not None)]
    items += _compute(provider, spec, options)
    return [*items, *last_items(provider, data, endpoint_name, volume_path)]


_ask = partial(asked, translated=translated, code_of=code_of)


def _volume(provider: DatabricksProvider) -> PlanItem:
    storage = provider.storage
    name = f"{storage.catalog}.{storage.schema}.{storage.volume}"
    found = _ask(
        f"The volume {name}",
        lambda: provider.session.again(lambda: provider.session.client.volumes.read(name)),
    )
    if not isinstance(found, PlanItem):
        return PlanItem("exists", f"The volume {name}.")
    if found.state == "missing":
        return PlanItem("missing", f"There is no volume {name}.", f"CREATE VOLUME {name}")
    return found


def _grants(provider: DatabricksProvider, principal: str, serves: bool) -> Iterator[PlanItem]:
    storage = provider.storage
    for kind, name in securables(storage.catalog, storage.schema, storage.volume).items():
        wanted = {item for item in PRIVILEGES[kind] if serves or item != "CREATE_MODEL"}

        def ask(kind: str = kind, name: str = name) -> set[str]:
            client = provider.session.client
            found = provider.session.again(
                lambda: client.grants.get_effective(kind.lower(), name, principal=principal)
            )
            return {
                str(getattr(item.privilege, "value", item.privilege))
                for assignment in found.privilege_assignments or []
                for item in assignment.privileges or []
            }

        what = f"The grants on {kind.lower()} {name}"
        found = _ask(what, ask)
        if isinstance(found, PlanItem):
            yield found
        elif "ALL_PRIVILEGES" in found or not (lacking := sorted(wanted - found)):
            yield PlanItem("exists", f"{what}.")
        else:
            yield PlanItem(
                "missing",
                f"{what}: not {', '.join(lacking)}.",
                "`notebooked plan --policy` prints the grants; an owner needs none.",
            )


def _compute(provider: DatabricksProvider, spec: JobSpec, options: DatabricksTraining) -> Iterator[PlanItem]:
    session = provider.session
    if options.serverless:
        yield PlanItem(
            "unknown", "Whether the workspace has serverless compute for jobs is not told by its API."
        )
        return
    machine = node_type(spec.instance_type, options)
    if machine is not None:
        found = _ask(
            "The machines",
            lambda: {
                item.node_type_id
                for item in session.again(session.client.clusters.list_node_types).node_types or []
            },
        )
        yield _listed(
            found, machine, f"The machine {machine}", "`databricks clusters list-node-types` has them."
        )
    version = runtime(options).version
    found = _ask(
        "The runtimes",
        lambda: {item.key for item in session.again(session.client.clusters.spark_versions).versions or []},
    )
    yield _listed(found, version, f"The runtime {version}", "Name another: options.training.spark_version.")
    if (policy := options.policy_id) is not None:
        found = _ask(
            f"The compute policy {policy}",
            lambda: session.again(lambda: session.client.cluster_policies.get(policy)),
        )
        yield found if isinstance(found, PlanItem) else PlanItem("exists", f"The compute policy {policy}.")


def _listed(found: Any, wanted: str, what: str, hint: str) -> PlanItem:
    if isinstance(found, PlanItem):
        return found
    if wanted in found:
        return PlanItem("exists", f"{what}.")
    return PlanItem("missing", f"{what} is none of this workspace's.", hint)
