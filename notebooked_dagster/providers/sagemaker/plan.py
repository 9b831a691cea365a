"""What training an experiment would send, cost and need; only questions are asked that change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.providers.arguments import data_location, is_url
from notebooked_dagster.providers.base import Experiment, Plan, PlanItem
from notebooked_dagster.providers.cloud.plan import (
    last_items,
    masked,
    price_facts,
    python_item,
    sent_data,
    sent_files,
)
from notebooked_dagster.providers.cloud.provider import job_name

from . import prices
from .policy import caller_policy, role_policy, trust_policy
from .session import code_of, message_of, translated

if TYPE_CHECKING:
    from .provider import SageMakerProvider

_QUOTA_PAGES = 20


def plan(provider: SageMakerProvider, experiment: Experiment, endpoint_name: str | None) -> Plan:
    """See ``BaseProvider.plan``."""
    spec = provider.checked_spec(experiment)
    job_id = job_name(experiment.name, experiment.idempotency_token)
    data = data_location(experiment)
    environment = {**experiment.environment, "NOTEBOOKED_EXPERIMENT": experiment.name}
    request = provider.request(job_id, spec, environment, sent_data(provider.storage, data))
    options = provider.options(experiment.options)
    image = provider.training_image(experiment)
    facts: dict[str, str | float] = {
        "region": provider.session.region,
        "container": f"{image.uri} ({image.reason})",
        "execution role": provider.role,
        "bucket": provider.storage.uri(),
        "instance": f"{spec.instance_count} x {request['ResourceConfig']['InstanceType']}",
    }
    facts.update(_cost(provider, request, spec.instance_count))
    scaled = options.endpoint.autoscaling is not None
    items = list(_looked(provider, request, data, endpoint_name, scaled))
    if not image.fits:
        items.append(python_item("container", image.python, "container: options.training.image"))
    account = next((item.text.split()[-1] for item in items if item.text.startswith("AWS account")), "*")
    return Plan(
        provider=provider.name,
        experiment=experiment.name,
        request={
            **request,
            "Environment": masked(environment),
        },
        files=sent_files(provider, experiment),
        facts=facts,
        items=tuple(items),
        policies={
            "caller": _callers(provider, account, scaled),
            "execution role": role_policy(
                *_where(provider, account), data if data is not None and is_url(data) else None
            ),
            "trust of the execution role": trust_policy(),
        },
    )


def _where(provider: SageMakerProvider, account: str) -> tuple[str, str, str, str, str]:
    session, storage = provider.session, provider.storage
    return session.partition, session.region, account, storage.bucket, storage.prefix


def _callers(provider: SageMakerProvider, account: str, scaled: bool) -> dict[str, Any]:
    return caller_policy(*_where(provider, account), provider.role, autoscaling=scaled)


def _cost(
    provider: SageMakerProvider, request: dict[str, Any], count: int
) -> Iterator[tuple[str, str | float]]:
    kind = request["ResourceConfig"]["InstanceType"]
    hour = prices.hourly(kind, provider.prices)
    limit = request["StoppingCondition"]["MaxRuntimeInSeconds"]
    yield "time limit (s)", float(limit)
    own = kind in provider.prices
    yield from price_facts(
        hour,
        count,
        limit,
        unknown=f"not known for {kind}; `aws.prices` takes one",
        as_of="aws.prices" if own else f"{prices.AS_OF}, {prices.REGION}, on demand",
    )


def _looked(
    provider: SageMakerProvider,
    request: dict[str, Any],
    data: str | None,
    endpoint_name: str | None,
    scaled: bool,
) -> Iterator[PlanItem]:
    session = provider.session
    identity = _ask("The credentials", lambda: session.client("sts").get_caller_identity())
    if isinstance(identity, PlanItem):
        # Nothing else can be asked without them.
        yield identity
        return
    yield PlanItem("exists", f"The credentials are those of {identity['Arn']}.")
    yield PlanItem("exists", f"AWS account {identity['Account']}")
    yield from _bucket(provider)
    yield from _role(provider)
    policy = _callers(provider, str(identity["Account"]), scaled)
    yield from _permissions(provider, str(identity["Arn"]), policy)
    yield from _quota(provider, request)
    yield from last_items(provider, data, endpoint_name)


def _ask(what: str, question: Callable[[], Any]) -> Any:
    """An answer, or what is to be said of there being none."""
    from botocore.exceptions import ClientError

    try:
        with translated(what):
            try:
                return question()
            except ClientError as error:
                if code_of(error) in (
                    "AccessDenied",
                    "AccessDeniedException",
                    "NotImplemented",
                    "501",
                    "403",
                ):
                    return PlanItem("unknown", f"{what} cannot be looked at: {message_of(error)}")
                return PlanItem("missing", f"{what}: {message_of(error)}")
    except NotebookedError as error:
        return PlanItem("missing", error.message, error.hint or "")


def _bucket(provider: SageMakerProvider) -> Iterator[PlanItem]:
    from botocore.exceptions import ClientError

    name, region = provider.storage.bucket, provider.session.region
    try:
        found = provider.session.client("s3").head_bucket(Bucket=name)
    except ClientError as error:
        if code_of(error) in ("404", "NoSuchBucket"):
            yield PlanItem(
                "missing", f"There is no bucket {name!r}.", f"aws s3 mb s3://{name} --region {region}"
            )
        else:
            yield PlanItem(
                "missing", f"The bucket {name!r} is not ours to use.", "Name another, or ask its owner."
            )
        return
    place = found.get("BucketRegion") or found["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    if place and place != region:
        yield PlanItem(
            "missing",
            f"The bucket {name!r} is in {place}, and training in {region}.",
            "Name a bucket of the same region.",
        )
    else:
        yield PlanItem("exists", f"The bucket {name!r}.")


def _role(provider: SageMakerProvider) -> Iterator[PlanItem]:
    name = provider.role.rpartition("/")[2]
    found = _ask(f"The role {name!r}", lambda: provider.session.client("iam").get_role(RoleName=name))
    if isinstance(found, PlanItem):
        yield found
        return
    trusted = str(found["Role"].get("AssumeRolePolicyDocument", ""))
    if "sagemaker.amazonaws.com" in trusted:
        yield PlanItem("exists", f"The role {name!r}, which SageMaker may take.")
    else:
        yield PlanItem(
            "missing",
            f"SageMaker may not take the role {name!r}.",
            "Add the trust policy that `notebooked plan --policy` prints.",
        )


def _permissions(provider: SageMakerProvider, caller: str, policy: dict[str, Any]) -> Iterator[PlanItem]:
    """What of our own policy the caller may not do."""
    denied: list[str] = []
    for statement in policy["Statement"]:
        found = _ask("The caller's permissions", partial(_denied, provider, _principal(caller), statement))
        if isinstance(found, PlanItem):
            yield PlanItem("unknown", found.text, "`notebooked plan --policy` prints what it needs.")
            return
        denied.extend(found)
    if denied:
        yield PlanItem(
            "missing",
            f"The caller may not: {', '.join(dict.fromkeys(denied))}.",
            "`notebooked plan --policy` prints the policy.",
        )
    else:
        yield PlanItem("exists", "The caller's permissions.")


def _denied(provider: SageMakerProvider, principal: str, statement: dict[str, Any]) -> list[str]:
    """The actions of a statement that IAM denies, asked of its own resources and under its own conditions."""
    told = {key: value for test in statement.get("Condition", {}).values() for key, value in test.items()}
    pages = provider.session.client("iam").get_paginator("simulate_principal_policy")
    results = pages.paginate(
        PolicySourceArn=principal,
        ActionNames=statement["Action"],
        ResourceArns=statement["Resource"],
        ContextEntries=[
            {
                "ContextKeyName": key,
                "ContextKeyType": "string",
                "ContextKeyValues": [value] if isinstance(value, str) else value,
            }
            for key, value in told.items()
        ],
    )
    return [
        item["EvalActionName"]
        for page in results
        for item in page["EvaluationResults"]
        # An action need not be allowed on every kind of thing that its statement names.
        if "allowed"
        not in {
            item["EvalDecision"],
            *(own["EvalResourceDecision"] for own in item.get("ResourceSpecificResults", ())),
        }
    ]


def _principal(arn: str) -> str:
    """The role behind a session of it; IAM simulates roles and users, not sessions."""
    if ":assumed-role/" not in arn:
        return arn
    head, _, rest = arn.partition(":assumed-role/")
    return f"{head.replace(':sts:', ':iam:')}:role/{rest.split('/')[0]}"


def _quota(provider: SageMakerProvider, request: dict[str, Any]) -> Iterator[PlanItem]:
    kind, count = request["ResourceConfig"]["InstanceType"], request["ResourceConfig"]["InstanceCount"]
    spot = bool(request.get("EnableManagedSpotTraining"))
    wanted = f"{kind} for {'spot training' if spot else 'training'} job usage"

    def ask() -> float | None:
        pages = provider.session.client("service-quotas").get_paginator("list_service_quotas")
        for number, page in enumerate(pages.paginate(ServiceCode="sagemaker")):
            for quota in page["Quotas"]:
                if quota["QuotaName"] == wanted:
                    return float(quota["Value"])
            if number >= _QUOTA_PAGES:
                break
        return None

    found = _ask("The quota", ask)
    if isinstance(found, PlanItem):
        yield PlanItem("unknown", found.text)
    elif found is None:
        yield PlanItem("unknown", f"There is no quota called {wanted!r}.")
    elif found < count:
        yield PlanItem(
            "missing",
            f"The quota {wanted!r} is {found:g}, and {count} are needed.",
            "Ask for more in Service Quotas.",
        )
    else:
        yield PlanItem("exists", f"The quota {wanted!r}: {found:g}.")
