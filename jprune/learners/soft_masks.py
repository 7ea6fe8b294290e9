"""Real-valued masks of channels, of whole groups, and of residual blocks.

A mask multiplies weights, never activations. That of a channel multiplies its slice of every
consumer (for masks >= 0 the same as a mask behind the ReLU); that of a block the last scale and
shift of the block's weighted side. So a masked net is an ordinary net, in training and in
inference, and nothing has to be folded at the end.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import filter as matching
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Task, Variables
from jprune.graph import gated
from jprune.graph.look.branches import PREFIX
from jprune.learners.norm_gates import early_shifts
from jprune.units import expand, leaves_by_path

KINDS = ("channel", "branch", "block")
"""`channel`: one mask for every channel. `branch`: one for all channels of a group, such as those
that one layer adds to a concatenation. `block`: one for the side of a residual sum that has weights
(`Groups.branches`)."""


def sizes_of(groups: Groups, kinds: Sequence[str]) -> dict[str, int]:
    """{group or residual branch: how many masks it has}.

    Raises:
        ArgumentError: an unknown kind, or channels and branches at once.
        StructureError: the net has nothing of a kind.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds or {"channel", "branch"} <= set(kinds):
        raise errors.ArgumentError(
            f"masks of the kinds {'+'.join(kinds) or 'none'}; write channel, branch or block, or "
            "channel+block or branch+block: a channel has one mask at most."
        )
    read = {n: s for n, s in groups.sizes.items() if any("in" in p.roles for p in groups.places[n])}
    of_kind = {
        "channel": read,
        "branch": dict.fromkeys(read, 1),
        "block": {branch.name: 1 for branch in groups.branches},
    }
    missing = [kind for kind in kinds if not of_kind[kind]]
    if missing:
        raise errors.StructureError(
            f"this net has nothing that a mask of the kind {missing[0]!r} could stand on. "
            "`jprune inspect` lists its groups and branches; write masks=channel."
        )
    return {name: size for kind in kinds for name, size in of_kind[kind].items()}


def chosen(
    groups: Groups, candidates: Mapping[str, int], patterns: Sequence[str], whole: Iterable[str]
) -> dict[str, int]:
    """The candidates that patterns name; without patterns, all but those that stay whole.

    Args:
        groups: of the net.
        candidates: what can have a mask or a gate.
        patterns: with `*` and `?`; none: everything.
        whole: groups that a budget's floors leave whole.

    Raises:
        FrozenError: a pattern names something that is frozen, by the engine or by a budget's floor.
        ArgumentError: a pattern names nothing.
    """
    never = set(whole)
    if not patterns:
        return {name: size for name, size in candidates.items() if name not in never}
    named: dict[str, int] = {}
    for pattern in patterns:
        matches = matching(candidates, pattern)
        if held := [name for name in matches if name in never]:
            raise errors.FrozenError(
                f"gates={pattern!r} puts a gate on {held[0]}, which is frozen: the budget's floor "
                "leaves it whole. Leave it out of gates, or out of --freeze."
            )
        if not matches:
            frozen = [f for f in groups.frozen if matching([f.leaf], pattern)][-1:]
            if frozen:
                raise errors.FrozenError(
                    f"gates={pattern!r} puts a gate on {frozen[0].leaf}, which is frozen: axis "
                    f"{frozen[0].axis} is {frozen[0].reason}. Write one of {', '.join(candidates)}."
                )
            raise errors.ArgumentError(
                f"gates={pattern!r} names nothing that can have a gate; "
                f"{errors.nearest(pattern, candidates)}there are {', '.join(candidates)}."
            )
        named |= {name: candidates[name] for name in matches}
    return named


def scaled(
    groups: Groups, masks: Mapping[str, Any], ends: Mapping[str, Sequence[str]], tree: Variables
) -> Variables:
    """The net with its masks folded in.

    Args:
        groups: of the net.
        masks: {group: [units] or [1], residual branch: [1]}, real; of one below 0 the consumers
            see the negative, which is not what a mask behind the ReLU would do.
        ends: from `ends_of`.
        tree: the variables.
    """
    channels = {
        name: jnp.broadcast_to(mask, (groups.sizes[name],))
        for name, mask in masks.items()
        if name in groups.sizes
    }
    if channels:
        # W[c] <- m_c W[c] in every consumer
        factors = expand(groups, channels, roles=("in",))
        tree = jax.tree.map(lambda value, factor: value * factor, tree, factors)
    blocks = {path: masks[name] for name, paths in ends.items() for path in paths if name in masks}
    leaves = leaves_by_path(groups, tree)
    return groups.treedef.unflatten(
        [leaf * blocks[path] if path in blocks else leaf for path, leaf in leaves.items()]
    )


def ends_of(
    task: Task, groups: Groups, names: Iterable[str], variables: Variables
) -> dict[str, tuple[str, ...]]:
    """{residual branch: leaves to multiply so that the branch's output is multiplied by the mask}.

    They are the last norm's scale and shift, or the last kernel and bias where no norm follows;
    both are tried on the net itself. A bias before the norm is none of them.

    Raises:
        StructureError: a branch that ends otherwise.
    """
    ends, run = {}, jax.jit(task.fn)
    shapes = groups.treedef.unflatten(list(groups.leaves.values()))
    early = early_shifts(task.fn, groups, shapes, task.example)
    # Noise, so that no output agrees by chance.
    noise = np.random.default_rng(0).normal(size=(2, *task.example.shape[1:]))
    x = jnp.asarray(noise, task.example.dtype)
    kernel_of = {site.layer: site.kernel for site in groups.sites}
    for branch in (branch for branch in groups.branches if branch.name in set(names)):
        site = branch.name.removeprefix(PREFIX)
        layer = kernel_of[site]
        group = next(
            (n for n, places in groups.places.items()
             for p in places if p.leaf == layer and "kernel" in p.roles), None,
        )  # fmt: skip
        inside = [p for p in groups.places.get(group or "", ()) if p.leaf in branch.leaves]
        inner = early.get(site, ())
        norms = tuple(
            p.leaf for p in inside if {"scale", "shift"} & set(p.roles) and p.leaf not in inner
        )
        plain = tuple(p.leaf for p in inside if p.leaf == layer or "shift" in p.roles)
        mask = {branch.name: jnp.full(1, 0.7)}
        # The net with 0.7 times the branch, gated where it
        # joins the sum: what folding has to give.
        wanted = jax.jit(gated(task.fn, groups, "join"))(variables, mask, x)
        # The norm first: scaling a kernel in front of a norm changes nothing.
        for leaves in (norms, plain):
            got = run(scaled(groups, mask, {branch.name: leaves}, variables), x)
            if leaves and jnp.allclose(got, wanted, rtol=1e-4, atol=1e-4 * jnp.abs(wanted).max()):
                ends[branch.name] = leaves
                break
        else:
            raise errors.StructureError(
                f"{branch.name} ends in no affine layer that a mask could be folded into. Write "
                "masks=channel, or leave it out of gates."
            )
    return ends
