"""Every type and protocol that the rooms share: read this file and you can write a method.

Words. A network is a pure function `fn(variables, *args)`. Its *variables* hold everything that
must shrink: parameters and batch-norm statistics. A *unit* is a set of channels that live or die
together; units that occur at the same places form a *group*. *Masks* are boolean, `True` keeps.
*Scores* have the shape of what they judge; higher keeps, `-inf` is gone already, `+inf` is never
pruned. A *density* is the fraction that is kept.

Scores and masks come in two shapes, and the same functions serve both: trees like the variables
(for single weights), or `{group name: [units]}` (for channels).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from jax.core import Tracer

from jprune import errors

PyTree = Any
Variables = PyTree
Params = PyTree
Scores = PyTree
Masks = PyTree
Batch = Mapping[str, Any]  # {"image": [batch, h, w, c], "label": [batch]}
Schedule = optax.Schedule  # step -> density
Records = list[dict[str, Any]]  # lines for records.jsonl

ROLES = ("kernel", "shift", "scale", "mean", "var", "in", "state")
"""What a place does to its unit, in inference mode.

`kernel`: contracted, with the unit on its output side. `shift`: added. `scale`: multiplied. `mean`,
`var`: statistics of a norm. `in`: a consumer's weights that read the unit. `state`: reaches only an
auxiliary output.
"""


class Place(NamedTuple):
    """Where a group's units stand: one axis of one leaf.

    Attributes:
        leaf: path of the leaf, `keystr(path, simple=True, separator="/")`.
        axis: of the leaf.
        roles: of `ROLES`: what the leaf does to the units on this axis.
        units: [axis length]: number of the unit at every position, -1 where a position belongs to
            no unit of this group.
    """

    leaf: str
    axis: int
    roles: tuple[str, ...]
    units: np.ndarray


class Frozen(NamedTuple):
    """Positions of one axis that cannot be removed, and why.

    Attributes:
        leaf: path of the leaf.
        axis: of the leaf.
        positions: how many positions of the axis are frozen for this reason.
        reason: in words.
        primitive: name of the primitive that froze them; empty where it was none.
        equation: as text, with the shapes of its operands; empty where it was none.
        source: the user's line, `file:line (function)`; empty where JAX recorded none.
        remedy: what would open it; empty where nothing would.
    """

    leaf: str
    axis: int
    positions: int
    reason: str
    primitive: str
    equation: str
    source: str
    remedy: str


class SiteInfo(NamedTuple):
    """Where a method can look or act: the static part of a site.

    Attributes:
        kind: `in`, `out`, `norm`, `act` or `join`.
        layer: name of the call site: the kernel's path, with `@2` at its second use.
        axis: the channel axis of the site's value.
        groups: groups whose units stand on that axis.
        kernel: path of the kernel whose call site it is: a key of `Groups.layers`.
    """

    kind: str
    layer: str
    axis: int
    groups: tuple[str, ...]
    kernel: str


class Branch(NamedTuple):
    """The side of a residual sum that has weights: a unit that can be removed as a whole.

    Attributes:
        name: `branch/` and the layer whose output is summed; unit masks and gates of it have shape
            [1].
        leaves: leaves that only this branch reads; they become None when it goes.
    """

    name: str
    leaves: tuple[str, ...]


class Layer(NamedTuple):
    """A kernel and its surroundings, as traced; never guessed from names, rank or axis order.

    A leaf is a kernel if data are contracted with it (a convolution, a matrix product). One layer
    is one kernel, however often it runs. Where several leaves make a kernel (weight norm,
    `w + a @ b`), the largest one is the kernel of the layer and the others are its `parts`.

    Every axis of the kernel stands in exactly one of `inputs`, `outputs`, `window` and `batch`. If
    several contractions use the kernel in different ways (an embedding and its transpose), the
    first one says which. An axis that a reshape splits into several is an input if any is.

    Attributes:
        kernel: path of the kernel.
        shape: of the kernel.
        sites: names of its call sites (`SiteInfo.layer`) in execution order; empty inside loops.
        inputs: axes that are contracted with data channels; those of one group, for grouped
            convolutions.
        outputs: axes that the result has.
        window: axes of a spatial window, and axes of length 1 that do nothing.
        batch: axes that kernel and data share and none contracts (members of an ensemble), or that
            are stacked for a loop.
        feature_groups: `feature_group_count` of a convolution; 1 for other contractions.
        parts: other leaves that the kernel is made of.
        reads: names of the groups on its input axes. A depthwise convolution has none there: the
            channels that it reads are those on its output axis.
        writes: names of the groups on its output axes.
        affine: {path: role} of the per-channel leaves behind the contraction, in the order of their
            use, with roles `shift`, `scale`, `mean` and `var`. They end where a nonlinearity, a
            pooling, a join or the next contraction begins, so that together they are one factor and
            one offset for each channel.
        positions: at how many output positions the kernel is applied for one example, over all of
            its uses. A use in a `scan` counts once a turn, in a `while` once, in a branch of a
            `cond` as if it were taken.
        macs: multiply-accumulates for one example, counted the same way.
        plain: a convolution or dense layer as papers mean it: every use is a contraction of data
            with this leaf itself (cast or transposed at most), outside of loops, without feature
            groups and batch axes, with one input and one output axis.
        last: a result of it reaches a main output, and no other layer consumes that result.
    """

    kernel: str
    shape: tuple[int, ...]
    sites: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    window: tuple[int, ...]
    batch: tuple[int, ...]
    feature_groups: int
    parts: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    affine: dict[str, str]
    positions: float
    macs: float
    plain: bool
    last: bool

    @property
    def owned(self) -> tuple[str, ...]:
        """Leaves of this layer: the kernel, its parts, and the affine leaves behind it."""
        # Together they are the factor and offset of one
        # layer: what moves, freezes or goes with it.
        return (self.kernel, *self.parts, *self.affine)

    @property
    def bias(self) -> str | None:
        """Path of the bias: the leaf that the result meets first, if it is added; else None."""
        # A shift further behind (of a norm) is no bias: the scale between would multiply it.
        leaf, role = next(iter(self.affine.items()), (None, None))
        return leaf if role == "shift" else None

    @property
    def fan_in(self) -> int:
        """How many weights lead to one output."""
        # n = in k^2, the n of He et al.'s initial values.
        return math.prod(self.shape[axis] for axis in (*self.inputs, *self.window))

    @property
    def fan_out(self) -> int:
        """How many weights lead away from one input."""
        # n = out k^2, He et al.'s other choice: the variance of gradients instead of outputs.
        return math.prod(self.shape[axis] for axis in (*self.window, *self.outputs))

    @property
    def depthwise(self) -> bool:
        """Whether every output sees one input channel: a grouped convolution of groups of one."""
        inputs = math.prod(self.shape[axis] for axis in self.inputs)
        # One input channel alone says little: the first layer of a grey image has one too.
        return self.feature_groups > 1 and inputs == 1

    def matrix(self, kernel: Any) -> Any:
        """A kernel (or its mask, or its scores) as [inputs, window, outputs].

        Several axes of a kind become one, in row-major order; batch axes stand before the outputs.

        Args:
            kernel: NumPy or JAX array of the layer's shape.

        Raises:
            StructureError: it has another shape.

        Example:
            >>> import jax.numpy as jnp, jprune
            >>> fn = lambda v, x: jnp.maximum(v["w"] @ x, 0) @ v["out"]
            >>> v = {"w": jnp.ones((5, 3)), "out": jnp.ones((5, 2))}  # [out, in] and [in, out]
            >>> layers = jprune.trace(fn, v, jnp.ones(3)).layers
            >>> layers["w"].matrix(v["w"]).shape, layers["out"].matrix(v["out"]).shape
            ((3, 1, 5), (5, 1, 2))
        """
        if np.shape(kernel) != self.shape:
            raise errors.StructureError(
                f"an array of shape {np.shape(kernel)} came for the kernel {self.kernel}, which "
                f"has {self.shape}. For a smaller kernel, trace the smaller net and use its layers."
            )
        # [inputs..., window..., batch..., outputs...] -> [inputs, window, batch x outputs]
        return kernel.transpose(self._order).reshape(self._matrix_shape)

    def array(self, matrix: Any) -> Any:
        """The inverse of `matrix`: [inputs, window, outputs] in the layout of the kernel.

        Raises:
            StructureError: it has another shape.
        """
        if np.shape(matrix) != self._matrix_shape:
            raise errors.StructureError(
                f"a matrix of shape {np.shape(matrix)} came for the kernel {self.kernel}; it is "
                f"[inputs, window, outputs], here {self._matrix_shape}."
            )
        # [inputs, window, outputs] -> [inputs..., window...,
        # batch..., outputs...] -> the kernel's axes
        lengths = [self.shape[axis] for axis in self._order]
        # The inverse permutation: back[order[i]] = i.
        back = sorted(range(len(lengths)), key=self._order.__getitem__)
        return matrix.reshape(lengths).transpose(back)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.inputs, *self.window, *self.batch, *self.outputs)

    @property
    def _matrix_shape(self) -> tuple[int, int, int]:
        length = lambda axes: math.prod(self.shape[axis] for axis in axes)
        # Batch axes count as outputs: no weight of one member reads what another one makes.
        return length(self.inputs), length(self.window), length((*self.batch, *self.outputs))


class Groups(NamedTuple):
    """The result of `jprune.trace`: static, host-side, NumPy.

    Attributes:
        sizes: {group: number of its units}, in execution order of the first producers.
        places: {group: where its units stand}.
        sites: where a method can look or act, in execution order.
        branches: sides of residual sums that can be removed as a whole.
        frozen: positions that cannot be removed, and why.
        exact: {group: bool}: False for a group that was opened although masked and slim nets differ
            by nature (a normalisation over its axis).
        leaves: {path: shape and type} of every leaf of the variables.
        treedef: structure of the variables.
        layers: {path: layer} of every kernel that data are contracted with, in execution order,
            those inside loops and without a group included.
    """

    sizes: dict[str, int]
    places: dict[str, tuple[Place, ...]]
    sites: tuple[SiteInfo, ...]
    branches: tuple[Branch, ...]
    frozen: tuple[Frozen, ...]
    exact: dict[str, bool]
    leaves: dict[str, jax.ShapeDtypeStruct]
    treedef: Any
    layers: dict[str, Layer]

    @property
    def kernels(self) -> tuple[str, ...]:
        """Paths of the leaves that are contracted with data, in execution order.

        Biases, scales and statistics are none of them, whatever their rank.
        """
        # `layers` is in execution order, so positions in
        # option lists mean the same in every library.
        return tuple(self.layers)

    @property
    def streams(self) -> frozenset[str]:
        """Groups on residual streams: their units are added up, and have several producers."""
        return frozenset(name for site in self.sites if site.kind == "join" for name in site.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups, in execution order of their first producer."""
        return tuple(self.sizes)


class Cost(NamedTuple):
    """The cost of a net for one example. No field is a fraction.

    Attributes:
        params: number of parameters; batch-norm statistics are not counted.
        macs: multiply-accumulates of convolutions and matrix products (papers' "FLOPs" are MACs
            here).
        bytes: that contractions move: their weights, and the activations that they read and write.
            Of single weights, zeros are not moved, and where they stand is not counted.
        by_group: {group: MACs of the equations in which its units occur}. Groups share equations,
            so these do not add up to `macs`.
        energy: on an accelerator, in multiply-accumulates (`jprune.cost.layer_energy`); None where
            the model does not count it.
        latency: predicted time of a call in ms, whatever its batch; None without a latency table.
    """

    params: Any
    macs: Any
    bytes: Any
    by_group: dict[str, Any]
    energy: Any = None
    latency: Any = None


CostModel = Callable[[Any], Cost]
"""`model(masks | widths | gates) -> Cost`; jittable, differentiable in real widths and gates."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What may be kept, as a fraction of the dense net: exactly one of the first six.

    Args:
        density: fraction of units or weights kept, in (0, 1].
        params: fraction of parameters kept.
        macs: fraction of multiply-accumulates kept.
        latency: fraction of the latency kept; needs a cost model with a latency table.
        energy: fraction of the energy kept, on an accelerator that skips zeros.
        bytes: fraction kept of the bytes that contractions move, weights and activations.
        min_units: smallest number of units that a group keeps.
        multiple_of: kept units of a group are rounded to a multiple of this (8 is sensible on a
            CPU); a group smaller than this is left whole or keeps a multiple of what divides it.
        floors: {group name: smallest number of units kept}, over `min_units`.

    Raises:
        ArgumentError: none or several of the six are given, or one is outside (0, 1].

    Example:
        >>> Budget(macs=0.5).kind, Budget(macs=0.5).value
        ('macs', 0.5)
    """

    density: Any = None
    params: Any = None
    macs: Any = None
    latency: Any = None
    energy: Any = None
    bytes: Any = None
    min_units: int = 1
    multiple_of: int = 1
    floors: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)

    KINDS = ("density", "params", "macs", "latency", "energy", "bytes")

    def __post_init__(self):
        # Exactly one: two fractions of one net would contradict each other.
        kinds = [kind for kind in self.KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise errors.ArgumentError(
                f"Budget got {kinds or 'nothing'}; it takes exactly one of "
                f"{', '.join(self.KINDS)}, each a fraction of the dense net that is kept. Write "
                "Budget(macs=0.5)."
            )
        # A learned budget is traced: it has no number to check.
        if not isinstance(self.value, Tracer):
            value = float(self.value)
            if not (math.isfinite(value) and 0 < value <= 1):
                raise errors.ArgumentError(
                    f"Budget({kinds[0]}={self.value}) is outside (0, 1]: it is the fraction that "
                    f"is kept. To remove 30 %, write Budget({kinds[0]}=0.7)."
                )
        # A group without units cuts the net; a branch may go, for the sum has another side.
        if self.min_units < 1 or self.multiple_of < 1:
            raise errors.ArgumentError(
                f"Budget got min_units={self.min_units}, multiple_of={self.multiple_of}; both are "
                "at least 1. To remove whole layers, prune branches."
            )

    def __hash__(self) -> int:
        # Stages hold budgets, and equal stages share what was compiled; a mapping has no hash.
        fractions = tuple(getattr(self, kind) for kind in self.KINDS)
        floors = frozenset(self.floors.items())
        return hash((fractions, self.min_units, self.multiple_of, floors))

    @property
    def kind(self) -> str:
        """Which of the six was set."""
        return next(kind for kind in self.KINDS if getattr(self, kind) is not None)

    def of_weights(self) -> "Budget":
        """The same for single weights: multiples, `min_units` and floors concern units."""
        return dataclasses.replace(self, multiple_of=1, min_units=1, floors={})

    @property
    def value(self) -> Any:
        """The fraction kept."""
        return getattr(self, self.kind)


Allocator = Callable[[Scores, Budget, CostModel | None], Masks]
"""`(scores, budget, cost_model) -> masks`; budgets in density need no cost model."""


class Criterion(NamedTuple):
    """Scores from variables and data.

    Attributes:
        init: `init(variables) -> state`.
        update: `update(state, variables, batch) -> state`, jitted.
        score: `score(state, variables) -> scores`: a tree like the variables, or {group: [units]}.
        needs_data: whether `update` reads the batch; a criterion without data is never updated.
        again: `again(state) -> state` between two passes over the same batches; None: one pass.
        scored: names of the groups that are scored; None: all of them, or single weights.
    """

    init: Callable[[Variables], PyTree]
    update: Callable[[PyTree, Variables, Batch], PyTree]
    score: Callable[[PyTree, Variables], Scores]
    needs_data: bool = True
    again: Callable[[PyTree], PyTree] | None = None
    scored: tuple[str, ...] | None = None


class Problem(NamedTuple):
    """A reconstruction: the outputs of a consumer are fitted again, from fewer of its inputs.

    Attributes:
        inputs: [n, units, window]: what the consumer reads, at n sampled positions.
        targets: [n, outputs]: the outputs that it should have, before its bias.
        weight: [units, window, outputs]: the present weights.
        keep: bool [units], or [units, outputs]: where weights may differ from 0.
        rows: [n]: weights of the rows in the sum of squares; None: all 1.
        ridge: strength of the penalty that holds weights at their old values; None: the
            reconstructor's own rule.
        bias: whether a constant may be added to every output.
        errors: [n, outputs]: factors of the single errors, before they are squared; None: all 1.
        of_outputs: [outputs]: factors of the errors of an output, for the choice of units; a refit
            is one of each output by itself and does not see them. None: all 1.
    """

    inputs: Any
    targets: Any
    weight: Any
    keep: Any
    rows: Any = None
    ridge: float | None = None
    bias: bool = False
    errors: Any = None
    of_outputs: Any = None


Reconstructor = Callable[[Problem], tuple[np.ndarray, np.ndarray]]
"""`(problem) -> (weight [units, window, outputs], what is added to the bias [outputs])`."""


class Source(Protocol):
    """A split of a data set, in the order of its files."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: Any) -> Batch:
        """Example(s) at an index, or an array of indices."""
        ...


class Data(NamedTuple):
    """A data set with fixed splits.

    Attributes:
        name: of the data set.
        shape: of one image, (height, width, channels).
        classes: number of classes; 0 where labels are no classes.
        sizes: {"train": n, "validation": n, "test": n}.
        batches: `batches(split, batch_size, seed=None, epoch=0, start=0)` yields batches `{"image":
            float32 [batch, h, w, c], "label": int32 [batch], "weight": float32 [batch]}`. With a
            seed the order (and the augmentation, where the set has one) is a function of (seed,
            epoch) alone, and the last, partial batch is dropped; without one the order is that of
            the files and the last batch is padded with weight 0. `start` skips that many batches,
            so that a resumed run gets the batches of an undisturbed one. A run on several hosts
            also passes `rows`, a slice: of every batch, those rows alone.
        about: where the splits are from, in words; empty where nothing is known.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    sizes: dict[str, int]
    batches: Callable[..., Iterator[Batch]]
    about: str = ""


class Task(NamedTuple):
    """What a user brings: a net, a loss and data.

    Attributes:
        name: of the model.
        fn: `fn(variables, x) -> out` in inference mode.
        train_fn: `train_fn(variables, x, key) -> (out, new)`, `new` being what `update` takes.
        loss: `loss(out, batch) -> [batch]`.
        metrics: `metrics(out, batch) -> {name: [batch]}`, averaged over a split by
            `train.evaluate`.
        init: `init(key) -> variables`.
        example: shape and type of the inputs for one example, batch axis 1 included.
        split: `split(variables) -> (params, rest)`: the trained part and the rest.
        merge: `merge(params, rest) -> variables`.
        update: `update(variables, new) -> variables` with the statistics of a training step written
            in.
        latency: predicts the time of a contraction (a `jprune.cost.Term`) in ms, for budgets in
            latency: from `jprune.measure.latency_table`. None: there are no such budgets.
    """

    name: str
    fn: Callable[..., Any]
    train_fn: Callable[..., Any]
    loss: Callable[[Any, Batch], jax.Array]
    metrics: Callable[[Any, Batch], dict[str, jax.Array]]
    init: Callable[[jax.Array], Variables]
    example: Any
    data: Data
    split: Callable[[Variables], tuple[Params, PyTree]]
    merge: Callable[[Params, PyTree], Variables]
    update: Callable[[Variables, Any], Variables]
    latency: Callable[[Any], Any] | None = None


class Pruned(NamedTuple):
    """A net on its way through a recipe.

    Attributes:
        variables: of the net, dense (pruned units are masked, not cut off).
        masks: unit masks {group: [units]}, or a tree like the variables; None while nothing is
            pruned.
        extra: what a method trains beside the weights: gates, a hypernetwork.
        saved: {name: variables} that earlier stages saved, such as `init`, `teacher`, `rewind`.
        resolution: int [height, width] that images are resized to before the net; None: no
            resizing.
    """

    variables: Variables
    masks: Masks
    extra: PyTree = None
    saved: Mapping[str, Variables] = {}
    resolution: Any = None


class Learner(NamedTuple):
    """Training that can stop after any step and go on from there.

    A step depends on the state, the batch and its number alone, so a run that was stopped and
    restored takes exactly the steps of one that was not.

    Attributes:
        steps: number of all steps.
        epoch: steps in an epoch.
        init: `init() -> state`, a tree of arrays.
        batches: `batches(start)`: endless, from that step on.
        step: `step(state, batch) -> state, metrics`, jitted; the old state is given away (donated).
        variables: `variables(state)`: the net at this point.
        finish: `finish(state)`: the net as it goes to the next stage.
        over: `over(state)`: whether nothing is left to do, so that the steps that remain are not
            taken. Asked before the first step of every epoch; None: all steps are taken.
    """

    steps: int
    epoch: int
    init: Callable[[], PyTree]
    batches: Callable[[int], Iterator[Batch]]
    step: Callable[[PyTree, Batch], tuple[PyTree, dict[str, jax.Array]]]
    variables: Callable[[PyTree], Variables]
    finish: Callable[[PyTree], Pruned]
    over: Callable[[PyTree], bool] | None = None

    def ends(self, step: int, state: PyTree) -> bool:
        """Whether the learner ends before its next step, so many steps being done."""
        if step >= self.steps:
            return True
        # A function of step and state alone: a run that was stopped here ends here too.
        return self.over is not None and step % self.epoch == 0 and bool(self.over(state))


class Searcher(NamedTuple):
    """Search in rounds: `ask` gives candidates, `tell` takes their scores.

    All functions are pure: random draws depend on the key of `init` and on the round alone.

    Attributes:
        init: `init(key) -> state`, a tree of arrays.
        ask: `ask(state) -> candidates`: [p, genes], none of them asked before; p may be 0. Genes
            are int where there is a menu, and else float.
        tell: `tell(state, candidates, scores [p]) -> state`; higher is better.
        best: `best(state) -> (candidate [genes], its score)`, of all so far.
    """

    init: Callable[[jax.Array], PyTree]
    ask: Callable[[PyTree], np.ndarray]
    tell: Callable[[PyTree, np.ndarray, Any], PyTree]
    best: Callable[[PyTree], tuple[np.ndarray, float]]


Wrap = Callable[
    [Any, Schedule, jax.Array],
    Callable[[optax.GradientTransformation], optax.GradientTransformationExtraArgs],
]
"""How a method takes part in training: `(net, rate, key) -> (inner -> transformation)`.

`net` is the task's `jprune.train.Net`, `inner` the optimizer (with `hold` last in it where masks
are held). `rate` is how far a step moves a weight whose gradient stays 1: SGD's learning rate /
(1 - momentum), the learning rate of others. A penalty beside the step takes its strength times it.

A wrap can be hashed, and equal wraps share what was compiled for a step: so what its transformation
does depends on its settings, on the net and on the optimizer's state alone. Masks, clusters and
keys are in the state, put there by `init`. Its `update` is given the `batch` and the `rest` of the
variables (what is not trained) by name.

A wrap with an attribute `gates`, a kind of site, is told in every step what the loss of each
example does as a unit is closed there: `batch["slopes"]`, {group: [batch, units]}.
"""


class Stage(Protocol):
    """One step of a recipe: a frozen dataclass of settings, called with the state of the run."""

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Returns the new state and the records to append."""
        ...


Recipe = tuple[Stage, ...]


class Progress(Protocol):
    """Told what happens in a run; shows it somehow (`jprune.runs.progress`)."""

    def begin(self, stage: str, number: int, of: int, steps: int, done: int) -> None:
        """The `number`-th of `of` stages begins; `done` of its `steps` steps are done.

        A stage that has no steps of its own comes with 0.
        """
        ...

    def advance(self, step: int, metrics: dict[str, float]) -> None:
        """So many steps of the stage are done; metrics are the latest, or empty."""
        ...

    def epoch(self, epoch: int, of: int, metrics: dict[str, float]) -> None:
        """An epoch of the stage is over."""
        ...

    def end(self) -> None:
        """The stage is over."""
        ...

    def note(self, text: str) -> None:
        """Shows a line of text."""
        ...

    def close(self) -> None:
        """Leaves the terminal as it was."""
        ...


def is_none(leaf: Any) -> bool:
    """For `is_leaf` of tree functions: None means "not prunable" and is a leaf."""
    return leaf is None


def quality(metrics: Mapping[str, Any], loss: Any) -> Any:
    """How good a net is: its metric `accuracy`, or minus the loss where there is none.

    Args:
        metrics: of a task, for every example or their means.
        loss: of the task, likewise.

    Returns:
        Of the shape of a metric; higher is better.

    Example:
        >>> quality({"loss": 0.2, "accuracy": 0.9}, 0.2), quality({"error": 0.3}, 0.2)
        (0.9, -0.2)
    """
    # Accuracy where there is one, since papers report it; minus the loss rises with quality too.
    return metrics.get("accuracy", -loss)


def check_batch(batch: Any) -> None:
    """Refuses what is no batch: a mapping whose "image" is what the net takes.

    Raises:
        ArgumentError: something else came.

    Example:
        >>> check_batch((np.zeros((2, 3)), np.zeros(2)))
        Traceback (most recent call last):
        jprune.errors.ArgumentError: a batch came as a tuple; ...
    """
    if isinstance(batch, Mapping) and "image" in batch:
        return
    if isinstance(batch, Mapping):
        came = f"with {', '.join(map(str, batch)) or 'nothing'} in it"
    else:
        came = f"as a {type(batch).__name__}"
    raise errors.ArgumentError(
        f'a batch came {came}; write {{"image": x, "label": y}}: "image" is what the net takes, '
        "and the loss reads the rest."
    )


def run_criterion(criterion: Criterion, variables: Variables, batches: Iterable[Batch]) -> Scores:
    """Scores of a criterion after all batches.

    Args:
        criterion: what to run.
        variables: the net's variables, masked or not.
        batches: calibration data; ignored by a criterion that needs none, gone over twice by one
            that has `again`.

    Returns:
        The scores, in the shape that the criterion documents.

    Raises:
        ArgumentError: the criterion needs data and there is not one batch, or something else than
            batches came; two passes over an iterator, which can be gone over once.
    """
    # Criteria carry sums over batches, so that scores are means over the calibration data.
    state = criterion.init(variables)
    if not criterion.needs_data:
        return criterion.score(state, variables)
    if isinstance(batches, Mapping):
        raise errors.ArgumentError(
            f"run_criterion got one batch, with {', '.join(map(str, batches))}, and takes "
            'several: write [batch], a batch being {"image": x, "label": y}.'
        )
    if criterion.again is not None and iter(batches) is batches:
        raise errors.ArgumentError(
            f"run_criterion got a {type(batches).__name__}, which can be gone over once, and this "
            "criterion looks at the batches twice. Write list(batches), or pass an object whose "
            "__iter__ begins anew."
        )
    state = _passed(criterion, state, variables, batches)
    if criterion.again is not None:
        state = _passed(criterion, criterion.again(state), variables, batches)
    return criterion.score(state, variables)


def _passed(
    criterion: Criterion, state: PyTree, variables: Variables, batches: Iterable[Batch]
) -> PyTree:
    """The state after one pass over all batches."""
    batches_seen = 0
    for batch in batches:
        check_batch(batch)
        # Batch by batch: calibration data never lie in memory together.
        state = criterion.update(state, variables, batch)
        batches_seen += 1
    # Scores of an empty sum would all be 0, and prune by the order of the leaves.
    if not batches_seen:
        raise errors.ArgumentError(
            "run_criterion got no batch, and this criterion looks at data. Pass an iterable of "
            'batches, for example [{"image": x, "label": y}].'
        )
    return state


def to_the_end(learner: Learner) -> tuple[Pruned, dict[str, float]]:
    """Takes all steps, or those until the learner ends by itself.

    Returns:
        The net, and the metrics of the last step.
    """
    state, metrics = learner.init(), {}
    batches = learner.batches(0)
    for step in itertools.count():
        if learner.ends(step, state):
            break
        state, metrics = learner.step(state, next(batches))
    # Metrics are read once, at the end: reading them each step would wait for the device.
    return learner.finish(state), {name: float(value) for name, value in metrics.items()}
