"""What training an experiment would send and need; only questions are asked that change nothing.

A cluster has no price list: what a node costs is known to whoever pays for it, and nothing is said of it here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from notebooked_dagster.errors import ConfigError, NotebookedError
from notebooked_dagster.providers.arguments import data_location, is_url
from notebooked_dagster.providers.base import Experiment, Plan, PlanItem
from notebooked_dagster.providers.cloud.plan import (
    last_items,
    mask_container,
    sent_data,
    sent_files,
)
from notebooked_dagster.providers.cloud.provider import job_name

from .jobs import no_kubeflow
from .kserve import no_kserve
from .policy import KSERVE_RULES, KUBEFLOW_RULES, RULES, account_policy, caller_policy, store_policy
from .session import translated
from .training import pods_of, templates

if TYPE_CHECKING:
    from .provider import KubernetesProvider

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_SUFFIXES = {
    "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip


def plan(provider: KubernetesProvider, experiment: Experiment, endpoint_name: str | None) -> Plan:
    """See ``BaseProvider.plan``."""
    spec = provider.checked_spec(experiment)
    job_id = job_name(experiment.name, experiment.idempotency_token)
    data = data_location(experiment)
    environment = {**experiment.environment, "NOTEBOOKED_EXPERIMENT": experiment.name}
    request = provider.request(job_id, spec, environment, sent_data(provider.storage, data))
    pod = templates(request)[0]["spec"]
    inner = pod["containers"][0]
    limits = inner["resources"]["limits"]
    facts: dict[str, str | float] = {
        "object": f"{request['apiVersion']} {request['kind']}",
        "container": inner["image"],
        "service account": provider.service_account or "the namespace's default",
        "object store": provider.storage.uri(),
        "pods": spec.instance_count,
        "each asks for": ", ".join(
            f"{value} {name}" for name, value in inner["resources"]["requests"].items()
        ),
        "each gets at most": ", ".join(f"{value} {name}" for name, value in limits.items()),
        "time limit (s)": pod["activeDeadlineSeconds"],
    }
    kserve = provider.options(experiment.options).endpoint.operator == "kserve"
    if kserve:
        facts["serves as"] = "serving.kserve.io/v1beta1 InferenceService"
    operators = {**(KUBEFLOW_RULES if _is_kubeflow(request) else {}), **(KSERVE_RULES if kserve else {})}
    items = list(_looked(provider, request, data, endpoint_name, operators))
    namespace = _namespace(provider)
    return Plan(
        provider=provider.name,
        experiment=experiment.name,
        request=_shown(request),
        files=sent_files(provider, experiment),
        facts=facts,
        items=tuple(items),
        policies={
            "caller": caller_policy(namespace, operators),
            "pods": account_policy(namespace, provider.service_account),
            "object store": store_policy(
                provider.storage.bucket,
                provider.storage.prefix,
                data if data is not None and is_url(data) else None,
            ),
        },
    )


def _namespace(provider: KubernetesProvider) -> str:
    try:
        return provider.session.namespace
    except NotebookedError:
        return "NAMESPACE"


def _shown(request: dict[str, Any]) -> dict[str, Any]:
    """The Job without secrets, and without the program that is the container's command."""
    shown = copy.deepcopy(request)
    for template in templates(shown):
        for inner in template["spec"]["containers"]:
            mask_container(inner)
    return shown


def _is_kubeflow(request: Mapping[str, Any]) -> bool:
    return bool(request["kind"] == "PyTorchJob")


def _looked(
    provider: KubernetesProvider,
    request: dict[str, Any],
    data: str | None,
    endpoint_name: str | None,
    operators: Mapping[tuple[str, str], tuple[str, ...]],
) -> Iterator[PlanItem]:
    session = provider.session
    try:
        with translated("The cluster cannot be looked at"):
            version = session.again(lambda: session.send("GET", "/version")).json()
        where = f"{session.host} ({session.context})"
    except NotebookedError as error:
        # Nothing else can be asked of it; the object store can.
        yield PlanItem("missing", f"The cluster: {error.message}", error.hint or "")
    else:
        yield PlanItem("exists", f"The cluster at {where}, Kubernetes {version.get('gitVersion', '?')}.")
        kinds = {resource for _, resource in operators}
        if "pytorchjobs" in kinds:
            what = "Kubeflow's training operator (kubeflow.org/v1 PyTorchJob)"
            yield _operator(provider, "pytorchjobs", what, no_kubeflow())
        if "inferenceservices" in kinds:
            what = "KServe (serving.kserve.io/v1beta1 InferenceService)"
            yield _operator(provider, "inferenceservices", what, no_kserve())
        yield from _permissions(provider, {**RULES, **operators})
        yield from _account(provider)
        yield from _quota(provider, request)
    yield from _store(provider)
    yield from last_items(provider, data, endpoint_name)


def _operator(provider: KubernetesProvider, kind: str, what: str, missing: ConfigError) -> PlanItem:
    try:
        with translated(f"Whether the cluster has {kind} cannot be looked at"):
            there = provider.session.serves(kind)
    except NotebookedError as error:
        return PlanItem("unknown", error.message, error.hint or "")
    if there:
        return PlanItem("exists", f"{what}.")
    return PlanItem("missing", missing.message, missing.hint or "")


def _permissions(
    provider: KubernetesProvider, rules: Mapping[tuple[str, str], tuple[str, ...]]
) -> Iterator[PlanItem]:
    denied = []
    try:
        with translated("The caller's permissions cannot be looked at"):
            for (group, resource), verbs in rules.items():
                denied += [
                    f"{verb} {resource}" for verb in verbs if not _may(provider, group, resource, verb)
                ]
    except NotebookedError as error:
        yield PlanItem("unknown", error.message, error.hint or "")
        return
    where = f"the namespace {provider.session.namespace!r}"
    if denied:
        yield PlanItem(
            "missing",
            f"The caller's permissions in {where}: not {', '.join(denied)}.",
            "`notebooked plan --policy` prints the Role.",
        )
    else:
        yield PlanItem("exists", f"The caller's permissions in {where}.")


def _may(provider: KubernetesProvider, group: str, resource: str, verb: str) -> bool:
    name, _, sub = resource.partition("/")
    asked = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {
            "resourceAttributes": {
                "namespace": provider.session.namespace,
                "group": group,
                "resource": name,
                "verb": verb,
                **({"subresource": sub} if sub else {}),
            }
        },
    }
    session = provider.session
    reply = session.again(lambda: session.send("POST", _REVIEWS, body=asked)).json()
    return bool(reply.get("status", {}).get("allowed"))


def _account(provider: KubernetesProvider) -> Iterator[PlanItem]:
    name = provider.service_account
    if name is None:
        yield PlanItem("exists", "Pods run under the namespace's default service account.")
        return
    try:
        with translated(f"The service account {name!r} cannot be looked at"):
            found = provider.session.get("serviceaccounts", name)
    except NotebookedError as error:
        yield PlanItem("unknown", error.message, error.hint or "")
        return
    if found is None:
        yield PlanItem(
            "missing",
            f"There is no service account {name!r}.",
            f"kubectl create serviceaccount {name} --namespace {provider.session.namespace}",
        )
    else:
        yield PlanItem("exists", f"The service account {name!r}.")


def _quota(provider: KubernetesProvider, request: dict[str, Any]) -> Iterator[PlanItem]:
    try:
        with translated("The namespace's quotas cannot be looked at"):
            quotas = provider.session.list("resourcequotas")
    except NotebookedError as error:
        yield PlanItem("unknown", error.message, error.hint or "")
        return
    wanted = needed(request)
    for quota in quotas:
        name, status = quota["metadata"]["name"], quota.get("status", {})
        short = []
        for key, hard in (status.get("hard") or quota["spec"].get("hard") or {}).items():
            used = (status.get("used") or {}).get(key, "0")
            if key in wanted and amount(used) + wanted[key] > amount(hard):
                short.append(f"{key} is {hard}, of which {used} are used")
        if short:
            yield PlanItem(
                "missing",
                f"The quota {name!r} does not suffice: {'; '.join(short)}.",
                "Ask for less in options.training, wait, or have it raised.",
            )
        else:
            yield PlanItem("exists", f"The quota {name!r} suffices.")


def needed(request: Mapping[str, Any]) -> dict[str, float]:
    """What a Job takes of a ResourceQuota."""
    count = pods_of(request)
    group, _, _ = request["apiVersion"].partition("/")
    found: dict[str, float] = {
        "pods": count,
        "count/pods": count,
        f"count/{request['kind'].lower()}s.{group}": 1,
    }
    asked = templates(request)[0]["spec"]["containers"][0]["resources"]
    for name, value in asked["requests"].items():
        found[f"requests.{name}"] = count * amount(value)
        if name in ("cpu", "memory", "ephemeral-storage"):
            found[name] = count * amount(value)
    found |= {f"limits.{name}": count * amount(value) for name, value in asked["limits"].items()}
    return found


def amount(quantity: str) -> float:
    """A quantity of Kubernetes as a number."""
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", quantity)
    return float(match[1]) * _SUFFIXES.get(match[2], 1.0) if match else 0.0


def _store(provider: KubernetesProvider) -> Iterator[PlanItem]:
    store = provider.storage
    try:
        store.holds(store.uri())
    except NotebookedError as error:
        gone = "NoSuchBucket" in str(error.details.get("code", ""))
        hint = f"Make the bucket {store.bucket!r}." if gone else error.hint or ""
        yield PlanItem("missing" if gone else "unknown", error.message, hint)
    else:
        yield PlanItem("exists", f"The object store {store.uri()}.")
    if store.options.access_from:
        yield PlanItem(
            "unknown",
            f"Whether there is a Secret {store.options.access_from!r} is not asked: it takes the right to read it.",
        )
