"""`Net(task)`: the groups, costs and masks of a task's net, each computed once."""

import functools
import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from jprune import errors
from jprune.base import (
    Budget,
    Cost,
    CostModel,
    Groups,
    Masks,
    Pruned,
    PyTree,
    Task,
    Variables,
    is_none,
)
from jprune.blocks import lift
from jprune.cost import cost, cost_model
from jprune.cost.samples import gate_macs_of, gates_of, sample_macs
from jprune.forms.leaf_type import has_dynamic
from jprune.forms.opened import dense_of, has_leaf_types, opened
from jprune.graph import slim, slim_params, trace
from jprune.graph.look.branches import dependencies
from jprune.jaxprs import program_of
from jprune.train.task import seen_at
from jprune.units import are_units, expand, ones

Made = TypeVar("Made")

MOST_MADE = 16
"""The number of results of `Net.once` that are kept: a compiled step takes memory."""


class _Facts:
    """The lazily computed properties of a net."""

    def __init__(self, fn: Any, init: Any, example: Any, latency: Any):
        self._fn, self._init, self._example, self._latency = fn, init, example, latency
        self.made: dict[Hashable, Any] = {}

    @functools.cached_property
    def shapes(self) -> Variables:
        # Shapes alone: nothing is drawn, and no memory is taken.
        return jax.eval_shape(self._init, jax.eval_shape(lambda: jax.random.key(0)))

    @functools.cached_property
    def groups(self) -> Groups:
        return trace(self._fn, self.shapes, self._example)

    @functools.cached_property
    def cost(self) -> CostModel:
        table = self._latency
        model = cost_model(self._fn, self.shapes, self._example, groups=self.groups, latency=table)
        if table is None:
            return model

        def priced(masks: Masks) -> Cost:
            counted = model(masks)
            if isinstance(masks, Mapping) and are_units(self.groups, masks):
                return counted
            # Zeros take as long as other numbers: single weights gain what can be cut off.
            return counted._replace(latency=model(lift(self.groups, masks)).latency)

        return priced

    @functools.cached_property
    def count_macs(self) -> Callable[..., Any]:
        run, macs = gates_of(self._fn, self.groups), sample_macs(self._fn, self.groups)

        def count(variables: Variables, x: jax.Array) -> jax.Array:
            supports, overhead = run(variables, x)[1], gate_macs_of(variables)
            return macs(dense_of(variables), supports, x, overhead)

        return jax.jit(count)


# Equal nets share these objects, and with them all that JAX has compiled for their functions.
_facts = functools.lru_cache(maxsize=16)(_Facts)


@functools.lru_cache(maxsize=32)
def _in_any_form(fn: Callable[..., Any], facts: _Facts) -> Callable[..., Any]:
    """A function of the net that also takes kernels in other forms (leaf types)."""

    def run(variables: Variables, *args: Any) -> Any:
        if not has_leaf_types(variables):
            return fn(variables, *args)
        # Masks of nothing: `slim` is what runs other forms of kernels.
        return slim(fn, facts.groups, {})(variables, *args)

    return run


def _made_anew(net: "Net") -> dict[str, list[str]]:
    """{leaf that a training step makes without its old value: leaves of state that it is made of}.

    State is what inference does not read; of it, leaves of the same shape count.
    """
    task, shapes, paths = net.task, net.shapes, tuple(net.groups.leaves)

    def step(variables: Variables, x: Any, key: Any) -> Variables:
        return task.update(variables, task.train_fn(variables, x, key)[1])

    key = jax.eval_shape(lambda: jax.random.key(0))
    program, new = program_of(step, shapes, task.example, key)
    if jax.tree.structure(new) != net.groups.treedef:
        return {}
    inference, _ = program_of(task.fn, shapes, task.example)
    read = {value for equation in inference.equations for value in equation.inputs}
    state = [n for n in range(len(paths)) if inference.inputs[n] not in read]
    bits, made = dependencies(program, len(paths)), dict[str, list[str]]()
    shape_of = lambda number: program.shape(program.inputs[number])
    for number, (path, value) in enumerate(zip(paths, program.outputs)):
        before = bits[value]
        if not before >> number & 1:
            like = [n for n in state if shape_of(n) == shape_of(number)]
            made[path] = [paths[n] for n in like if before >> n & 1]
    return made


class Net:
    """A task's net: its functions, groups, cost and masks.

    Making one costs nothing: nets of the same functions share their properties, which are computed
    when they are first read.

    Attributes:
        task: the net's.
        fn: `task.fn`, which also runs variables whose kernels are held in another form (`forms`).
        train_fn: `task.train_fn`, likewise.
        groups: from `jprune.trace`.
        cost: the cost model: `cost(masks) -> Cost`.
        shapes: shapes and types of the dense net's variables.

    Example:
        >>> from jprune import data, train, zoo
        >>> net = Net(train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits")))
        >>> net.groups.sizes
        {'params/fc1/kernel': 300, 'params/fc2/kernel': 100}
    """

    def __init__(self, task: Task):
        self.task = task
        self._facts = _facts(task.fn, task.init, task.example, task.latency)

    @property
    def fn(self) -> Callable[..., Any]:
        """`fn(variables, x) -> out` in inference mode; kernels in any form."""
        return _in_any_form(self.task.fn, self._facts)

    @property
    def train_fn(self) -> Callable[..., Any]:
        """`train_fn(variables, x, key) -> (out, new)`; kernels in any form."""
        return _in_any_form(self.task.train_fn, self._facts)

    @property
    def groups(self) -> Groups:
        """Which channels live or die together."""
        return self._facts.groups

    @property
    def cost(self) -> CostModel:
        """`cost(masks) -> Cost`."""
        return self._facts.cost

    @property
    def shapes(self) -> Variables:
        """Shapes and types of the dense net's variables."""
        return self._facts.shapes

    @property
    def is_kernel(self) -> PyTree:
        """A tree of bools like the variables: parameters that are contracted with data.

        They are what may be pruned by weights, and what weight decay is for: `groups.kernels` among
        the parameters, whatever their rank.
        """
        # By what the engine has seen contracted, and never by rank: biases can have four axes.
        kernels = {*self.groups.kernels}
        params, rest = self.task.split(self.tree({path: path for path in self.groups.leaves}))
        contracted = jax.tree.map(lambda path: path in kernels, params)
        return self.task.merge(contracted, jax.tree.map(lambda leaf: False, rest))

    def once(self, make: Callable[..., Made], *settings: Hashable) -> Made:
        """The result of `make(net, *settings)`, made once for all nets of the same functions.

        Rounds, and arms of a comparison, share what was compiled. `make` may look at the net's
        functions, groups and costs, and at its settings: not at the task's data or loss. The
        16 results that were used last are kept for each net.
        """
        made, key = self._facts.made, (make, *settings)
        # A dict in order of use: what is used moves to the end, what is first goes.
        made[key] = made.pop(key) if key in made else make(self, *settings)
        if len(made) > MOST_MADE:
            del made[next(iter(made))]
        return made[key]

    def are_units(self, masks: Masks) -> bool:
        """Whether masks or scores are {group: [units]} and not a tree like the variables."""
        return are_units(self.groups, masks)

    def weight_masks(self, masks: Masks) -> Masks:
        """Masks as a tree like the variables; None where nothing is pruned."""
        if masks is None or not self.are_units(masks):
            return masks
        return expand(self.groups, masks)

    def unit_masks(self, pruned: Pruned) -> dict[str, Any]:
        """Masks of all groups; masks of weights remove the units that nothing reads any more."""
        masks = {} if pruned.masks is None else pruned.masks
        # Groups without masks are whole.
        lifted = masks if self.are_units(masks) else lift(self.groups, masks)
        return {**ones(self.groups), **lifted}

    def prunable(self, masks: Masks, budget: Budget) -> Masks:
        """Masks of all prunable weights, True where one is alive; None for the other leaves.

        Prunable are the kernels, but for those of a group that the budget's floors leave whole.

        Args:
            masks: of weights or units, from before; or None.
            budget: whose floors are read.
        """
        groups = self.groups
        whole = {
            place.leaf
            for name, floor in budget.floors.items()
            if floor >= groups.sizes[name]
            for place in groups.places[name]
            if "kernel" in place.roles
        }
        kernels = self.tree(
            {
                path: np.ones(groups.leaves[path].shape, bool)
                for path, is_kernel in self.leaves(self.is_kernel).items()
                if is_kernel and path not in whole
            }
        )
        before = self.weight_masks(masks)
        if before is None:
            return kernels
        # Earlier masks may be of fewer leaves: a kernel without one is whole.
        alive = lambda kernel, mask: kernel if kernel is None or mask is None else kernel & mask
        return jax.tree.map(alive, kernels, before, is_leaf=is_none)

    def kernels(self, masks: Masks) -> tuple[str, ...]:
        """Paths of the kernels that have a mask, in execution order.

        Args:
            masks: a tree like the variables, None where nothing is prunable.

        Raises:
            ArgumentError: there is none.
        """
        prunable = self.leaves(masks)
        sites = [
            site.layer for site in self.groups.sites if site.kind == "in" and site.layer in prunable
        ]
        # Kernels inside loops have no site.
        paths = tuple(dict.fromkeys([*sites, *prunable]))
        if not paths:
            raise errors.ArgumentError(
                f"nothing of {self.task.name} is prunable: it has no kernel, or all of them are "
                "frozen. Freeze fewer groups."
            )
        return paths

    def refuse_nan(self, variables: Variables, kernels: tuple[str, ...]) -> None:
        """Refuses kernels that hold something that is not finite.

        Raises:
            ArgumentError: one does.
        """
        leaves = self.leaves(variables)
        broken = [path for path in kernels if not np.isfinite(np.asarray(leaves[path])).all()]
        if broken:
            raise errors.ArgumentError(
                f"the weights {broken[0]} hold NaN or infinity: training has diverged. Write a "
                "smaller --learning-rate."
            )

    def tree(self, by_path: Mapping[str, Any]) -> PyTree:
        """A tree like the variables that holds these values, None elsewhere."""
        return self.groups.treedef.unflatten([by_path.get(path) for path in self.groups.leaves])

    def leaves(self, tree: PyTree) -> dict[str, Any]:
        """{path: leaf} of a tree like the variables, without the None leaves."""
        leaves = zip(self.groups.leaves, self.groups.treedef.flatten_up_to(tree))
        return {path: leaf for path, leaf in leaves if leaf is not None}

    def shifted(self, leaves: Mapping[str, Any], path: str, by: Any) -> dict[str, Any]:
        """Leaves with something added to one of them, such as a constant to a running mean.

        A mean that a training step makes anew of another average (Haiku's hidden one) would lose
        it; so the other average is shifted too.

        Args:
            leaves: {path: leaf}, dense.
            path: of the leaf.
            by: what is added, of its size.
        """
        result, old = dict(leaves), np.asarray(leaves[path])
        by = np.asarray(by).reshape(old.shape)
        result[path] = jax.numpy.asarray(old + by, old.dtype)
        for source in self.once(_made_anew).get(path, ()):
            average = np.asarray(leaves[source])
            # mean = average / (1 - decay^steps): the factor is that of the two arrays as they are.
            factor = float((average * old).sum() / max((old * old).sum(), np.finfo(old.dtype).tiny))
            if np.allclose(average, factor * old, rtol=1e-3, atol=1e-6):
                result[source] = jax.numpy.asarray(average + factor * by, average.dtype)
        return result

    def slim(self, pruned: Pruned) -> tuple[Callable[..., Any], Variables]:
        """The small net: `(fn, variables)`; single weights that are masked stay in it as zeros."""
        masks = self.unit_masks(pruned)
        fn = seen_at(slim(self.fn, self.groups, masks), pruned.resolution)
        return fn, slim_params(self.groups, masks, pruned.variables)

    def cost_as_held(self, pruned: Pruned, masks: Masks, split: str = "validation") -> Cost:
        """What the net costs: under masks, or with the kernels in other forms that it holds.

        Where what is computed depends on the example, MACs are a mean over the examples of a split.

        Args:
            pruned: its variables.
            masks: of units or weights, where all kernels are arrays.
            split: whose examples are looked at, where a net depends on them.
        """
        if not has_leaf_types(pruned.variables):
            return self.cost(masks)
        if has_dynamic(pruned.variables):
            return self.cost({})._replace(macs=self.mean_macs(pruned.variables, split))
        # Other forms as plain operations, which the cost model can count.
        fn, variables = opened(*self.slim(pruned))
        return cost(fn, variables, self.task.example)

    def mean_macs(self, variables: Variables, split: str, first: int | None = None) -> float:
        """Mean MACs of an example of a split, for a net that chooses its channels for every one.

        Args:
            variables: with gated kernels.
            split: whose examples.
            first: so many batches of 256 are looked at; None: all.
        """
        total = examples = 0.0
        for batch in itertools.islice(self.task.data.batches(split, 256), first):
            macs = self._facts.count_macs(variables, batch["image"])
            total += float(batch["weight"] @ macs)
            examples += float(batch["weight"].sum())
        return total / examples
