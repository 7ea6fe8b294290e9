"""How many entries are kept: exact counts, floors, multiples."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune.base import Budget


def kept_count(size: int, density: Any) -> Any:
    """N - round((1 - density) n), halves to even; works on a traced density.

    Halves are judged by the decimal number that was written: in floats 1 - 0.9 is a little less
    than 0.1, but 1.5 of 15 are still rounded to 2.

    Example:
        >>> int(kept_count(10, 0.75)), int(kept_count(15, 0.9))
        (8, 13)
    """
    if isinstance(density, (int, float, np.floating)):
        # The inner rounding, to 9 digits, turns 1.4999999999999998 back into 1.5.
        return size - np.round(np.round((1 - density) * size, 9)).astype(int)
    return size - jnp.round((1 - density) * size).astype(int)


def step_of(size: int, budget: Budget) -> int:
    """The step between allowed widths of a group of this size; the whole size is allowed too."""
    # A group smaller than the multiple keeps what divides both: 12 channels at multiples of 16 go
    # in steps of 4.
    multiple = budget.multiple_of
    return multiple if size >= multiple else math.gcd(size, multiple)


def floor_of(name: str | None, size: int, budget: Budget) -> int:
    """The smallest width that a group may keep, rounded up to its step."""
    wanted = max(budget.min_units, budget.floors.get(name, 0) if name is not None else 0)
    step = step_of(size, budget)
    return min(size, math.ceil(wanted / step) * step)


def rounded(count: Any, size: int, floor: int, step: int) -> Any:
    """The allowed width nearest to `count`: a multiple of `step`, or the whole size."""
    numbers = np if isinstance(count, (int, np.integer)) else jnp
    nearest = numbers.floor(count / step + 0.5).astype(int) * step
    # Where the whole size is no multiple, it is an allowed width above the last one: 4, 8, 10 for
    # size 10 and step 4; a count of 9 is half way between 8 and 10 and gives 10.
    last = (size // step) * step
    beyond = numbers.where(2 * count >= last + size, size, last)
    width = numbers.where(nearest >= last, numbers.where(count > last, beyond, nearest), nearest)
    return numbers.clip(width, floor, size)


def widths(size: int, floor: int, step: int) -> Sequence[int]:
    """All allowed widths of a group, in rising order."""
    multiples = [width for width in range(step, size + 1, step) if width >= floor]
    return sorted({*multiples, size})
