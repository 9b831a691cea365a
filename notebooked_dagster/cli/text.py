"""Values as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

_DIGITS = 5


def number(value: float) -> str:
    """A number in five significant digits, written out where that is readable: ``12346``, ``0.93333``, ``1.2e-09``."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    if not 1e-5 <= abs(value) < 1e12:
        return f"{value:.{_DIGITS}g}"
    text = format(Decimal(f"{value:.{_DIGITS - 1}e}"), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def metrics_text(metrics: Mapping[str, float] | None) -> str:
    """Metrics in a line."""
    return ", ".join(f"{name} {number(value)}" for name, value in (metrics or {}).items())
