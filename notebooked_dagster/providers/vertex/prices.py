"""What machines cost, to estimate what a job did.

Custom training in us-central1, USD an hour, as Google's price page (cloud.google.com/vertex-ai/pricing) has it: n1-standard-4
and e2-standard-4 as public repositories quote it in September 2026, the larger machines of a family reckoned in proportion to
their CPUs. Prices move and differ by region: ``gcp.prices`` in config.yaml holds yours, and wins; a machine
or GPU that is not here has no price until it has one there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

AS_OF = "2026-09-08"
REGION = "us-central1"
# USD an hour for one CPU of a family, with its memory.
_FAMILIES = {"n1-standard": 0.21849885 / 4, "e2-standard": 0.154126276 / 4}


def hourly(
    machine: str, accelerator: str | None, accelerators: int, own: Mapping[str, float]
) -> float | None:
    """USD an hour for one machine with its GPUs; None where nothing is known."""
    price = own.get(machine)
    if price is None and (match := re.fullmatch(r"([a-z0-9]+-[a-z]+)-(\d+)", machine)):
        per_cpu = _FAMILIES.get(match[1])
        price = None if per_cpu is None else per_cpu * int(match[2])
    if price is None or not accelerator:
        return price
    return None if accelerator not in own else price + own[accelerator] * accelerators


def cpus(machine: str) -> int | None:
    """How many CPUs a machine has, as far as its name says."""
    match = re.search(r"-(?:standard|highmem|highcpu|ultramem|megamem)-(\d+)$", machine)
    return int(match[1]) if match else None
