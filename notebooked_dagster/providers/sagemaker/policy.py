"""The least that the caller and the execution role have to be allowed, as IAM policies.

The actions are the operations that the provider calls, by the names botocore has for them; what resources each knows is
AWS's Service Authorization Reference. No IAM has judged these policies here; `notebooked plan` has it judge the caller's.
"""

from __future__ import annotations

from typing import Any

CALLER_ACTIONS = (
    "sagemaker:CreateTrainingJob",
    "sagemaker:DescribeTrainingJob",
    "sagemaker:ListTrainingJobs",
    "sagemaker:StopTrainingJob",
    "sagemaker:CreateModel",
    "sagemaker:DeleteModel",
    "sagemaker:ListModels",
    "sagemaker:CreateEndpointConfig",
    "sagemaker:DescribeEndpointConfig",
    "sagemaker:DeleteEndpointConfig",
    "sagemaker:ListEndpointConfigs",
    "sagemaker:CreateEndpoint",
    "sagemaker:DescribeEndpoint",
    "sagemaker:UpdateEndpoint",
    "sagemaker:UpdateEndpointWeightsAndCapacities",
    "sagemaker:DeleteEndpoint",
    "sagemaker:ListEndpoints",
    "sagemaker:InvokeEndpoint",
    "sagemaker:AddTags",
    "sagemaker:ListTags",
)
# These know no resource.
_LISTS = tuple(
    action
    for action in CALLER_ACTIONS
    if action.startswith("sagemaker:List") and action != "sagemaker:ListTags"
)


def caller_policy(
    partition: str, region: str, account: str, bucket: str, prefix: str, role: str, *, autoscaling: bool
) -> dict[str, Any]:
    """What the identity needs that runs Dagster."""
    base = f"arn:{partition}:sagemaker:{region}:{account}"
    named = [f"{base}:{kind}/nbd-*" for kind in ("training-job", "model", "endpoint", "endpoint-config")]
    statements: list[dict[str, Any]] = [
        _allow("OurJobsAndEndpoints", [a for a in CALLER_ACTIONS if a not in _LISTS], named),
        _allow("Lists", list(_LISTS), ["*"]),
        {
            **_allow("HandTheRoleToSageMaker", ["iam:PassRole"], [role]),
            "Condition": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
        },
        _allow(
            "OurFolder",
            ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
            [f"arn:{partition}:s3:::{bucket}/{prefix}/*"],
        ),
        _list_folder(partition, bucket, prefix),
        _allow(
            "Logs",
            ["logs:DescribeLogStreams", "logs:GetLogEvents"],
            [f"arn:{partition}:logs:{region}:{account}:log-group:/aws/sagemaker/*"],
        ),
    ]
    if autoscaling:
        statements.append(
            _allow(
                "Scaling",
                [
                    "application-autoscaling:RegisterScalableTarget",
                    "application-autoscaling:DeregisterScalableTarget",
                    "application-autoscaling:PutScalingPolicy",
                ],
                ["*"],
            )
        )
    return {"Version": "2012-10-17", "Statement": statements}


def role_policy(
    partition: str, region: str, account: str, bucket: str, prefix: str, data: str | None
) -> dict[str, Any]:
    """What the execution role needs: it reads scripts and data, writes models and logs, and pulls the container."""
    statements = [
        _allow("OurFolder", ["s3:GetObject", "s3:PutObject"], [f"arn:{partition}:s3:::{bucket}/{prefix}/*"]),
        _list_folder(partition, bucket, prefix),
        _allow(
            "Logs",
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"],
            [f"arn:{partition}:logs:{region}:{account}:log-group:/aws/sagemaker/*"],
        ),
        _allow(
            "Container",
            [
                "ecr:GetAuthorizationToken",
                "ecr:BatchCheckLayerAvailability",
                "ecr:GetDownloadUrlForLayer",
                "ecr:BatchGetImage",
            ],
            ["*"],
        ),
        _allow("Metrics", ["cloudwatch:PutMetricData"], ["*"]),
    ]
    if data is not None and data.startswith("s3://") and not data.startswith(f"s3://{bucket}/{prefix}/"):
        other, _, key = data.removeprefix("s3://").partition("/")
        statements.append(_allow("Data", ["s3:GetObject"], [f"arn:{partition}:s3:::{other}/{key}*"]))
        statements.append(_allow("DataList", ["s3:ListBucket"], [f"arn:{partition}:s3:::{other}"]))
    return {"Version": "2012-10-17", "Statement": statements}


def trust_policy() -> dict[str, Any]:
    """Who may take the execution role."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "sagemaker.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }


def _allow(sid: str, actions: list[str], resources: list[str]) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}


def _list_folder(partition: str, bucket: str, prefix: str) -> dict[str, Any]:
    return {
        **_allow("ListOurFolder", ["s3:ListBucket"], [f"arn:{partition}:s3:::{bucket}"]),
        "Condition": {"StringLike": {"s3:prefix": [f"{prefix}/*"]}},
    }
