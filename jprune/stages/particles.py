"""Masks searched by a particle filter, layer by layer, at one of three scales.

The filter is `jprune.search.particle_filter`; here particles are masks, and how good they are is
measured by one compiled function for all layers and generations: masks are data.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import allocate, blocks, errors
from jprune.base import Batch, Budget, Learner, Masks, Pruned, Records, Searcher, Task, quality
from jprune.blocks import Blocks
from jprune.learners import to_the_end
from jprune.masks import apply_masks
from jprune.search import Offsets, Particles, Subsets, particle_filter, strided
from jprune.stages.frame import check_prunable, fractions, record
from jprune.train.net import Net
from jprune.units import expand

SCALES = ("maps", "kernels", "taps")
"""What particles mask: units; windows of one input and one output; strided taps of windows."""


class Layer(NamedTuple):
    """The search of one layer.

    Attributes:
        name: of its block.
        place: of its groups among those of all layers.
        genes: in a particle.
        searcher: of its particles.
        alive: particles [n, genes] to bool [n, groups].
    """

    name: str
    place: slice
    genes: int
    searcher: Searcher
    alive: Callable[[np.ndarray], np.ndarray]


class ParticleState(NamedTuple):
    """How far a search is.

    Attributes:
        step: generations so far, over all layers.
        particles: of the present layer, genes filled up with 0 to the most of any layer.
        chosen: bool [groups of all layers].
    """

    step: jax.Array
    particles: Particles
    chosen: jax.Array


@dataclasses.dataclass(frozen=True)
class FilterParticles:
    """Searches the masks of one layer after the other; the best particle of each stays.

    A step is a generation of a layer. Its records have the `best` and the `mean` score (accuracy on
    a part of the validation split, or minus the loss of a task without accuracy), and how many
    particles were `evaluated`.

    Attributes:
        budget: what is kept of the dense net; every layer keeps the same fraction.
        scale: "maps" (units, with all that is coupled), "kernels" (a window of one input and one
            output) or "taps" (every stride-th tap of a window, at an offset that all outputs of an
            input share, so that whole columns go); the last two in convolutions with a window.
        particles: in a generation.
        generations: of a layer; 1 is the best of so many random masks.
        rate: share of a particle that a mutation changes.
        crossover: probability that a particle has two parents.
        temperature: see `search.likelihoods`.
        stride: of the taps; None: the smallest that meets the budget.
        examples: of the validation split.
        before: what earlier stages keep of the dense net, for `check`.
        name: of the records.
    """

    budget: Budget
    scale: str = "maps"
    particles: int = 32
    generations: int = 20
    rate: float = 0.1
    crossover: float = 0.5
    temperature: float = 0.0
    stride: int | None = None
    examples: int = 512
    before: float = 1.0
    name: str = "search"

    def __post_init__(self):
        if self.scale not in SCALES or min(self.generations, self.examples) < 1:
            raise errors.ArgumentError(
                f"scale={self.scale!r}, generations={self.generations}, examples={self.examples}; "
                f"write one of {', '.join(SCALES)}, and 1 or more."
            )
        if self.stride is not None and self.stride < 2:
            raise errors.ArgumentError(f"stride={self.stride}; it is 2 or more: 1 removes nothing.")
        self._searcher(Subsets((True,), 1), 1)

    def _searcher(self, kind: Any, genes: int) -> Searcher:
        return particle_filter(
            kind, genes, self.particles, self.rate, self.crossover, self.temperature
        )

    def groups_of(self, task: Task) -> Blocks:
        """The groups that particles choose from.

        Raises:
            ArgumentError: the net has no convolution with a window.
        """
        net = Net(task)
        if self.scale == "maps":
            return blocks.filters(net.groups, shifts=True)
        open_ = net.kernels(net.prunable(None, self.budget))
        shapes = {path: net.groups.layers[path] for path in open_ if path in net.groups.layers}
        names = tuple(
            path
            for path, layer in shapes.items()
            if layer.plain and np.prod([layer.shape[axis] for axis in layer.window]) > 1
        )
        if not names:
            raise errors.ArgumentError(
                f"{task.name} has no convolution with a window, and so no {self.scale} to prune. "
                "Write scales=maps."
            )
        return (blocks.kernels if self.scale == "kernels" else blocks.columns)(net.groups, names)

    def check(self, task: Task) -> None:
        """Refuses a net that has nothing of this scale, and a budget out of reach.

        Raises:
            ArgumentError: it is one.
            BudgetError: the least that this scale leaves is too much.
        """
        if self.scale == "maps":
            check_prunable(task, self.budget)
            return
        made = self.groups_of(task)
        # Of what earlier stages leave, this one keeps budget / before.
        share = min(1.0, float(self.budget.value) / self.before)
        budget = dataclasses.replace(self.budget, **{self.budget.kind: share})
        if self.scale == "taps":
            self._stride(task, made, None, budget)
            return
        whole = {made.kind: {name: np.ones(block.size) for name, block in made.items()}}
        allocate.refuse_impossible_jointly([made], whole, budget, Net(task).cost)

    def layers(self, task: Task, pruned: Pruned, made: Blocks) -> list[Layer]:
        """The searches of all layers that have something to lose, in execution order.

        Raises:
            BudgetError: a budget that cannot be met.
        """
        ends = np.cumsum([0, *(block.size for block in made.values())])
        places = {name: slice(a, b) for name, a, b in zip(made, ends, ends[1:])}
        if self.scale == "taps":
            stride = self._stride(task, made, pruned.masks, self.budget)
            return [self._of_taps(task, name, places[name], stride) for name in made]
        alive = self._alive(task, pruned, made)
        kept = self._kept(task, pruned, made, alive)
        return [
            Layer(
                name,
                places[name],
                len(mask),
                self._searcher(Subsets(tuple(mask.tolist()), kept[name]), len(mask)),
                lambda genes: genes > 0,
            )
            for name, mask in alive.items()
            if 0 < kept[name] < mask.sum()
        ]

    def _alive(self, task: Task, pruned: Pruned, made: Blocks) -> dict[str, np.ndarray]:
        net = Net(task)
        if made.per == "unit":
            units = net.unit_masks(pruned)
            return {name: np.asarray(units[name], bool) for name in made}
        weights = net.prunable(pruned.masks, self.budget)
        weights = net.tree({p: np.asarray(m, float) for p, m in net.leaves(weights).items()})
        return {name: held > 0 for name, held in blocks.pool(made, weights).items()}

    def _kept(
        self, task: Task, pruned: Pruned, made: Blocks, alive: Mapping[str, np.ndarray]
    ) -> dict[str, int]:
        """{block: how many of its groups stay}; which ones does not change the cost."""
        net = Net(task)
        ranks = {n: np.where(m, -np.arange(len(m), dtype=float), -np.inf) for n, m in alive.items()}
        if made.per == "unit":
            chosen: Any = allocate.uniform(ranks, self.budget, net.cost)
        else:
            scores = {made.kind: ranks}
            chosen = allocate.jointly(
                [made], scores, self.budget, net.cost, allocate.uniform, pruned.masks
            )[made.kind]
        return {name: int(np.sum(chosen[name])) for name in made}

    def _stride(self, task: Task, made: Blocks, before: Masks, budget: Budget) -> int:
        """The smallest stride whose taps meet the budget, whatever the offsets.

        Raises:
            BudgetError: there is none, or the one that is asked for does not.
        """
        net = Net(task)
        windows = {name: _window(net, name) for name in made}
        longest = max(int(np.prod(window)) for window in windows.values())
        strides = [self.stride] if self.stride else range(2, longest + 1)
        least = 1.0
        for stride in strides:
            # Offset 0 keeps most: ceil(taps / stride).
            first = {
                name: self._of_taps(task, name, slice(0), stride).alive(
                    np.zeros((1, _inputs(net, name)), int)
                )[0]
                for name in made
            }
            masks = blocks.masks(made, first, before)
            least = allocate.fraction_kept(net.groups, masks, budget, net.cost)
            if least <= float(budget.value) + 1e-9:
                return stride
        raise errors.BudgetError(
            f"Budget({budget.kind}={budget.value}) cannot be met by taps of stride "
            f"{self.stride or longest}: they leave {least:.4f} of the dense net. Ask for more, or "
            "write scales=maps+taps."
        )

    def _of_taps(self, task: Task, name: str, place: slice, stride: int) -> Layer:
        net = Net(task)
        layer, window = net.groups.layers[name], _window(net, name)
        inputs, size = _inputs(net, name), int(np.prod(window))
        # Columns are numbered as they stand in the leaf: where each is in [inputs, window].
        outputs = int(np.prod(layer.shape)) // (inputs * size)
        numbers = np.arange(inputs * size).reshape(inputs, size, 1).repeat(outputs, axis=2)
        one = tuple(0 if axis in layer.outputs else slice(None) for axis in range(len(layer.shape)))
        column = layer.array(numbers)[one].ravel()
        # Flattened windows keep the taps o, o + st, o + 2 st, ...
        taps = [strided(window, stride, offset).ravel() for offset in range(stride)]
        # A window of fewer taps than the stride would lose all of them at some offsets.
        offsets = min(stride, size)
        alive = lambda genes: np.stack(taps)[genes].reshape(len(genes), -1)[:, column]
        return Layer(name, place, inputs, self._searcher(Offsets(inputs, offsets), inputs), alive)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The search in steps."""
        net, made = Net(task), self.groups_of(task)
        layers = self.layers(task, pruned, made)
        names, total = tuple(made), sum(block.size for block in made.values())
        run = net.once(_scores, task.loss, task.metrics, self.scale, names, self.budget)
        most = max((layer.genes for layer in layers), default=1)
        count = min(self.examples, task.data.sizes["validation"])
        # The same images for all particles of all generations.
        batches = [*itertools.islice(task.data.batches("validation", count), 1)]

        def masks_of(chosen: Any) -> dict[str, np.ndarray]:
            ends = np.cumsum([0, *(made[name].size for name in names)])
            return {n: np.asarray(chosen)[a:b] for n, a, b in zip(names, ends, ends[1:])}

        def masked(state: ParticleState) -> tuple[Any, Masks]:
            masks = blocks.masks(made, masks_of(state.chosen), pruned.masks)
            return apply_masks(pruned.variables, net.weight_masks(masks)), masks

        def init() -> ParticleState:
            empty = self._searcher(Subsets((True,) * most, 1), most).init(key)
            start = np.ones(total, bool)
            return ParticleState(jnp.zeros((), jnp.int32), empty, jnp.asarray(start))

        def step(state: ParticleState, batch: Batch) -> tuple[ParticleState, dict[str, Any]]:
            del batch  # every particle is scored on the same images
            number, generation = divmod(int(state.step), self.generations)
            layer = layers[number]
            found = state.particles._replace(genes=state.particles.genes[:, : layer.genes])
            if not generation:
                found = layer.searcher.init(jax.random.fold_in(key, number))
            asked = layer.searcher.ask(found)
            rows = np.repeat(np.asarray(state.chosen)[None], self.particles, axis=0)
            rows[: len(asked), layer.place] = layer.alive(asked)
            scores = np.asarray(run(pruned.variables, rows, batches[0]))[: len(asked)]
            found = layer.searcher.tell(found, asked, scores)
            best, top = layer.searcher.best(found)
            chosen = np.array(state.chosen)
            if generation == self.generations - 1:
                chosen[layer.place] = layer.alive(best[None])[0]
            filled = jnp.pad(found.genes, ((0, 0), (0, most - layer.genes)))
            after = ParticleState(state.step + 1, found._replace(genes=filled), jnp.asarray(chosen))
            mean = float(np.mean(scores[np.isfinite(scores)])) if np.isfinite(scores).any() else top
            return after, {"best": top, "mean": mean, "evaluated": float(len(asked))}

        def finish(state: ParticleState) -> Pruned:
            variables, masks = masked(state)
            return Pruned(variables, masks, pruned.extra, pruned.saved)

        return Learner(
            steps=self.generations * len(layers),
            epoch=self.generations,
            init=init,
            batches=lambda start: itertools.repeat({}),
            step=step,
            variables=lambda state: masked(state)[0],
            finish=finish,
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Searches to the end, in memory; a record of the last generation and what is kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]


def _inputs(net: Net, name: str) -> int:
    layer = net.groups.layers[name]
    return int(np.prod([layer.shape[axis] for axis in layer.inputs]))


def _window(net: Net, name: str) -> tuple[int, ...]:
    layer = net.groups.layers[name]
    return tuple(layer.shape[axis] for axis in sorted(layer.window))


def _scores(
    net: Net, loss: Any, metrics: Any, scale: str, names: tuple[str, ...], budget: Budget
) -> Callable[..., jax.Array]:
    """`(variables, bool [n, groups of all names], batch) -> [n]` qualities; 1 - MCR."""
    stage = FilterParticles(budget, scale)
    made, groups, task = stage.groups_of(net.task), net.groups, net.task
    ends = np.cumsum([0, *(made[name].size for name in names)]).tolist()

    @jax.jit
    def run(variables: Any, rows: jax.Array, batch: Batch) -> jax.Array:
        def one(row: jax.Array) -> jax.Array:
            alive = {name: row[a:b] for name, a, b in zip(names, ends, ends[1:])}
            if made.per == "unit":
                smaller = apply_masks(variables, expand(groups, alive))
            else:
                factors = {name: mask.astype(jnp.float32) for name, mask in alive.items()}
                smaller = blocks.scale(made, variables, factors)
            out = task.fn(smaller, batch["image"])
            value = quality(metrics(out, batch), loss(out, batch))
            return batch["weight"] @ value / batch["weight"].sum()

        # One after the other: all together would not fit the memory of activations.
        return jax.lax.map(one, rows)

    return run
