"""The stage of EigenDamage: kernels become products of a rotation, a core and a rotation."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import allocate, errors
from jprune.allocate.budgets import MISSED
from jprune.base import Budget, Cost, Groups, Pruned, Records, Schedule, Task, Variables
from jprune.curvature import KroneckerLayer, Rotated, layers_of, rotated
from jprune.forms.factored import Factored
from jprune.forms.layout import Axes, as_axes, in_order
from jprune.forms.opened import has_leaf_types, opened
from jprune.forms.slide import plain_kernels
from jprune.graph import trace
from jprune.graph.couple.coupling import leaf_paths
from jprune.stages.frame import check_prunable, record
from jprune.stages.kronecker import calibration, factors_of, floors_of
from jprune.train.net import Net

PART = re.compile("/factored[-0-9]*/(left|core|right)$")
"""Ends the path of a factored kernel's parts in the opened net; it may name the kernel's axes."""

COLUMNS, ROWS = " columns", " rows"
"""Suffixes of a kernel's path: names of its inputs and of its outputs as groups of scores."""

UNITS = {"params": 0, "macs": 1}
"""{kind of budget: its place in `Form.cost`}; a density counts as parameters."""


class Form(NamedTuple):
    """A layer in the eigenbasis, and what it costs there.

    Attributes:
        layer: of the array that is rotated: the kernel, or the core of a factored one.
        held: the kernel, if it is factored already; else None.
        turned: the array in its eigenbasis.
        axes: of the kernel, as (window..., inputs, outputs).
    """

    layer: KroneckerLayer
    held: Factored | None
    turned: Rotated
    axes: Axes = None

    @property
    def widths(self) -> tuple[int, int]:
        """Inputs and outputs of the kernel; of a factored one, those outside of its rotations."""
        if self.held is None:
            return self.layer.inputs, self.layer.outputs
        return self.held.left.shape[0], self.held.right.shape[1]

    def cost(self, columns: int, rows: int) -> np.ndarray:
        """(parameters, MACs) of left rotation, core and right rotation."""
        inputs, outputs = self.widths
        # Weights: U_in [inputs, columns], core [window, columns, rows], U_out [rows, outputs].
        left_rotation, core, right_rotation = (
            inputs * columns,
            self.layer.window * columns * rows,
            rows * outputs,
        )
        # The left rotation runs where inputs stand, core and right rotation where outputs do: a
        # stride lies between them.
        read, written = self.layer.read, self.layer.written
        return np.array(
            [
                left_rotation + core + right_rotation,
                read * left_rotation + written * (core + right_rotation),
            ],
            float,
        )

    def each(self, kind: str) -> tuple[float, float]:
        """What one column and one row cost when all others stay, in parameters or MACs."""
        columns, rows, unit = self.layer.inputs, self.layer.outputs, UNITS.get(kind, 0)
        whole = self.cost(columns, rows)[unit]
        return (
            whole - self.cost(columns - 1, rows)[unit],
            whole - self.cost(columns, rows - 1)[unit],
        )

    def now(self) -> np.ndarray:
        """(parameters, MACs) of the layer before this pruning."""
        if self.held is not None:
            return self.cost(self.layer.inputs, self.layer.outputs)
        weights = float(self.layer.window * self.layer.inputs * self.layer.outputs)
        return np.array([weights, self.layer.written * weights])

    def part(self, columns: np.ndarray, rows: np.ndarray, dtype: Any) -> Factored:
        """The kernel in its new form; a new rotation is multiplied into the old one."""
        new = self.turned.part(columns, rows, dtype, self.axes)
        if self.held is None:
            return new
        # U_in (U'_in W' U'_out^T) U_out^T: the rotations of two rounds are one.
        left, right = self.held.left @ new.left, new.right @ self.held.right
        return Factored(left, new.core, right, self.held.axes)


@dataclasses.dataclass(frozen=True)
class Rotate:
    """Keeps the best rows and columns of all layers in their eigenbasis, under a budget.

    A layer whose parts would have more parameters than it has now (in a budget of MACs: take more
    MACs) stays as it is, as in the paper.

    Attributes:
        budget: what may be kept, of the dense net; a density is that of all rows and columns.
            Layers of a group that its floors leave whole are not rotated.
        limit: the largest fraction of a layer's rows, or columns, that may go.
        labels: "model" or "data".
        normalize: divide the scores of each layer by their sum.
        per_cost: divide scores by what the row or column costs, in the budget's unit.
        last: layers whose result is the net's, read by no other layer, are pruned too.
        batches: calibration batches of the factors; None: one pass over the training images.
        batch_size: examples in one.
        first: whether it comes to a net that no earlier round has rotated.
        name: of the record: `density` is the fraction of rows and columns that are held, with those
            of layers that stay as they are.
    """

    budget: Budget
    limit: float = 0.95
    labels: str = "model"
    normalize: bool = False
    per_cost: bool = False
    last: bool = False
    batches: int | None = None
    batch_size: int = 64
    first: bool = True
    name: str = "prune"

    def __post_init__(self):
        floors_of({}, self.limit)

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does, and `layers` where no layer can be rotated.

        Raises:
            BudgetError: the budget of a first round is out of reach of its limit.
        """
        check_prunable(task, self.budget, "weight")
        layers = self.rotatable(task.fn, Net(task).shapes, Net(task).groups, task)
        if not self.first:
            return
        # Of the smallest net, widths alone count: no layer is turned yet.
        forms = {path: Form(layer, None, cast(Any, None)) for path, layer in layers.items()}
        scores = {
            path + suffix: np.ones(size)
            for path, form in forms.items()
            for suffix, size in zip((COLUMNS, ROWS), form.widths)
        }
        model = self.model(Net(task).cost({}), forms)
        allocate.refuse_impossible(scores, self.limited(scores, float(self.budget.value)), model)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Variables with factored kernels; `damage` of the record is the loss they should cost.

        Raises:
            ArgumentError: the net has masks, no layer can be rotated, or curvature is not finite.
            BudgetError: a budget that cannot be met; the message says the smallest that can.
        """
        if pruned.masks is not None:
            raise errors.ArgumentError(
                "Rotate came with masks: kernels are rotated whole. Put it before what masks, or "
                "leave that out."
            )
        return self.with_forms(pruned, task, self.forms(pruned.variables, task, key))

    def with_forms(
        self, pruned: Pruned, task: Task, forms: Mapping[str, Form]
    ) -> tuple[Pruned, Records]:
        """The same with layers that are rotated already; one pass serves several budgets."""
        scores = self.scores(forms)
        masks = self.chosen(pruned, task, forms, scores)
        leaves, damage, held = leaf_paths(pruned.variables), 0.0, 0
        for path, form in forms.items():
            columns, rows = masks[path + COLUMNS], masks[path + ROWS]
            # Two rotations may weigh more than the columns and
            # rows that went: then the layer is left alone.
            if not self.pays(form, columns, rows):
                held += form.layer.inputs + form.layer.outputs
                continue
            held += int(columns.sum() + rows.sum())
            # What goes costs the sum of Theta over all, less that over what stays.
            damage += form.turned.damage.sum() - form.turned.damage[columns][:, rows].sum()
            leaves[path] = form.part(columns, rows, leaves[path].dtype)
        variables = jax.tree.unflatten(Net(task).groups.treedef, list(leaves.values()))
        pruned = pruned._replace(variables=variables)
        # Counted on the net that runs: masks would not see the rotations.
        dense, now = Net(task).cost({}), Net(task).cost_as_held(pruned, {})
        metrics = {
            "density": held / sum(sum(form.widths) for form in forms.values()),
            "params": float(now.params) / float(dense.params),
            "macs": float(now.macs) / float(dense.macs),
            "damage": float(damage),
        }
        if self.budget.kind == "density" and metrics["density"] > self.budget.value + MISSED:
            logging.getLogger(__name__).warning(
                "EigenDamage holds %.3f of all rows and columns where Budget(density=%s) asked for "
                "less: layers stay whole whose two rotations and core would be larger than the "
                "layer. Ask for a smaller density, or for a budget in params or macs.",
                metrics["density"], self.budget.value,
            )  # fmt: skip
        return pruned, [record(self.name, metrics)]

    def forms(self, variables: Variables, task: Task, key: jax.Array) -> dict[str, Form]:
        """{kernel: its form} of all layers that are rotated."""
        fn, plain = opened(Net(task).fn, variables)
        dense = not has_leaf_types(variables)
        groups = Net(task).groups if dense else trace(fn, plain, task.example)
        layers = self.rotatable(fn, plain, groups, task)
        # Labels are drawn apart from the order of the batches.
        drawing, order = jax.random.split(key)
        batches = calibration(task, order, self.batches, self.batch_size)
        factors = factors_of(
            fn, plain, groups, layers, task, batches, self.labels, drawing, "channels"
        )
        leaves, kernels = leaf_paths(variables), leaf_paths(plain)
        layouts = plain_kernels(fn, plain, task.example)
        forms: dict[str, Form] = {}
        for array, layer in layers.items():
            path = PART.sub("", array)
            held = leaves[path] if isinstance(leaves[path], Factored) else None
            axes = as_axes(layouts[array])
            kernel = in_order(np.asarray(kernels[array]), axes)
            forms[path] = Form(layer, held, rotated(kernel, factors[array], path), axes)
        return forms

    def rotatable(
        self, fn: Callable[..., Any], variables: Variables, groups: Groups, task: Task
    ) -> dict[str, KroneckerLayer]:
        """The layers of a net that are rotated.

        Args:
            fn: the net, its kernels in other forms written out.
            variables: its variables, or their shapes.
            groups: of this net.
            task: of the net as it was.
        """
        # Of a factored kernel, it is the right rotation whose result is the net's.
        last = {PART.sub("", path) for path, each in groups.layers.items() if each.last}
        # Convolutions and dense layers whose kernel no other operation touches.
        held_as = plain_kernels(fn, variables, task.example)
        factored = layers_of(fn, groups, variables, task.example)
        return self.layers({p: e for p, e in factored.items() if p in held_as}, task, last)

    def layers(
        self, factored: Mapping[str, KroneckerLayer], task: Task, last: set[str]
    ) -> dict[str, KroneckerLayer]:
        """The layers of the opened net that are rotated.

        Args:
            factored: all that have factors, by the path of their array.
            task: of the net.
            last: kernels of the last layers.

        Raises:
            ArgumentError: there is none.
        """
        groups = Net(task).groups
        whole = {
            place.leaf
            for name, floor in self.budget.floors.items()
            if floor >= groups.sizes.get(name, np.inf)
            for place in groups.places[name]
            if "kernel" in place.roles
        }
        # A factored kernel is three arrays in the opened net: of these, the core alone is rotated.
        rotation = lambda path: (part := PART.search(path)) is not None and part[1] != "core"
        stay = whole if self.last else whole | last
        arrays = [path for path in factored if not rotation(path)]
        layers = {path: factored[path] for path in arrays if PART.sub("", path) not in stay}
        if not layers:
            raise errors.ArgumentError(
                f"EigenDamage finds no layer to rotate in {task.name}: all are frozen, or the last "
                "one. Write last=true to rotate that too."
            )
        return layers

    def scores(self, forms: Mapping[str, Form]) -> dict[str, np.ndarray]:
        """Theta summed over rows for every column, and over columns for every row."""
        scores: dict[str, np.ndarray] = {}
        for path, form in forms.items():
            theta = form.turned.damage
            # Curvature differs by orders of magnitude between layers: with shares of a layer's
            # sum, each loses about alike.
            theta = theta / max(theta.sum(), np.finfo(float).tiny) if self.normalize else theta
            column, row = form.each(self.budget.kind) if self.per_cost else (1.0, 1.0)
            # Of a column j: sum_i Theta_ij; of a row i: sum_j Theta_ij.
            scores |= {
                path + COLUMNS: theta.sum(axis=1) / column,
                path + ROWS: theta.sum(axis=0) / row,
            }
        return scores

    def pays(self, form: Form, columns: np.ndarray, rows: np.ndarray) -> bool:
        """Whether a layer's parts are smaller than the layer."""
        unit = UNITS.get(self.budget.kind, 0)
        return bool(form.cost(int(columns.sum()), int(rows.sum()))[unit] < form.now()[unit])

    def chosen(
        self,
        pruned: Pruned,
        task: Task,
        forms: Mapping[str, Form],
        scores: Mapping[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        """{kernel's path + " rows" or " columns": mask} under one threshold."""
        now = Net(task).cost_as_held(pruned, {})
        budget = self.limited(scores, self.left(task, now, forms))
        return dict(allocate.global_topk(dict(scores), budget, self.model(now, forms)))

    def model(self, now: Cost, forms: Mapping[str, Form]) -> Callable[[Any], Cost]:
        """`masks -> cost` of the net in its new form; `now` is what it costs at present."""
        others = np.array([float(now.params), float(now.macs)])
        # What no rotation changes is a constant of the model.
        others -= sum(form.now() for form in forms.values())

        def model(masks: Mapping[str, np.ndarray]) -> Cost:
            total = others.copy()
            for path, form in forms.items():
                columns, rows = masks[path + COLUMNS], masks[path + ROWS]
                pays = self.pays(form, columns, rows)
                total += form.cost(int(columns.sum()), int(rows.sum())) if pays else form.now()
            return Cost(total[0], total[1], None, {})

        return model

    def limited(self, scores: Mapping[str, np.ndarray], value: float) -> Budget:
        """The budget of this value, whose floors keep to the limit."""
        floors = floors_of({name: score.size for name, score in scores.items()}, self.limit)
        return dataclasses.replace(self.budget, floors=floors, **{self.budget.kind: value})

    def left(self, task: Task, now: Cost, forms: Mapping[str, Form]) -> float:
        """The budget as a fraction of the present net, which earlier rounds may have pruned."""
        dense = Net(task).cost({})
        widths = [(form.layer.inputs, form.layer.outputs) for form in forms.values()]
        whole = [form.widths for form in forms.values()]
        grown = {
            "density": float(np.sum(whole)) / float(np.sum(widths)),
            "params": float(dense.params) / float(now.params),
            "macs": float(dense.macs) / float(now.macs),
        }
        # budget x dense / present
        return min(1.0, float(self.budget.value) * grown.get(self.budget.kind, 1.0))


def cores_only(
    net: Net, rate: Schedule, key: jax.Array
) -> Callable[[optax.GradientTransformation], optax.GradientTransformationExtraArgs]:
    """A `Wrap` that trains the cores of factored kernels, and not their rotations."""
    del net, rate, key

    def still(update: Any) -> Any:
        if not isinstance(update, Factored):
            return update
        # Behind the optimizer: momentum and weight decay would move what has no gradient.
        left, right = jnp.zeros_like(update.left), jnp.zeros_like(update.right)
        return Factored(left, update.core, right, update.axes)

    held = lambda node: isinstance(node, Factored)
    only = optax.stateless(lambda updates, params: jax.tree.map(still, updates, is_leaf=held))
    return lambda inner: optax.chain(inner, only)
