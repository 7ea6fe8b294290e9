"""Soft pruning: now and then the worst groups are set to 0, and go on training like all others.

    every so many steps: W <- m * W, m from W;   all other steps are the optimizer's, of all of W

References:
    He, Kang, Dong, Fu, Yang, Soft filter pruning for accelerating deep convolutional neural
    networks, 2018, arXiv 1808.06866. Several rules, of which the net chooses: He, Liu, Zhu, Yang,
    Meta filter pruning to accelerate deep convolutional neural networks, 2019, arXiv 1904.03961
    [34].
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Masks, Params, is_none
from jprune.graph.shrink.concrete import full
from jprune.masks import apply_masks
from jprune.sparsify.rules import Rule

Choose = Callable[..., Any]
"""`choose(params, step, **extra) -> number of a rule`."""


class SoftPruneState(NamedTuple):
    """State of `soft_prune`.

    Attributes:
        step: how many were taken.
        masks: what was left the last time; nothing is held at 0 by them. None where nothing is
            pruned.
        chosen: int32 [rules]: how often each rule was taken.
    """

    step: jax.Array
    masks: Masks
    chosen: jax.Array


def soft_prune(
    rules: Rule | Sequence[Rule], *, every: int, begin: int = 0, choose: Choose | None = None
) -> optax.GradientTransformationExtraArgs:
    """Sets what a rule masks to 0 every `every` steps, and holds nothing there.

    The last link of a chain. Momentum goes on: what was set to 0 is moved by the next step, and
    comes back if it grows. After the last step apply `state.masks` for good.

    Args:
        rules: from `masks_by`; of units, with `roles=("kernel",)`, since a unit without scale,
            shift and readers has no gradient. Several: `choose` says which one is taken.
        every: steps from one time to the next.
        begin: step after which it is done for the first time; 0: after `every` of them. So
            `steps % every` is the number with which it is done after the last one of all steps.
        choose: called with the parameters and the step, and whatever `tx.update` is given by name;
            `choice` makes one.

    Returns:
        An optax transformation; call `tx.update(gradients, state, params)`.

    Raises:
        ArgumentError: `every` below 1; no rule, or several without `choose`; `update` without
            parameters.

    Example:
        >>> from jprune import allocate, criteria, schedules
        >>> from jprune.sparsify import masks_by
        >>> rule = masks_by(criteria.magnitude(), allocate.uniform, schedules.one_shot(0.5))
        >>> tx = optax.chain(optax.sgd(0.5), soft_prune(rule, every=2))
        >>> params = {"w": jnp.array([1.0, 0.5])}
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     gradient = {"w": params["w"] - jnp.array([1.0, 0.8])}
        ...     updates, state = tx.update(gradient, state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print([round(float(x), 3) for x in params["w"]])
        [1.0, 0.65]
        [1.0, 0.0]
        [1.0, 0.4]
    """
    rules = [rules] if callable(rules) else list(rules)
    if every < 1 or begin < 0 or not rules or (len(rules) > 1) != (choose is not None):
        raise errors.ArgumentError(
            f"soft_prune(every={every}, begin={begin}) with {len(rules)} rules"
            f"{'' if choose is None else ' and choose'}; every is 1 or more, begin 0 or more, and "
            "several rules need choose, which one does not."
        )

    def init(params: Params) -> SoftPruneState:
        step = jnp.zeros((), jnp.int32)
        # Shapes alone are needed: nothing is pruned yet.
        shapes = jax.eval_shape(lambda params: rules[0](params, step), params)
        ones = jax.tree.map(lambda mask: full(mask.shape, True), shapes)
        return SoftPruneState(step, ones, jnp.zeros(len(rules), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "soft_prune needs the parameters: call tx.update(gradients, state, params)."
            )
        moved, step = optax.apply_updates(params, updates), state.step + 1

        def prune() -> tuple[Any, Masks, jax.Array]:
            number = 0 if choose is None else choose(moved, step, **extra)
            masks = jax.lax.switch(number, [lambda rule=rule: rule(moved, step) for rule in rules])
            # W <- m * W
            one = lambda m, p, u: u if m is None else jnp.where(m, u, -p)
            new = jax.tree.map(one, masks, params, updates, is_leaf=is_none)
            return new, masks, state.chosen.at[number].add(1)

        new, masks, chosen = jax.lax.cond(
            (step >= begin) & ((step - begin) % every == 0),
            prune,
            lambda: (updates, state.masks, state.chosen),
        )
        return new, SoftPruneState(step, masks, chosen)

    return optax.GradientTransformationExtraArgs(init, update)


def nearest(dense: Any, candidates: Any) -> Any:
    """The number of the candidate whose attributes are nearest to those of the dense net.

    Args:
        dense: [attributes]: of the net as it is; or one number.
        candidates: [n, attributes]: of its pruned copies; or [n].

    Returns:
        Of several attributes, the differences are divided by the largest one in the pool and added.
        Copies whose attributes are not finite come last; of equal ones the first is taken.

    Example:
        >>> int(nearest(0.3, jnp.array([0.34, 0.306, 0.285, 0.36])))
        1
    """
    candidates = jnp.reshape(candidates, (jnp.shape(candidates)[0], -1))
    # |U(net_c) - U(net)|
    apart = jnp.abs(candidates - jnp.reshape(dense, (1, -1)))
    apart = jnp.where(jnp.isfinite(apart), apart, jnp.inf)
    largest = jnp.where(jnp.isfinite(apart), apart, 0).max(0)
    return jnp.argmin((apart / jnp.where(largest > 0, largest, 1)).sum(1))


def lowest(dense: Any, candidates: Any) -> Any:
    """The number of the candidate with the smallest attribute, which is its loss.

    Args:
        dense: of the net as it is; does not count.
        candidates: [n] or [n, 1].

    Example:
        >>> int(lowest(0.3, jnp.array([0.34, 0.306, 0.285, 0.36])))
        2
    """
    del dense
    values = jnp.reshape(candidates, (jnp.shape(candidates)[0], -1)).sum(1)
    return jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))


def choice(
    rules: Sequence[Rule], attributes: Callable[..., Any], by: Callable[[Any, Any], Any] = nearest
) -> Choose:
    """Chooses among rules by what the net is under the masks of each.

    Args:
        rules: of the candidates, in the order of those that prune. Of units, at all roles: then a
            copy is the net that would be left, without the constants of units that are 0.
        attributes: `attributes(params, **extra) -> number or [k]`: what is compared, such as the
            loss on a batch.
        by: `nearest` or `lowest`.

    Returns:
        `choose`, for `soft_prune`. The copies are looked at one after the other.

    Example:
        >>> from jprune import allocate, criteria, schedules
        >>> from jprune.sparsify import masks_by
        >>> most = masks_by(criteria.magnitude(), allocate.uniform, schedules.one_shot(0.5))
        >>> least = lambda params, step: {"w": ~most(params, step)["w"]}
        >>> loss = lambda params: jnp.sum((params["w"] - 0.5) ** 2)
        >>> choose = choice([most, least], loss, by=lowest)
        >>> int(choose({"w": jnp.array([3.0, 0.5])}, 0))
        1
    """

    def choose(params: Params, step: Any, **extra: Any) -> Any:
        masks = [rule(params, step) for rule in rules]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *masks)
        # One copy at a time: a batch of nets would be one of grouped convolutions.
        of_copy = lambda copy: jnp.asarray(attributes(apply_masks(params, copy), **extra))
        return by(jnp.asarray(attributes(params, **extra)), jax.lax.map(of_copy, stacked))

    return choose
