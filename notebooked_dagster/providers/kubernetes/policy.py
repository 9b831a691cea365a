"""The least that the caller and the pods have to be allowed: a Role, a ServiceAccount, and the folder in the object store.

The verbs are those of the calls that the provider makes, which the tests count; no cluster's authorizer has judged the Role.
`notebooked plan` asks the cluster what the caller has of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By API group and resource. Pods are made by controllers, never by us.
RULES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("batch", "jobs"): ("create", "delete", "get", "list"),
    ("", "pods"): ("list",),
    ("", "pods/log"): ("get",),
    # A new version is asked the model's own example before it serves.
    ("", "pods/proxy"): ("create",),
    ("", "services"): ("create", "delete", "get", "list", "patch"),
    ("", "services/proxy"): ("create",),
    ("", "events"): ("list",),
    ("apps", "deployments"): ("create", "delete", "get", "list", "patch"),
    ("autoscaling", "horizontalpodautoscalers"): ("create",),
    ("networking.k8s.io", "ingresses"): ("create", "delete", "patch"),
}
# Where options.training.operator is `kubeflow`.
KUBEFLOW_RULES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("kubeflow.org", "pytorchjobs"): ("create", "delete", "get", "list"),
}
# Where options.endpoint.operator is `kserve`; a version is held by a PodTemplate.
KSERVE_RULES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("serving.kserve.io", "inferenceservices"): ("create", "delete", "get", "update"),
    ("", "podtemplates"): ("create", "delete", "get", "list"),
}
# For `notebooked plan` alone.
PLAN_RULES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("", "resourcequotas"): ("list",),
    ("", "serviceaccounts"): ("get",),
}
_NAME = "notebooked-dagster"


def caller_policy(namespace: str, operators: Mapping[tuple[str, str], tuple[str, ...]]) -> dict[str, Any]:
    """What the identity needs that runs Dagster: a Role, and the binding that gives it.

    Args:
        namespace: Where everything goes.
        operators: The rules of those that train and serve.
    """
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
        for (group, resource), verbs in {**RULES, **operators, **PLAN_RULES}.items()
    ]
    meta = {"name": _NAME, "namespace": namespace}
    return {
        "role": {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": meta,
            "rules": rules,
        },
        "binding": {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": _NAME},
            # Whoever runs Dagster: a user, a group, or as here the account of its pods.
            "subjects": [{"kind": "ServiceAccount", "name": "dagster", "namespace": namespace}],
        },
    }


def account_policy(namespace: str, account: str | None) -> dict[str, Any]:
    """What training and serving run under: an account without any rights in the cluster."""
    return {
        "service account": {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": account or "default", "namespace": namespace},
            "automountServiceAccountToken": False,
        }
    }


def store_policy(bucket: str, prefix: str, data: str | None) -> dict[str, Any]:
    """What the caller and the pods need in the object store, in the form that S3 and MinIO take."""
    statements: list[dict[str, Any]] = [
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
            "Resource": f"arn:aws:s3:::{bucket}/{prefix}/*",
        },
        {
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": f"arn:aws:s3:::{bucket}",
            "Condition": {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}},
        },
    ]
    if data is not None and not data.startswith(f"s3://{bucket}/{prefix}/"):
        place, _, key = data.removeprefix("s3://").partition("/")
        statements += [
            {
                "Effect": "Allow",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{place}/{key.rstrip('/')}*",
            },
            {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{place}"},
        ]
    return {"Version": "2012-10-17", "Statement": statements}
