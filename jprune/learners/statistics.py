"""Statistics of norms taken anew: means over batches, whatever a norm's momentum is."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jprune import errors
from jprune.base import Batch, Task, Variables

LATE = 2**30
"""So many steps that 1 - m^steps is 1."""
PROBES = ((False, 0.0), (False, 1.0), (True, 0.0), (True, 1.0), (True, 1024.0))
"""(with the parameters or with zeros, start of the statistics): the passes that measure m."""


def settled(task: Task, variables: Variables, images: Any, key: jax.Array) -> Variables:
    """The variables with statistics that are the means over some batches, the old ones forgotten.

    Running statistics, new = m old + (1 - m) batch, keep m^n of what they were reset to after n
    batches (12 % at m = 0.9, n = 20). The mean does not. A batch's own are (new from 0) / (1 - m),
    and m is new(1) - new(0), whatever library the norm is from. Where a library (Haiku, Equinox)
    divides averages by 1 - m^steps, its counters come out as after very many steps.

    Args:
        task: whose `train_fn` gives new statistics.
        variables: of the net, under masks or not.
        images: [batches, batch, h, w, c]; no batches leave the variables as they are.
        key: for what the net draws.

    Returns:
        The variables; constants among the statistics (a rate of dropout) stay. Jittable; statistics
        of another kind, which only `check_settles` refuses, then stay too.

    Raises:
        ArgumentError: what `check_settles` raises, where nothing is traced.

    References:
        Liu et al., MetaPruning, 2019, arXiv 1903.10258, re-calibrate every candidate; the
        cumulative mean in place of their running one is a choice of ours.

    Example:
        >>> from jprune import data, train, zoo
        >>> task = train.task(zoo.build("resnet8", shape=(8, 8, 1)), data.load("digits"))
        >>> net, key = task.init(jax.random.key(0)), jax.random.key(1)
        >>> alike = [settled(task, net, jnp.ones((n, 4, 8, 8, 1)), key) for n in (1, 3)]
        >>> means = [each["stats"]["norm1"]["mean"] for each in alike]
        >>> bool(jnp.allclose(*means))  # running means of one batch and of three would differ
        True
    """
    if not len(images):
        return variables
    parts = _apart(task, variables, images[0][:2], key)
    momentum, odd = _kept(parts, images[0][:2], key)
    if not any(isinstance(is_odd, Tracer) for is_odd in odd.values()):
        _refuse(task, odd)
    # m = 1: a constant and no average, which stays.
    zeroed = [jnp.where(m < 1, jnp.zeros_like(old), old) for m, old in zip(momentum, parts.old)]

    def look(sums: list[Any], item: Any) -> tuple[list[Any], None]:
        return [a + b for a, b in zip(sums, parts.update(parts.params, zeroed, *item))], None

    # A key per batch, as in training: dropout draws anew.
    keys = jax.random.split(key, len(images))
    sums, _ = jax.lax.scan(look, [jnp.zeros_like(old) for old in parts.old], (images, keys))
    # mean over batches of (new from 0) / (1 - m)
    means = [total / len(images) / jnp.where(m < 1, 1 - m, 1) for total, m in zip(sums, momentum)]
    done = [jnp.where(m < 1, mean, old) for mean, m, old in zip(means, momentum, parts.old)]
    return parts.whole(parts.params, done)


def check_settles(task: Task, variables: Variables, image: Any, key: jax.Array) -> None:
    """Refuses a net with statistics of another kind than `settled` can compute.

    Args:
        task: of the net.
        variables: of the net, at hand and not traced.
        image: a batch [batch, h, w, c].
        key: for what the net draws.

    Raises:
        ArgumentError: some do not follow new = m old + (1 - m) batch, 0 <= m <= 1, or are not
            finite; the message names them.
    """

    @jax.jit
    def odd(variables: Variables, image: Any) -> dict[str, jax.Array]:
        return _kept(_apart(task, variables, image, key), image, key)[1]

    _refuse(task, odd(variables, image[:2]))


def _refuse(task: Task, odd: dict[str, jax.Array]) -> None:
    names = [name for name, is_odd in odd.items() if bool(is_odd)]
    if names:
        raise errors.ArgumentError(
            f"the statistics {', '.join(names)} of {task.name} do not follow new = m old + (1 - m) "
            "batch with 0 <= m <= 1, or are not finite, so that they cannot be taken anew from a "
            "few batches. Write --set recalibrate=0 to leave all statistics as they are."
        )


class _Apart(NamedTuple):
    """A net, its statistics (arrays of floats that are no parameters) apart from the others.

    Attributes:
        names: paths of the statistics.
        old: the statistics.
        params: of the net.
        update: `update(params, old, image, key) -> new`.
        whole: `whole(params, statistics) -> variables`.
    """

    names: list[str]
    old: list[Any]
    params: Any
    update: Callable[..., list[Any]]
    whole: Callable[..., Variables]


def _apart(task: Task, variables: Variables, image: Any, key: jax.Array) -> _Apart:
    params, rest = task.split(variables)
    structure = jax.tree.structure(rest)
    after = lambda tree, image, key: task.split(
        task.update(tree, task.train_fn(tree, image, key)[1])
    )[1]
    leaves = jax.tree.leaves(rest)
    # A counter is what goes up by 1 in a step: found by taking one.
    if any(_counts(leaf) for leaf in leaves):
        new = jax.tree.leaves(after(variables, image, key))
        late = lambda old, new: jnp.where(new == old + 1, LATE, old) if _counts(old) else old
        # Averages of Haiku and Equinox are divided by 1 - m^counter: with a huge counter that is 1.
        leaves = [late(*pair) for pair in zip(leaves, new)]
    # Statistics are vectors of floats; scalars are rates, and integers counters.
    moving = [jnp.ndim(leaf) > 0 and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    pick = lambda values: [value for moves, value in zip(moving, values) if moves]

    def whole(params: Any, statistics: list[Any]) -> Variables:
        filler = iter(statistics)
        filled = [next(filler) if moves else leaf for moves, leaf in zip(moving, leaves)]
        return task.merge(params, structure.unflatten(filled))

    def update(params: Any, old: list[Any], image: Any, key: jax.Array) -> list[Any]:
        return pick(jax.tree.leaves(after(whole(params, old), image, key)))

    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(rest)
    ]
    return _Apart(pick(paths), pick(leaves), params, update, whole)


def _counts(leaf: Any) -> bool:
    """Whether a leaf may be a counter of steps; those of draws have no sign."""
    return getattr(leaf, "dtype", None) in (jnp.int32, jnp.int64)


def _kept(parts: _Apart, image: Any, key: jax.Array) -> tuple[list[Any], dict[str, jax.Array]]:
    """The m of each statistic, elementwise, and {its name: whether it follows another rule}."""

    def probe(how: tuple[jax.Array, jax.Array]) -> list[Any]:
        with_params, start = how
        params = jax.tree.map(lambda p: jnp.where(with_params, p, jnp.zeros_like(p)), parts.params)
        old = [jnp.full_like(leaf, start) for leaf in parts.old]
        return parts.update(params, old, image, key)

    with_params, starts = (jnp.array(column) for column in zip(*PROBES))
    momentum, odd = [], {}
    for name, new in zip(parts.names, jax.lax.map(probe, (with_params, starts))):
        # Not a derivative: Flax stops gradients here. Without weights nothing is lost by rounding,
        # but a kernel that is divided by its norm is not finite; then a large start serves.
        exact, far = new[1] - new[0], (new[4] - new[2]) / PROBES[4][1]
        # m = new(1) - new(0)
        m = jnp.where(jnp.isfinite(exact), exact, far)
        near = 1e-3 + 8 * jnp.finfo(new.dtype).eps * (1 + abs(new[2]))
        # The same m with and without parameters, and from a
        # far start: the rule is linear in the old.
        fine = (abs(new[3] - new[2] - m) <= near) & (abs(far - m) <= near) & (m >= 0) & (m <= 1)
        momentum.append(m)
        odd[name] = ~fine.all()
    return momentum, odd


def settled_on(
    task: Task, variables: Variables, batches: Iterable[Batch], key: jax.Array
) -> Variables:
    """As `settled`, batch by batch: for many batches, and for nets with statistics of any kind.

    Args:
        task: whose `train_fn` gives new statistics.
        variables: of the net, at hand and not traced.
        batches: training batches; none leave the variables as they are.
        key: folded with the number of a batch, for what the net draws.

    Returns:
        The variables with the means over the batches. Where some statistics are no running means
        (see `check_settles`), all are as after the last batch of a forward pass in training mode.
    """

    @jax.jit
    def odd(variables: Variables, image: Any, key: jax.Array) -> dict[str, jax.Array]:
        return _kept(_apart(task, variables, image, key), image, key)[1]

    @jax.jit
    def passed(variables: Variables, image: Any, key: jax.Array) -> Variables:
        # A forward pass in training mode, whose statistics are stored; no gradient, no step.
        return task.update(variables, task.train_fn(variables, image, key)[1])

    @jax.jit
    def added(mean: Variables, image: Any, key: jax.Array, count: Any) -> Variables:
        def step(before: jax.Array, new: jax.Array) -> jax.Array:
            if not jnp.issubdtype(new.dtype, jnp.floating):
                return new
            # mean <- mean + (new - mean) / n: constants stay as they are.
            moved = before + (new - before) / count
            return jnp.where(count == 1, new, moved).astype(new.dtype)

        params, before = task.split(mean)
        new = task.split(settled(task, mean, image[None], key))[1]
        return task.merge(params, jax.tree.map(step, before, new))

    averages = True
    for number, batch in enumerate(batches):
        image, drawn = jnp.asarray(batch["image"]), jax.random.fold_in(key, number)
        if number == 0:
            averages = not any(map(bool, odd(variables, image[:2], drawn).values()))
        if averages:
            variables = added(variables, image, drawn, number + 1)
        else:
            variables = passed(variables, image, drawn)
    return variables
