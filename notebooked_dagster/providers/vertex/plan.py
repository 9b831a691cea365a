"""What training an experiment would send, cost and need; only questions are asked that change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.providers.arguments import data_location, is_url
from notebooked_dagster.providers.base import Experiment, Plan, PlanItem
from notebooked_dagster.providers.cloud.plan import (
    asked,
    last_items,
    mask_container,
    price_facts,
    python_item,
    sent_data,
    sent_files,
)
from notebooked_dagster.providers.cloud.provider import job_name
from notebooked_dagster.providers.jobs import JobSpec

from . import prices
from .policy import ACT_AS, BUCKET_PERMISSIONS, CALLER_PERMISSIONS, account_policy, caller_policy
from .session import TIMEOUT, code_of, message_of, translated

if TYPE_CHECKING:
    from .provider import VertexProvider

_CPU_QUOTA = "aiplatform.googleapis.com/custom_model_training_cpus"
_SPOT_CPU_QUOTA = "aiplatform.googleapis.com/custom_model_training_preemptible_cpus"
_QUOTA_PAGES = 20


def plan(provider: VertexProvider, experiment: Experiment, endpoint_name: str | None) -> Plan:
    """See ``BaseProvider.plan``."""
    spec = provider.checked_spec(experiment)
    job_id = job_name(experiment.name, experiment.idempotency_token)
    data = data_location(experiment)
    environment = {**experiment.environment, "NOTEBOOKED_EXPERIMENT": experiment.name}
    request = provider.request(job_id, spec, environment, sent_data(provider.storage, data))
    image = provider.training_image(experiment)
    machine = request["job_spec"]["worker_pool_specs"][0]["machine_spec"]
    gpus = (
        f" with {machine['accelerator_count']} x {machine['accelerator_type']}"
        if "accelerator_type" in machine
        else ""
    )
    facts: dict[str, str | float] = {
        "region": provider.session.region,
        "container": f"{image.uri} ({image.reason})",
        "service account": provider.service_account or "the project's default",
        "bucket": provider.storage.uri(),
        "instance": f"{spec.instance_count} x {machine['machine_type']}{gpus}",
    }
    facts.update(_cost(provider, request, machine, spec.instance_count))
    items = list(_looked(provider, spec, request, data, endpoint_name))
    if not image.fits:
        items.append(python_item("container", image.python, "container: options.training.image"))
    where = (_project(provider), provider.storage.bucket, provider.storage.prefix)
    return Plan(
        provider=provider.name,
        experiment=experiment.name,
        request=_shown(request),
        files=sent_files(provider, experiment),
        facts=facts,
        items=tuple(items),
        policies={
            "caller": caller_policy(*where, provider.service_account),
            "service account": account_policy(*where, data if data is not None and is_url(data) else None),
        },
    )


def _project(provider: VertexProvider) -> str:
    try:
        return provider.session.project
    except NotebookedError:
        return "PROJECT"


def _shown(request: dict[str, Any]) -> dict[str, Any]:
    """The request without secrets, and without the program that is the container's command."""
    shown = copy.deepcopy(request)
    for pool in shown["job_spec"]["worker_pool_specs"]:
        mask_container(pool["container_spec"])
    return shown


def _cost(
    provider: VertexProvider, request: dict[str, Any], machine: dict[str, Any], count: int
) -> Iterator[tuple[str, str | float]]:
    kind, gpu = machine["machine_type"], machine.get("accelerator_type")
    hour = prices.hourly(kind, gpu, machine.get("accelerator_count", 0), provider.prices)
    scheduling = request["job_spec"]["scheduling"]
    limit = scheduling["timeout"]["seconds"]
    yield "time limit (s)", float(limit)
    own = kind in provider.prices
    yield from price_facts(
        hour,
        count,
        limit,
        unknown=f"not known for {kind}{f' with {gpu}' if gpu else ''}; `gcp.prices` takes one",
        as_of="gcp.prices" if own else f"{prices.AS_OF}, {prices.REGION}, on demand",
        spot=scheduling.get("strategy") == "SPOT",
    )


def _looked(
    provider: VertexProvider,
    spec: JobSpec,
    request: dict[str, Any],
    data: str | None,
    endpoint_name: str | None,
) -> Iterator[PlanItem]:
    session = provider.session
    try:
        credentials, project = session.credentials, session.project
    except NotebookedError as error:
        # Nothing else can be asked without them.
        yield PlanItem("missing", f"The credentials: {error.message}", error.hint or "")
        return
    account = getattr(credentials, "service_account_email", None)
    yield PlanItem("exists", f"The credentials{f' are those of {account}' if account else ' are there'}.")
    yield PlanItem("exists", f"The project {project!r}.")
    yield from _granted(
        "The caller's permissions in the project",
        lambda: _tested(
            provider,
            f"{session.url('cloudresourcemanager')}/v1/projects/{project}:testIamPermissions",
            CALLER_PERMISSIONS,
        ),
        CALLER_PERMISSIONS,
    )
    yield from _bucket(provider)
    yield from _account(provider)
    yield from _quota(provider, spec, request)
    yield from last_items(provider, data, endpoint_name)


_ask = partial(asked, translated=translated, code_of=code_of, message_of=message_of)


def _tested(provider: VertexProvider, url: str, permissions: tuple[str, ...]) -> set[str]:
    reply = provider.session.again(
        lambda: provider.session.send("POST", url, body={"permissions": list(permissions)})
    )
    return set(reply.json().get("permissions", ()))


def _granted(what: str, question: Callable[[], set[str]], wanted: tuple[str, ...]) -> Iterator[PlanItem]:
    found = _ask(what, question)
    if isinstance(found, PlanItem):
        yield PlanItem(
            found.state, found.text, found.hint or "`notebooked plan --policy` prints what is needed."
        )
    elif denied := sorted(set(wanted) - found):
        yield PlanItem(
            "missing", f"{what}: not {', '.join(denied)}.", "`notebooked plan --policy` prints the roles."
        )
    else:
        yield PlanItem("exists", f"{what}.")


def _bucket(provider: VertexProvider) -> Iterator[PlanItem]:
    name, region = provider.storage.bucket, provider.session.region
    bucket = provider.session.storage.bucket(name)

    def ask() -> str:
        provider.session.again(lambda: bucket.reload(timeout=TIMEOUT, retry=None))
        return str(bucket.location).lower()

    found = _ask(f"The bucket {name!r}", ask)
    if isinstance(found, PlanItem) and found.state == "missing":
        yield PlanItem(
            "missing",
            f"There is no bucket {name!r}.",
            f"gcloud storage buckets create gs://{name} --location={region} --uniform-bucket-level-access",
        )
        return
    if isinstance(found, PlanItem):
        yield found
    elif "-" in found and found != region:
        yield PlanItem(
            "missing",
            f"The bucket {name!r} is in {found}, and training in {region}.",
            "Name a bucket of the same region, or of the multi-region around it.",
        )
    else:
        yield PlanItem("exists", f"The bucket {name!r} in {found}.")
    yield from _granted(
        f"The caller's permissions on the bucket {name!r}",
        lambda: set(
            provider.session.again(
                lambda: bucket.test_iam_permissions(list(BUCKET_PERMISSIONS), timeout=TIMEOUT, retry=None)
            )
        ),
        BUCKET_PERMISSIONS,
    )


def _account(provider: VertexProvider) -> Iterator[PlanItem]:
    email = provider.service_account
    if email is None:
        yield PlanItem(
            "unknown",
            "Training runs under the project's default service account, serving under one without rights in the project.",
            "Set gcp.service_account to one with the least it needs.",
        )
        return
    url = f"{provider.session.url('iam')}/v1/projects/-/serviceAccounts/{email}"
    found = _ask(
        f"The service account {email}",
        lambda: provider.session.again(lambda: provider.session.send("GET", url)).json(),
    )
    yield found if isinstance(found, PlanItem) else PlanItem("exists", f"The service account {email}.")
    if isinstance(found, PlanItem) and found.state == "missing":
        return
    yield from _granted(
        f"The caller may hand over the service account {email}",
        lambda: _tested(provider, f"{url}:testIamPermissions", (ACT_AS,)),
        (ACT_AS,),
    )


def _quota(provider: VertexProvider, spec: JobSpec, request: dict[str, Any]) -> Iterator[PlanItem]:
    scheduling = request["job_spec"]["scheduling"]
    metric = _SPOT_CPU_QUOTA if scheduling.get("strategy") == "SPOT" else _CPU_QUOTA
    machine = request["job_spec"]["worker_pool_specs"][0]["machine_spec"]["machine_type"]
    each = prices.cpus(machine)
    found = _ask("The quota", lambda: _limit(provider, metric))
    if isinstance(found, PlanItem):
        yield PlanItem("unknown", found.text)
    elif found is None or each is None:
        yield PlanItem("unknown", f"There is no telling whether the quota {metric} suffices for {machine}.")
    elif 0 <= found < each * spec.instance_count:
        yield PlanItem(
            "missing",
            f"The quota {metric} is {found} in {provider.session.region}, and {each * spec.instance_count} are needed.",
            "Ask for more: IAM & Admin, Quotas.",
        )
    else:
        yield PlanItem("exists", f"The quota {metric}: {'unlimited' if found < 0 else found}.")


def _limit(provider: VertexProvider, metric: str) -> int | None:
    """What the region may have of a metric; None where nothing is said of it."""
    session, token = provider.session, ""
    url = (
        f"{session.url('cloudquotas')}/v1/projects/{session.project}/locations/global/"
        "services/aiplatform.googleapis.com/quotaInfos"
    )
    for _ in range(_QUOTA_PAGES):
        query = {"pageSize": 200, **({"pageToken": token} if token else {})}
        page = session.again(lambda query=query: session.send("GET", url, params=query)).json()  # type: ignore[misc]
        for info in page.get("quotaInfos", ()):
            if info.get("metric") != metric:
                continue
            for part in info.get("dimensionsInfos", ()):
                if session.region in part.get("applicableLocations", ()):
                    return int(part.get("details", {}).get("value", 0))
        token = page.get("nextPageToken", "")
        if not token:
            break
    return None
