"""The least that the caller and the service account have to be allowed, as custom roles and who gets them where.

The permissions are those that the IAM reference of Vertex AI, Cloud Storage and Cloud Logging names for the methods that the
provider calls. No IAM has judged these roles here; `notebooked plan` asks what the caller has of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By the method of the API that needs it; a method that needs none of its own is not here.
VERTEX_PERMISSIONS: Mapping[str, str] = {
    "create_custom_job": "aiplatform.customJobs.create",
    "get_custom_job": "aiplatform.customJobs.get",
    "list_custom_jobs": "aiplatform.customJobs.list",
    "cancel_custom_job": "aiplatform.customJobs.cancel",
    "upload_model": "aiplatform.models.upload",
    "get_model": "aiplatform.models.get",
    "list_models": "aiplatform.models.list",
    "delete_model": "aiplatform.models.delete",
    "create_endpoint": "aiplatform.endpoints.create",
    "get_endpoint": "aiplatform.endpoints.get",
    "list_endpoints": "aiplatform.endpoints.list",
    "update_endpoint": "aiplatform.endpoints.update",
    "delete_endpoint": "aiplatform.endpoints.delete",
    "deploy_model": "aiplatform.endpoints.deploy",
    "undeploy_model": "aiplatform.endpoints.undeploy",
    "rawPredict": "aiplatform.endpoints.predict",
}
LOG_PERMISSIONS = ("logging.logEntries.list",)
BUCKET_PERMISSIONS = (
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.list",
    # For `notebooked plan` alone, which looks where the bucket is.
    "storage.buckets.get",
)
CALLER_PERMISSIONS = (*VERTEX_PERMISSIONS.values(), *LOG_PERMISSIONS)
ACT_AS = "iam.serviceAccounts.actAs"
# To write over a file through the mount takes `delete`.
_MOUNTED = ("storage.objects.create", "storage.objects.delete", "storage.objects.get")


def caller_policy(project: str, bucket: str, prefix: str, account: str | None) -> dict[str, Any]:
    """What the identity needs that runs Dagster."""
    found: dict[str, Any] = {
        "on the project": {
            "where": f"projects/{project}",
            "role": _role("notebooked caller", CALLER_PERMISSIONS),
        },
        "on the bucket": _in_folder(bucket, prefix, BUCKET_PERMISSIONS[:4]),
        "on the bucket, to look at it": {"where": f"gs://{bucket}", "role": "roles/storage.bucketViewer"},
    }
    if account is not None:
        found["on the service account"] = {
            "where": f"projects/{project}/serviceAccounts/{account}",
            "role": "roles/iam.serviceAccountUser",
        }
    return found


def account_policy(project: str, bucket: str, prefix: str, data: str | None) -> dict[str, Any]:
    """What the service account needs that training and serving run under."""
    found: dict[str, Any] = {
        "on the project": {"where": f"projects/{project}", "role": "roles/logging.logWriter"},
        "on the bucket": _in_folder(bucket, prefix, _MOUNTED),
        # Without condition: Cloud Storage FUSE lists a bucket's top before it mounts it.
        "on the bucket, to mount it": {
            "where": f"gs://{bucket}",
            "role": _role("notebooked mount", ("storage.objects.list",)),
        },
    }
    if data is not None and data.startswith("gs://") and not data.startswith(f"gs://{bucket}/{prefix}/"):
        found["on the data"] = {
            "where": f"gs://{data.removeprefix('gs://').partition('/')[0]}",
            "role": "roles/storage.objectViewer",
        }
    return found


def _role(title: str, permissions: tuple[str, ...]) -> dict[str, Any]:
    """A custom role, as ``gcloud iam roles create --file`` takes it."""
    return {"title": title, "stage": "GA", "includedPermissions": sorted(permissions)}


def _in_folder(bucket: str, prefix: str, permissions: tuple[str, ...]) -> dict[str, Any]:
    folder = f"projects/_/buckets/{bucket}/objects/{prefix}/"
    return {
        "where": f"gs://{bucket}",
        "role": _role("notebooked folder", permissions),
        "condition": {
            "title": "our folder",
            # A list is asked of the bucket; its prefix is an attribute of the request.
            "expression": f'resource.name.startsWith("{folder}") || '
            f"api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('{prefix}/')",
        },
    }
