"""Layer by layer, units are selected one after the other by what the net does with them.

The selection is `jprune.search.forward`; here its losses are those of the net, of all candidates
in one call of one compiled function, whatever the layer: gates are data.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate.widths import widths
from jprune.base import Batch, Budget, Pruned, Records, Task, Variables, quality
from jprune.graph import taps
from jprune.masks import apply_masks
from jprune.search import Selection, forward
from jprune.stages.frame import fractions, record
from jprune.stages.walk import Step, alive_of, check_steps, masks_by_name, shares_of, steps_of
from jprune.train.net import Net
from jprune.train.numbers import Numbers
from jprune.train.step import few_batches, stream
from jprune.units import expand

IMITATE = ("loss", "outputs", "layer")
STREAMS = ("whole", "joint")


@dataclasses.dataclass(frozen=True)
class SelectForward:
    """Selects the units that every layer keeps, greedily from none, and rescales them.

    A layer's n units of D are multiplied by D / n where they are read, and that factor is folded
    into the weights of the readers. Layers go in the order of their first reader; each is judged in
    the net as pruned by then.

    Attributes:
        budget: what is kept of the dense net: every layer's n.
        imitate: what is least: the "loss" on labels; "outputs": the squared distance to the
            outputs of the net before this stage (global imitation); "layer": that of the readers'
            outputs to those with all units of the layer, relative to their size (local imitation).
        stream: residual streams stay "whole", or are pruned for all their readers together
            ("joint").
        ratios: relative shares kept: one number for all, one for each step in order, or by name.
        part: (round, number of rounds): the layers are divided evenly among rounds.
        repeat: whether a unit can be selected again; it then counts twice, and fewer units stay.
        candidates: units that are drawn for a choice; 0: all are tried.
        batches: of training images; choice n looks at batch n modulo batches.
        batch_size: images in one.
        tolerance: a layer ends before its n where the quality on `examples` training images is
            within this fraction of what it was with the whole layer; None: it never does.
        examples: that the tolerance is judged on.
        name: of the record: fractions kept, how many `layers` were pruned, and `evaluated`, the
            candidates.
    """

    budget: Budget
    imitate: str = "loss"
    stream: str = "whole"
    ratios: Numbers = 1.0
    part: tuple[int, int] = (0, 1)
    repeat: bool = False
    candidates: int = 50
    batches: int = 20
    batch_size: int = 128
    tolerance: float | None = None
    examples: int = 1024
    name: str = "prune"

    def __post_init__(self):
        if self.imitate not in IMITATE or self.stream not in STREAMS:
            raise errors.ArgumentError(
                f"imitate={self.imitate!r}, stream={self.stream!r}; write one of "
                f"{', '.join(IMITATE)}, and one of {', '.join(STREAMS)}."
            )
        if min(self.batches, self.batch_size, self.examples) < 1 or self.candidates < 0:
            raise errors.ArgumentError(
                f"candidates={self.candidates}, batches={self.batches}, batch_size="
                f"{self.batch_size}, examples={self.examples}; candidates are 0 (all) or more, the "
                "others 1 or more."
            )
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise errors.ArgumentError(
                f"tolerance={self.tolerance}; it is a fraction of the quality, in [0, 1), or None."
            )

    def check(self, task: Task) -> None:
        """As `check_steps`."""
        check_steps(task, self.stream, self.budget, self.ratios)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks, rescaled variables, and the record.

        Raises:
            ArgumentError: nothing is prunable, or losses are not finite.
            BudgetError: a budget that cannot be met.
        """
        net, steps = Net(task), steps_of(task, self.stream)
        alive = alive_of(task, pruned, steps)
        masks_of = lambda masks: masks_by_name(task, pruned, steps, masks)
        # All widths at once and before the first choice: the budget is one of the whole net.
        goals = widths(alive, self.budget, net.cost, masks_of, shares_of(self.ratios, steps))
        which, parts = self.part
        of_part = [step for n, step in enumerate(steps) if n * parts // len(steps) == which]
        todo = [step for step in of_part if goals[step.name] < alive[step.name].sum()]
        variables, evaluated = pruned.variables, 0
        losses = None
        for number, step in enumerate(todo):
            # Made for the first layer: a round without layers reads no images.
            losses = losses or Losses(self, task, pruned.variables, steps, key)
            # A key of its own for every step: what one step draws does not depend on the others.
            drawn = np.asarray(jax.random.key_data(jax.random.fold_in(key, number)))
            selected = losses.select(
                variables, step, alive[step.name], goals[step.name], drawn.ravel().tolist()
            )
            evaluated += losses.evaluated
            alive = {**alive, step.name: selected.counts > 0}
            # w <- D a w at every reader: the net with gates, without the gates
            variables = scaled(net, variables, {step.name: selected.gates})
            variables = apply_masks(variables, net.weight_masks(masks_of(alive)))
        masks = masks_of(alive)
        metrics = {**fractions(task, masks), "layers": len(todo), "evaluated": evaluated}
        return Pruned(variables, masks, pruned.extra, pruned.saved), [record(self.name, metrics)]


def scaled(net: Net, variables: Variables, gates: Mapping[str, Any]) -> Variables:
    """The variables with gates {group: [units]} folded into the weights that read the units."""
    factors = expand(
        net.groups, {n: jnp.asarray(g, jnp.float32) for n, g in gates.items()}, ("in",)
    )
    read = {
        place.leaf for name in gates for place in net.groups.places[name] if "in" in place.roles
    }
    leaves, by_path = net.leaves(variables), net.leaves(factors)
    return net.tree(
        {
            path: leaf * by_path[path].astype(leaf.dtype) if path in read else leaf
            for path, leaf in leaves.items()
        }
    )


class Losses:
    """What candidates cost: compiled once for all choices of all layers of a stage.

    Attributes:
        evaluated: candidates since the last selection began.
    """

    def __init__(
        self,
        stage: SelectForward,
        task: Task,
        dense: Variables,
        steps: Sequence[Step],
        key: jax.Array,
    ):
        self.stage, self.net, self.evaluated = stage, Net(task), 0
        self.names = tuple(step.name for step in steps)
        ends = [0, *itertools.accumulate(step.units for step in steps)]
        self.places = tuple(itertools.starmap(slice, itertools.pairwise(ends)))
        sites = tuple(s for step in steps for s in readers(self.net, step))
        local = sites if stage.imitate == "layer" else ()
        run = self.net.once(_losses, task.loss, task.metrics, stage.imitate, self.names, local)
        self.run, self.sites, self.dense = run, local, dense
        # The stages of several layers share a program: all sets have as many candidates.
        widest = max(step.units for step in steps)
        self.most = min(widest, stage.candidates or widest)
        self.images = few_batches(task.data, stage.batches, stage.batch_size, key)
        size = min(stage.batch_size, task.data.sizes["train"])
        enough = -(-min(stage.examples, task.data.sizes["train"]) // size)
        self.judged = [*itertools.islice(stream(task.data, size, key), enough)]

    def select(
        self, variables: Variables, step: Step, alive: np.ndarray, count: int, seed: Sequence[int]
    ) -> Selection:
        """The selection of a step's units."""
        stage = self.stage
        sites = {*readers(self.net, step)}
        weights = np.array([site in sites for site in self.sites], np.float32)
        self.evaluated = 0

        def values(gates: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
            # Gates of all layers, those of the others 1: one program serves every layer.
            rows = np.ones((len(gates), self.places[-1].stop), np.float32)
            rows[:, self.places[self.names.index(step.name)]] = gates
            return self.run(variables, self.dense, rows, weights, batch)

        def losses(gates: np.ndarray, number: int) -> np.ndarray:
            self.evaluated += len(gates)
            # As many rows for layers of all widths.
            padded = np.concatenate([gates, np.repeat(gates[:1], self.most - len(gates), axis=0)])
            found = values(padded, self.images[number % len(self.images)])[0]
            return np.asarray(found)[: len(gates)]

        def judged(gates: np.ndarray) -> float:
            return float(np.mean([values(gates[None], batch)[1] for batch in self.judged]))

        enough = None
        if stage.tolerance is not None:
            whole = judged(np.where(alive, 1.0, 0.0))
            # top1 >= (1 - tol) init; a quality below 0 (minus a loss) falls by as much
            least = whole - stage.tolerance * abs(whole)
            enough = lambda gates: judged(gates) >= least
        return forward(
            losses,
            alive,
            count,
            repeat=stage.repeat,
            candidates=stage.candidates or None,
            seed=seed,
            enough=enough,
        )


def readers(net: Net, step: Step) -> tuple[str, ...]:
    """Call sites of the kernels that read a step's units."""
    return tuple(site for path in step.kernels for site in net.groups.layers[path].sites)


def _losses(
    net: Net, loss: Any, metrics: Any, imitate: str, names: tuple[str, ...], sites: tuple[str, ...]
) -> Callable[..., Any]:
    """`(variables, dense, gates [n, units of all names], weights [sites], batch) -> [n], [n]`.

    These are the losses, and the qualities on the task's own metric.
    """
    ends = [0, *itertools.accumulate(net.groups.sizes[name] for name in names)]
    groups, task = net.groups, net.task
    see = taps(task.fn, groups, ("out",)) if sites else None

    def run(variables: Variables, image: Any) -> tuple[Any, list[Any]]:
        if see is None:
            return task.fn(variables, image), []
        out, values = see(variables, image)
        return out, [values[site, "out"] for site in sites]

    def distance(one: Any, other: Any) -> jax.Array:
        # mean ||y - y*||^2, over all that a net puts out
        parts = zip(jax.tree.leaves(one), jax.tree.leaves(other))
        squares = [(a.astype(jnp.float32) - b.astype(jnp.float32)) ** 2 for a, b in parts]
        return jnp.stack([square.mean() for square in squares]).sum()

    @jax.jit
    def losses(variables: Variables, dense: Variables, gates: Any, weights: Any, batch: Batch):
        whole, targets = run(dense if imitate == "outputs" else variables, batch["image"])

        def one(row: jax.Array) -> tuple[jax.Array, jax.Array]:
            by_name = {name: row[a:b] for name, a, b in zip(names, ends, ends[1:])}
            out, values = run(scaled(net, variables, by_name), batch["image"])
            own = loss(out, batch)
            judged = quality(metrics(out, batch), own).mean()
            if imitate == "loss":
                return own.mean(), judged
            if imitate == "outputs":
                return distance(out, whole), judged
            # Readers count alike, whatever the size of their outputs.
            parts = [distance(a, b) / (distance(b, 0 * b) + 1e-12) for a, b in zip(values, targets)]
            return weights @ jnp.stack(parts), judged

        # One after the other: all together would not fit the memory of activations.
        return jax.lax.map(one, gates)

    return losses
