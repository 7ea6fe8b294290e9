"""Depths: the residual blocks of a stage, of which the last ones can go.

References:
    Dong, Yang, Network pruning via transformable architecture search, 2019, arXiv 1905.09717 [42],
    whose code has the odd depths and the shares.
"""

import itertools
from typing import Any, NamedTuple

from jprune import errors
from jprune.base import Groups

DEPTHS = ("odd", "even", "every")
"""Which depths of a stage are candidates."""


def candidate_depths(blocks: int, shares: int | None = None) -> tuple[int, ...]:
    """Depths of a stage of so many blocks: the odd ones, and all; or so many even shares.

    Up to three blocks all depths are candidates.

    Example:
        >>> candidate_depths(9), candidate_depths(4), candidate_depths(6, shares=3)
        ((1, 3, 5, 7, 9), (1, 3, 4), (2, 4, 6))
    """
    if shares is None:
        return tuple(sorted({*range(1, blocks + 1, 1 if blocks <= 3 else 2), blocks}))
    # int(n j / m), j = 1..m
    return tuple(sorted({max(1, blocks * j // shares) for j in range(1, shares + 1)}))


class Depths(NamedTuple):
    """The last residual blocks of a stage, which can go.

    Attributes:
        branches: names of their branches, in execution order.
        menu: how many of them may stay, rising.
    """

    branches: tuple[str, ...]
    menu: tuple[int, ...]


def depth_menus(groups: Groups, kind: str = "odd") -> dict[str, Depths]:
    """{the first branch that can go: depths} of every stage that has a choice.

    A stage is the residual sums with the same groups at as many positions. Its first block stays.

    Args:
        groups: from `trace`.
        kind: "odd" depths and all of a stage, "even" shares, as many as the shallowest stage has
            blocks, or "every" depth.

    Raises:
        ArgumentError: another kind.
    """
    errors.check_words("depth_menus", ("kind", kind, DEPTHS))
    stages: dict[Any, list[str]] = {}
    for site in groups.sites:
        if site.kind == "join":
            where = site.groups, groups.layers[site.kernel].positions
            stages.setdefault(where, []).append(f"branch/{site.layer}")
    can_go = {branch.name for branch in groups.branches}
    shallowest = min(map(len, stages.values()), default=1)
    menus = {}
    for names in stages.values():
        shares = {"odd": None, "even": shallowest, "every": len(names)}[kind]
        last = [*itertools.takewhile(can_go.__contains__, reversed(names[1:]))][::-1]
        stay = len(names) - len(last)
        counts = tuple(n - stay for n in candidate_depths(len(names), shares) if n >= stay)
        if len(counts) > 1:
            menus[last[0]] = Depths(tuple(last), counts)
    return menus
