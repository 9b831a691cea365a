"""What machines cost, to estimate what a job did.

US East, on demand, USD an hour, as AWS's price page (aws.amazon.com/sagemaker/pricing) is quoted in the public repositories
``ZindiAfrica/AI-for-Equity-Challenges-Getting-Started-with-AWS-Resources`` and ``goerlitz/nlp-classification``, read
2026-11-21. Prices move and differ by region: ``aws.prices`` in config.yaml holds yours, and wins.
"""

from __future__ import annotations

from collections.abc import Mapping

AS_OF = "2026-11-21"
REGION = "us-east"
_HOUR = {
    "ml.t3.medium": 0.05,
    "ml.t3.large": 0.10,
    "ml.t3.xlarge": 0.20,
    "ml.t3.2xlarge": 0.399,
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.r5.2xlarge": 0.605,
    "ml.r5.4xlarge": 1.21,
    "ml.g4dn.xlarge": 0.7364,
    "ml.g4dn.2xlarge": 0.94,
    "ml.g4dn.4xlarge": 1.505,
    "ml.g4dn.8xlarge": 2.72,
    "ml.g4dn.12xlarge": 4.89,
    "ml.g5.xlarge": 1.4084,
    "ml.g5.2xlarge": 1.515,
    "ml.p3.2xlarge": 3.825,
    "ml.p3.8xlarge": 14.688,
}


def hourly(instance_type: str, own: Mapping[str, float]) -> float | None:
    """USD an hour for one machine; None where nothing is known."""
    return own.get(instance_type, _HOUR.get(instance_type))


def cost(instance_type: str, seconds: float, own: Mapping[str, float]) -> float | None:
    """USD for so many seconds of one machine; None where nothing is known."""
    price = hourly(instance_type, own)
    return None if price is None else price * seconds / 3600
