"""Numbers as people read them; None is "not measured" everywhere."""

from collections.abc import Mapping
from typing import Any

import numpy as np

NOT_MEASURED = "not measured"
KINDS = {
    "params": "parameters",
    "macs": "MACs",
    "bytes": "file size",
    "density": "density",
    "latency": "latency",
    "energy": "energy",
    "traffic": "bytes moved",
}
"""What is counted, by its key, as it stands inside a sentence."""
_PREFIXES = ((1e9, " G"), (1e6, " M"), (1e3, " k"))


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage.

    Example:
        >>> percent(0.4985), percent(None)
        ('49.9 %', 'not measured')
    """
    return NOT_MEASURED if fraction is None else f"{100 * fraction:.{digits}f} %"


def count(number: float | None, unit: str = "") -> str:
    """A count to three digits, with k, M or G.

    Example:
        >>> count(269722), count(12_500_000), count(640), count(310_400, "B")
        ('270 k', '12.5 M', '640', '310 kB')
    """
    if number is None:
        return NOT_MEASURED
    for factor, prefix in _PREFIXES:
        # 999,600 has three digits as 1.00 M, not as 1000 k.
        if abs(number) >= factor * 0.9995:
            return f"{significant(number / factor)}{prefix}{unit}"
    return f"{number:.0f} {unit}".strip()


def milliseconds(value: float | None) -> str:
    """A time in ms, to three digits.

    Example:
        >>> milliseconds(0.5931), milliseconds(12.34), milliseconds(139.4)
        ('0.593 ms', '12.3 ms', '139 ms')
    """
    return NOT_MEASURED if value is None else f"{significant(value)} ms"


def seconds(value: float | None) -> str:
    """A stage's time, in the unit that suits it.

    Example:
        >>> seconds(0.213), seconds(48.1), seconds(192)
        ('0.2 s', '48 s', '3 min 12 s')
    """
    if value is None:
        return NOT_MEASURED
    if value < 10:
        return f"{value:.1f} s"
    # Rounded first, or 59.7 s would be "60 s" and not "1 min".
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


def difference(after: float | None, before: float | None, scale: float = 1, digits: int = 3) -> str:
    """A signed difference, with a true minus sign.

    Example:
        >>> difference(0.977, 0.983, scale=100, digits=1), difference(None, 1.0)
        ('−0.6', 'not measured')
    """
    if after is None or before is None:
        return NOT_MEASURED
    text = f"{scale * (after - before):+.{digits}f}"
    # "-0.0" rounds to nothing: then the sign goes too.
    return text.replace("-", "−") if float(text) else text[1:]


def ratio(after: float | None, before: float | None) -> float | None:
    """`after / before`; None where either is not measured."""
    # 0 cannot be divided by, and a dense net with nothing to count was not measured.
    return after / before if after is not None and before else None


def significant(number: float) -> str:
    """Three significant digits without an exponent.

    Example:
        >>> significant(0.05931), significant(1.5), significant(998.7)
        ('0.0593', '1.50', '999')
    """
    text = np.format_float_positional(number, 3, unique=False, fractional=False, trim="k")
    return text.rstrip(".")


def budget(requested: Mapping[str, float]) -> str:
    """What was asked for, inside a sentence.

    Example:
        >>> budget({"macs": 0.5})
        '50 % of the MACs'
    """
    parts = [
        f"{100 * value:.3g} % of the {KINDS.get(kind, kind)}" for kind, value in requested.items()
    ]
    return " and ".join(parts)


def plain(value: Any) -> str:
    """A setting as text.

    Example:
        >>> plain(None), plain(True), plain([1, 2])
        ('none', 'yes', '1, 2')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return str(value)


def decimal(number: float | None) -> str:
    """A loss, to four decimals.

    Example:
        >>> decimal(0.07941)
        '0.0794'
    """
    return NOT_MEASURED if number is None else f"{number:.4f}"
