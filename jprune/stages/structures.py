"""Which groups of weights a method makes sparse: words of the command line, masks, budgets.

A *kind* is one way to group weights; a method may take several, written "filter+column". What is
alive is held as {kind: {block: bool [groups]}} and becomes masks in one place, where filters that
nothing reads, channels that nothing makes and branches that are empty meet.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jprune import allocate, errors
from jprune.allocate import price_of
from jprune.base import Budget, Groups, Masks, PyTree, Task
from jprune.blocks.members import (
    Block,
    Blocks,
    along,
    branch_blocks,
    grain_blocks,
    squares,
    unit_blocks,
)
from jprune.masks import density, intersect
from jprune.stages.walk import plain_layers
from jprune.train.net import Net, are_units, of_single_weights, per_kernel, standing
from jprune.units import expand, ones

Alive = Mapping[str, Mapping[str, np.ndarray]]
"""{kind: {block: bool [groups]}}."""


Scores = Mapping[str, Mapping[str, np.ndarray]]
"""{kind: {block: [groups]}}, -inf where a group is gone."""


UNITS = ("filter", "channel")


AFFINE = ("scale", "shift")
"""Roles of what a filter has beside its kernels."""


GRAINS = {"shape": ("d", "h", "w", "in"), "column": ("d", "h", "w", "in"),
          "weight": ("d", "h", "w", "in", "out")}  # fmt: skip
"""Axes along which the groups of one kernel differ; "shape" is SSL's word for columns."""


ALLOCATORS = {"uniform": allocate.uniform, "global_topk": allocate.global_topk}


def kinds_of(text: str, known: Sequence[str], option: str) -> tuple[str, ...]:
    """Kinds from "filter+column".

    Raises:
        ArgumentError: an unknown kind, one that is named twice, or depth with a pattern.

    Example:
        >>> kinds_of("filter+column", ("filter", "column"), "groups")
        ('filter', 'column')
    """
    kinds = tuple(text.split("+"))
    if len(set(kinds)) < len(kinds) or not set(kinds) <= set(known):
        raise errors.ArgumentError(
            f"{option}={text!r}; write one of {', '.join(known)}, or several with '+' between."
        )
    if "depth" in kinds and set(kinds) & set(GRAINS):
        raise errors.ArgumentError(
            f"{option}={text!r}: a pattern makes masks of weights, which hold no branches. Write "
            "'depth' alone or with 'filter' or 'channel'."
        )
    return kinds


def blocks_of(
    task: Task,
    kind: str,
    budget: Budget,
    names: Sequence[str] | None = None,
    beside: Sequence[str] = (),
) -> dict[str, Block]:
    """The groups of a kind, but for those that the budget's floors leave whole.

    Args:
        task: of the net.
        kind: "filter", "channel", "shape", "column", "weight" or "depth".
        budget: whose floors are read.
        names: of engine groups, branches or kernels; None: all.
        beside: of `AFFINE`, what counts beside the kernels of a filter (of a branch: "scale"); the
            rest follows.

    Raises:
        FrozenError: a name is frozen.
        StructureError: an unknown name, or no group of this kind.
    """
    groups = Net(task).groups
    if kind == "depth":
        return branch_blocks(groups, names, "scale" in beside)
    if kind in UNITS:
        following = tuple(role for role in AFFINE if role not in beside)
        roles = {"filter": (("kernel", *beside), following), "channel": (("in",), ())}[kind]
        found = unit_blocks(groups, names, *roles)
        found = {n: b for n, b in found.items() if budget.floors.get(n, 0) < b.size}
    else:
        found = grain_blocks(groups, _kernels(task, kind, budget, names), GRAINS[kind])
    if not found:
        raise errors.StructureError(
            f"{task.name} has no {kind} to make sparse: see jprune.trace(...).frozen for the "
            "reasons, and the budget's floors."
        )
    return found


def blocks_by_kind(
    task: Task,
    kinds: Sequence[str],
    budget: Budget,
    names: Sequence[str] | None = None,
    beside: Sequence[str] = (),
) -> dict[str, Blocks]:
    """{kind: its groups}, as `blocks_of` has them; of the names, a kind takes those it knows.

    Raises:
        FrozenError: a name is frozen.
        StructureError: a name that no kind knows, or a kind without one.
    """
    if names is None:
        return {kind: blocks_of(task, kind, budget, None, beside) for kind in kinds}
    known = {kind: _known(task, kind, budget) for kind in kinds}
    unknown = [name for name in names if not any(name in mine for mine in known.values())]
    taken = {kind: [name for name in names if name in mine] for kind, mine in known.items()}
    return {
        kind: blocks_of(task, kind, budget, unknown or taken[kind] or names, beside)
        for kind in kinds
    }


def _known(task: Task, kind: str, budget: Budget) -> tuple[str, ...]:
    """Names of a kind's blocks."""
    groups = Net(task).groups
    if kind in UNITS:
        return groups.names
    if kind == "depth":
        return tuple(branch.name for branch in groups.branches)
    return _kernels(task, kind, budget, None)


def least_of(budget: Budget, kind: str, name: str) -> int:
    """How many groups of a block stay whatever happens; floors are those of units."""
    return max(budget.min_units, budget.floors.get(name, 0) if kind in UNITS else 0)


def _kernels(task: Task, kind: str, budget: Budget, names: Sequence[str] | None) -> tuple[str, ...]:
    """Paths of the kernels whose weights are grouped, in execution order."""
    masks = Net(task).prunable(None, budget)
    kernels = Net(task).kernels(masks)
    if kind != "weight":  # a column is one only where a kernel's inputs are contracted
        kernels = tuple(path for path in kernels if path in plain_layers(Net(task).groups))
    if names is None:
        return kernels
    if unknown := [name for name in names if name not in kernels]:
        raise errors.StructureError(
            f"{unknown[0]!r} is no kernel with {kind}s; {errors.nearest(unknown[0], kernels)}"
            f"the kernels are {', '.join(kernels)}."
        )
    return tuple(path for path in kernels if path in names)


def numbers_of(text: str | float, kinds: Sequence[str], blocks: Mapping[str, Blocks], option: str):
    """{kind: {block: number}} from "0.5", "0.5+0.3" (a kind each) or "0.4:1+0.3" (a block each).

    Raises:
        ArgumentError: not as many numbers as there are kinds, or blocks of a kind.
    """
    words = str(text).split("+")
    words = words * len(kinds) if len(words) == 1 else words
    if len(words) != len(kinds):
        raise errors.ArgumentError(
            f"{option}={text!r}; write one number, or one for each of {', '.join(kinds)} with '+' "
            "between."
        )
    return {kind: per_kernel(word, tuple(blocks[kind]), option) for kind, word in zip(kinds, words)}


def paths_of(task: Task) -> PyTree:
    """A tree like the trained parameters, of their paths among the variables."""
    return task.split(Net(task).tree({path: path for path in Net(task).groups.leaves}))[0]


def masks_of(task: Task, alive: Alive, before: Masks = None) -> Masks:
    """Masks from what is alive: of units and branches, or of weights where patterns are among it.

    A unit goes if its filter or its channel does. A group without units goes with the branch that
    it is in.

    Args:
        task: of the net.
        alive: groups of every kind.
        before: masks from before, of weights or units.

    Raises:
        BudgetError: a group is empty and in no branch: nothing would pass.
    """
    groups = Net(task).groups
    units, patterns = _units(groups, alive), _patterns(task, alive)
    if before is None or are_units(groups, before):
        for name, mask in (before or {}).items():
            units[name] = np.asarray(mask, bool) & units.get(name, True)
        return units if patterns is None else intersect(patterns, expand(groups, units))
    weights = intersect(before, expand(groups, units))
    return weights if patterns is None else intersect(weights, patterns)


def _units(groups: Groups, alive: Alive) -> dict[str, np.ndarray]:
    units = ones(groups)
    for kind in UNITS:
        for name, mask in alive.get(kind, {}).items():
            units[name] = units[name] & np.asarray(mask, bool)
    gone = {name: mask for name, mask in alive.get("depth", {}).items()}
    for name in [name for name, mask in units.items() if not mask.any()]:
        leaves = {place.leaf for place in groups.places[name]}
        around = [branch for branch in groups.branches if leaves <= set(branch.leaves)]
        if not around:
            raise errors.BudgetError(
                f"no unit of {name} is left: nothing passes through it. Write a smaller strength, "
                "fewer epochs, or a floor for this group."
            )
        gone[min(around, key=lambda branch: len(branch.leaves)).name] = np.zeros(1, bool)
    for name in {*groups.names} - {*standing(groups, gone)}:
        units[name] = np.ones(groups.sizes[name], bool)
    return units | {name: np.asarray(mask, bool) for name, mask in gone.items()}


def _patterns(task: Task, alive: Alive) -> Masks:
    groups, found = Net(task).groups, {}
    for kind in GRAINS:
        given = alive.get(kind, {})
        for path, block in (
            grain_blocks(groups, list(given), GRAINS[kind]) if given else {}
        ).items():
            shape = groups.leaves[path].shape
            mask = along(block.members[0], shape, np.asarray(given[path], bool), True)
            mask = np.broadcast_to(np.asarray(mask), shape)
            found[path] = mask & found.get(path, True)
    return Net(task).tree(found) if found else None


def fraction_kept(task: Task, masks: Masks, budget: Budget) -> float:
    """What masks keep, in the budget's unit."""
    if budget.kind == "density":
        return density(masks)
    price = price_of(ones(Net(task).groups), budget, Net(task).cost)
    return price(masks)


def allocated(
    task: Task,
    scores: Scores,
    budget: Budget,
    allocator: Callable[..., Masks],
    before: Masks = None,
) -> Alive:
    """What stays alive under a budget, the best by their scores.

    Units and patterns are allocated together, at one density or by one threshold; branches go only
    where no other kind has anything to give, the lowest score first.

    Args:
        task: of the net.
        scores: of the groups that may go; one at -inf is gone.
        budget: that the masks of all kinds together meet.
        allocator: `allocate.uniform` or `allocate.global_topk`.
        before: masks from before.

    Raises:
        BudgetError: no masks of these kinds meet it.
    """
    alive = {k: {n: s > -np.inf for n, s in of_kind.items()} for k, of_kind in scores.items()}
    if set(scores) == {"depth"}:
        return _shallower(task, scores["depth"], alive["depth"], budget, before)
    open_ = {kind: dict(of_kind) for kind, of_kind in scores.items() if kind != "depth"}

    def masks(given: Alive) -> Masks:
        return masks_of(task, {**alive, **given}, before)

    if set(open_) <= {*UNITS} and len(open_) == 1:  # flat: floors have names, and gaps are filled
        ((kind, flat),) = open_.items()
        flat = {name: score for name, score in flat.items() if (score > -np.inf).any()}
        model = lambda given: Net(task).cost(masks({kind: {**alive[kind], **given}}))
        return {**alive, kind: {**alive[kind], **allocator(flat, budget, model)}}
    model = lambda given: Net(task).cost(masks(given))
    return {**alive, **allocator(open_, of_single_weights(budget), model)}


def _shallower(
    task: Task,
    scores: Mapping[str, np.ndarray],
    alive: Mapping[str, np.ndarray],
    budget: Budget,
    before: Masks,
) -> Alive:
    """Branches go one after the other until the budget is met."""
    alive = dict(alive)
    kept = lambda: fraction_kept(task, masks_of(task, {"depth": alive}, before), budget)
    for name in sorted(scores, key=lambda name: float(scores[name][0])):
        if kept() <= float(budget.value) + 1e-9:
            return {"depth": alive}
        alive[name] = np.zeros(1, bool)
    if (least := kept()) > float(budget.value) + 1e-9:
        raise errors.BudgetError(
            f"Budget({budget.kind}={budget.value}) cannot be met: without all {len(scores)} "
            f"branches {least:.4f} of the dense net are left. Ask for "
            f"{np.ceil(least * 1000) / 1000:.3f} or more, or write 'filter+depth'."
        )
    return {"depth": alive}


def norms_of(
    task: Task, blocks: Mapping[str, Blocks], variables: PyTree
) -> dict[str, dict[str, np.ndarray]]:
    """{kind: {block: [groups]}}: the norm of every group."""
    leaves = Net(task).leaves(variables)
    return {
        kind: {name: np.sqrt(np.asarray(s, float)) for name, s in squares(of_kind, leaves).items()}
        for kind, of_kind in blocks.items()
    }
