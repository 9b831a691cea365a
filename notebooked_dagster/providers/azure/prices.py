"""What machines cost, to estimate what a job did.

US, Linux, pay as you go, USD an hour, as Azure's price page is quoted in the public repository ``RMRanjit/SUNA-UI``
(July 2023), read 2026-11-21. Prices move and differ by region: ``azure.prices`` in config.yaml holds yours, and wins.
"""

from __future__ import annotations

from collections.abc import Mapping

AS_OF = "2023-07"
REGION = "US"
_HOUR = {
    "Standard_DS1_v2": 0.073,
    "Standard_DS2_v2": 0.146,
    "Standard_DS3_v2": 0.293,
    "Standard_DS4_v2": 0.585,
    "Standard_DS11_v2": 0.185,
    "Standard_DS12_v2": 0.371,
    "Standard_D2as_v4": 0.096,
    "Standard_D4as_v4": 0.192,
    "Standard_D8as_v4": 0.384,
    "Standard_D2s_v3": 0.096,
    "Standard_D4s_v3": 0.192,
    "Standard_D8s_v3": 0.384,
    "Standard_D2s_v5": 0.096,
    "Standard_D4s_v5": 0.192,
    "Standard_D8s_v5": 0.384,
    "Standard_E4s_v3": 0.252,
    "Standard_F4s_v2": 0.169,
    "Standard_F8s_v2": 0.338,
    "Standard_NC4as_T4_v3": 0.526,
    "Standard_NC8as_T4_v3": 0.752,
    "Standard_NC6s_v3": 3.06,
    "Standard_NC12s_v3": 6.12,
    "Standard_NC24s_v3": 12.24,
    "Standard_NC24ads_A100_v4": 3.673,
}


def hourly(instance_type: str, own: Mapping[str, float]) -> float | None:
    """USD an hour for one machine; None where nothing is known."""
    return own.get(instance_type, _HOUR.get(instance_type))


def cost(instance_type: str, seconds: float, own: Mapping[str, float]) -> float | None:
    """USD for so many seconds of one machine; None where nothing is known."""
    price = hourly(instance_type, own)
    return None if price is None else price * seconds / 3600
