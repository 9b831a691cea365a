"""What the processes that we start see of our environment."""

from __future__ import annotations

from notebooked_dagster.core.environment import inherited


def test_a_training_knows_its_commit_and_no_key() -> None:
    parent = {
        "PATH": "/bin",
        "NOTEBOOKED_COMMIT": "4ca36d3",
        "NOTEBOOKED_DATABASE_URL": "postgresql://u:s3cr3t@db/x",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        "MLFLOW_TRACKING_PASSWORD": "s3cr3t",
        "https_proxy": "http://u:s3cr3t@proxy",
    }
    assert inherited(parent) == {"PATH": "/bin", "NOTEBOOKED_COMMIT": "4ca36d3"}
    assert "AWS_SECRET_ACCESS_KEY" in inherited(parent, ["AWS_*"])
