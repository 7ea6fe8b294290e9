"""How many entries are kept: exact counts, floors, multiples."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune.base import Budget


def kept(size: int, density: Any) -> Any:
    """N - round((1 - density) n), halves to even; works on a traced density.

    A half is a half of the decimal number that was meant: 1 - 0.9 is a little less than 0.1, and
    1.5 of 15 are still rounded to 2.

    Example:
        >>> int(kept(10, 0.75)), int(kept(15, 0.9))
        (8, 13)
    """
    if isinstance(density, (int, float, np.floating)):
        return size - np.round(np.round((1 - density) * size, 9)).astype(int)
    return size - jnp.round((1 - density) * size).astype(int)


def step_of(size: int, budget: Budget) -> int:
    """Widths of a group of this size are multiples of this (its whole size is allowed too)."""
    multiple = budget.multiple_of
    return multiple if size >= multiple else math.gcd(size, multiple)


def floor_of(name: str | None, size: int, budget: Budget) -> int:
    """The smallest width that a group may keep."""
    wanted = max(budget.min_units, budget.floors.get(name, 0) if name is not None else 0)
    step = step_of(size, budget)
    return min(size, math.ceil(wanted / step) * step)


def rounded(count: Any, size: int, floor: int, step: int) -> Any:
    """The allowed width nearest to `count`: a multiple of `step`, or the whole size."""
    numbers = np if isinstance(count, (int, np.integer)) else jnp
    nearest = numbers.floor(count / step + 0.5).astype(int) * step
    # The whole size is a neighbour too where it is no multiple itself.
    last = (size // step) * step
    beyond = numbers.where(2 * count >= last + size, size, last)
    width = numbers.where(nearest >= last, numbers.where(count > last, beyond, nearest), nearest)
    return numbers.clip(width, floor, size)


def widths(size: int, floor: int, step: int) -> Sequence[int]:
    """All allowed widths of a group, in rising order."""
    multiples = [width for width in range(step, size + 1, step) if width >= floor]
    return sorted({*multiples, size})
