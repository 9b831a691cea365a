"""What training an experiment would send, cost and need; only questions are asked that change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from notebooked_dagster.errors import CredentialsError, NotebookedError
from notebooked_dagster.providers.arguments import data_location, is_url
from notebooked_dagster.providers.base import Experiment, Plan, PlanItem
from notebooked_dagster.providers.cloud.plan import (
    data_item,
    endpoint_item,
    masked,
    price_facts,
    sent_data,
    sent_files,
)
from notebooked_dagster.providers.cloud.provider import job_name

from . import images, prices
from .policy import CALLER_ACTIONS, SCALING_ACTIONS, caller_role, denied, identity_role
from .serving import machines as first_machines
from .training import duration

if TYPE_CHECKING:
    from notebooked_dagster.config.azure import AzureEndpoint

    from .provider import AzureProvider

_ML = "providers/Microsoft.MachineLearningServices"
_PERMISSIONS_VERSION = "2022-04-01"


def plan(provider: AzureProvider, experiment: Experiment, endpoint_name: str | None) -> Plan:
    """See ``BaseProvider.plan``."""
    spec = provider.checked_spec(experiment)
    job_id = job_name(experiment.name, experiment.idempotency_token)
    data = data_location(experiment)
    variables = {**experiment.environment, "NOTEBOOKED_EXPERIMENT": experiment.name}
    # A secret would stand in the command as well: what is shown is made without it.
    request = provider.request(job_id, spec, masked(variables), sent_data(provider.storage, data))
    options = provider.options(experiment.options)
    environment = provider.training_environment(experiment)
    resources = request["properties"]["resources"]
    machine = resources.get("instanceType") or f"cluster {options.training.compute}"
    facts: dict[str, str | float] = {
        "workspace": provider.session.workspace_name,
        "environment": f"{environment.base} ({environment.reason})",
        "identity": provider.identity or "Azure's own choice",
        "datastore": provider.storage.uri(),
        "instance": f"{spec.instance_count} x {machine}",
    }
    kind = resources.get("instanceType")
    size = _ask("The machines of the region", lambda: _size(provider, kind)) if kind else None
    facts.update(_cost(provider, request["properties"], size))
    items = list(
        _looked(provider, request["properties"], size, environment, data, endpoint_name, options.endpoint)
    )
    scope = provider.session.scope
    policies = {
        "caller": caller_role(
            scope,
            keys=options.endpoint.auth == "key",
            autoscaling=options.endpoint.autoscaling is not None,
            identity=provider.identity,
        ),
        "identity of jobs and endpoints": identity_role(scope),
    }
    return Plan(
        provider=provider.name,
        experiment=experiment.name,
        request=request,
        files=sent_files(provider, experiment),
        facts=facts,
        items=tuple(items),
        policies=policies,
    )


def _size(provider: AzureProvider, kind: str) -> dict[str, Any] | None:
    """What Azure says of a machine in the workspace's region; None where it has none of that name."""
    session = provider.session
    place = f"/subscriptions/{session.subscription}/{_ML}/locations/{session.location}"
    found = session.call("GET", f"{place}/vmSizes", what="They cannot be read")
    return next(
        (item for item in (found or {}).get("value", ()) if item["name"].lower() == kind.lower()), None
    )


def _told(size: Any, spot: bool) -> float | None:
    """USD an hour, as Azure itself estimates it; None where it does not."""
    prices = size.get("estimatedVMPrices") if isinstance(size, dict) else None
    if not prices or prices.get("billingCurrency") != "USD":
        return None
    tiers = ("Spot", "LowPriority") if spot else ("Standard",)
    found = {
        price["vmTier"]: price["retailPrice"] for price in prices["values"] if price["osType"] == "Linux"
    }
    return next((float(found[tier]) for tier in tiers if tier in found), None)


def _cost(
    provider: AzureProvider, properties: Mapping[str, Any], size: Any
) -> Iterator[tuple[str, str | float]]:
    kind = properties["resources"].get("instanceType")
    count = int(properties["resources"]["instanceCount"])
    wanted = duration(properties["limits"]["timeout"])
    limit = wanted.total_seconds() if wanted is not None else 0.0
    yield "time limit (s)", limit
    if kind is None:
        yield "price", "the cluster's machines are billed while it has any"
        return
    own = kind in provider.prices
    told = None if own else _told(size, properties["queueSettings"]["jobTier"] == "Spot")
    hour = told if told is not None else prices.hourly(kind, provider.prices)
    table = "azure.prices" if own else f"{prices.AS_OF}, {prices.REGION}, pay as you go"
    yield from price_facts(
        hour,
        count,
        limit,
        unknown=f"not known for {kind}; `azure.prices` takes one",
        as_of=table if told is None else "now, as Azure estimates it for the region",
    )


def _looked(
    provider: AzureProvider,
    properties: Mapping[str, Any],
    size: Any,
    environment: images.Environment,
    data: str | None,
    endpoint_name: str | None,
    endpoint_options: AzureEndpoint,
) -> Iterator[PlanItem]:
    session = provider.session
    try:
        location = session.location
    except CredentialsError as error:
        # Nothing else can be asked without them.
        yield PlanItem("missing", f"The credentials: {error.message}", error.hint or "")
        return
    except NotebookedError as error:
        yield PlanItem("missing", f"The workspace: {error.message}", error.hint or "")
        return
    yield PlanItem("exists", f"The workspace {session.workspace_name!r} in {location}.")
    yield from _datastore(provider)
    yield from _permissions(provider, SCALING_ACTIONS if endpoint_options.autoscaling else ())
    kind = properties["resources"].get("instanceType")
    if kind is None:
        yield from _cluster(provider, str(properties["computeId"]))
    else:
        spot = properties["queueSettings"]["jobTier"] == "Spot"
        yield from _quota(provider, kind, size, int(properties["resources"]["instanceCount"]), spot)
    yield from _environment(provider, environment)
    if data is not None and is_url(data):
        yield from _data(provider, data)
    if endpoint_name is not None:
        yield from _endpoint(provider, endpoint_name, endpoint_options)


def _ask(what: str, question: Callable[[], Any]) -> Any:
    """An answer, or what is to be said of there being none."""
    try:
        return question()
    except CredentialsError as error:
        return PlanItem("unknown", f"{what} cannot be looked at: {error.message}", error.hint or "")
    except NotebookedError as error:
        return PlanItem("missing", f"{what}: {error.message}", error.hint or "")


def _datastore(provider: AzureProvider) -> Iterator[PlanItem]:
    found = _ask(f"The datastore {provider.storage.datastore!r}", provider.storage.account)
    if isinstance(found, PlanItem):
        yield found
        return
    account, container = found
    seen = _ask("The blobs", lambda: next(provider.storage.names(provider.storage.uri()), ""))
    if isinstance(seen, PlanItem):
        yield PlanItem(
            "missing",
            f"The container {container!r} of the storage account {account!r} is not ours to use: {seen.text}",
            "`notebooked plan --policy` prints the role; `Storage Blob Data Contributor` has its data actions.",
        )
    else:
        yield PlanItem("exists", f"The container {container!r} of the storage account {account!r}.")


def _permissions(provider: AzureProvider, more: Iterable[str]) -> Iterator[PlanItem]:
    found = _ask(
        "The caller's permissions",
        lambda: provider.session.call(
            "GET",
            "/providers/Microsoft.Authorization/permissions",
            what="They cannot be read",
            query={"api-version": _PERMISSIONS_VERSION},
        ),
    )
    if isinstance(found, PlanItem):
        yield PlanItem("unknown", found.text, "`notebooked plan --policy` prints what it needs.")
        return
    # What may be done with blobs is said of the storage account, and was tried there.
    missing = denied(found.get("value", ()), [*CALLER_ACTIONS, *more], ())
    if missing:
        yield PlanItem(
            "missing",
            f"The caller may not: {', '.join(missing)}.",
            "`notebooked plan --policy` prints the role.",
        )
    else:
        yield PlanItem("exists", "The caller's permissions.")


def _cluster(provider: AzureProvider, identity: str) -> Iterator[PlanItem]:
    name = identity.rpartition("/")[2]
    found = _ask(
        f"The cluster {name!r}",
        lambda: provider.session.call(
            "GET", f"/computes/{name}", what="It cannot be looked at", missing=True
        ),
    )
    if isinstance(found, PlanItem):
        yield found
    elif found is None:
        yield PlanItem(
            "missing",
            f"There is no cluster {name!r} in the workspace.",
            "Correct azure.compute, or remove it for serverless compute.",
        )
    else:
        size = (found["properties"].get("properties") or {}).get("vmSize", "")
        yield PlanItem("exists", f"The cluster {name!r} of {size}.".replace(" of .", "."))


def _quota(provider: AzureProvider, kind: str, size: Any, count: int, spot: bool) -> Iterator[PlanItem]:
    session = provider.session
    place = f"/subscriptions/{session.subscription}/{_ML}/locations/{session.location}"
    if isinstance(size, PlanItem):
        yield size
        return
    if size is None:
        yield PlanItem(
            "missing", f"There is no machine {kind!r} in {session.location}.", "Choose another instance_type."
        )
        return
    if spot:
        yield PlanItem("unknown", "The quota of machines of low priority is not told by family.")
        return
    family, cores = str(size["family"]), int(size["vCPUs"]) * count
    usage = _ask(
        "The quota",
        lambda: next(
            (
                item
                for item in session.pages(f"{place}/usages", what="It cannot be read")
                if str((item.get("name") or {}).get("value", "")).lower() == family.lower()
            ),
            None,
        ),
    )
    if isinstance(usage, PlanItem):
        yield PlanItem("unknown", usage.text)
    elif usage is None:
        yield PlanItem("unknown", f"There is no quota called {family!r}.")
    else:
        free = int(usage["limit"]) - int(usage["currentValue"])
        if free < cores:
            yield PlanItem(
                "missing",
                f"Of the quota {family!r} {free} cores are free, and {cores} are needed.",
                "Ask for more under Quotas in the portal.",
            )
        else:
            yield PlanItem("exists", f"The quota {family!r}: {free} cores are free, {cores} are needed.")


def _environment(provider: AzureProvider, environment: images.Environment) -> Iterator[PlanItem]:
    if environment.given:
        yield PlanItem("unknown", f"The environment {environment.base} is the user's own.")
        return
    path = f"/environments/{environment.name}/versions/{environment.version}"
    found = _ask(
        f"The environment {environment.name!r}",
        lambda: provider.session.call("GET", path, what="It cannot be looked at", missing=True),
    )
    if isinstance(found, PlanItem):
        yield found
    elif found is None:
        yield PlanItem(
            "new",
            f"The environment {environment.name}:{environment.version} would be made; Azure builds its image once, in some minutes.",
        )
    else:
        yield PlanItem("exists", f"The environment {environment.name}:{environment.version}.")


def _data(provider: AzureProvider, data: str) -> Iterator[PlanItem]:
    if not data.startswith("azureml://"):
        yield PlanItem("unknown", f"Whether the job may read {data} is known when it tries.")
        return
    yield data_item(data, lambda: provider.storage.holds(data))


def _endpoint(provider: AzureProvider, name: str, options: AzureEndpoint) -> Iterator[PlanItem]:
    item = endpoint_item(provider, name)
    yield item
    if (scaling := options.autoscaling) is not None:
        yield PlanItem(
            "new",
            f"A setting of Azure Monitor would let the version have {scaling.min} to {scaling.max} x "
            f"{options.instance_type}, by its CPU ({scaling.cpu_target} %).",
        )
    if item.state == "exists":
        machines = f"{first_machines(options)} x {options.instance_type}"
        if options.standby:
            yield PlanItem(
                "new",
                f"Until it is settled {machines} would run beside what serves; the version before is kept running for a rollback.",
                "`endpoint.standby: false` removes it.",
            )
