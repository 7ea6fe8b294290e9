"""The stages of C-SGD: cluster units, pull clusters together, merge them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.allocate.widths import widths
from jprune.base import (
    Budget,
    Groups,
    Learner,
    Pruned,
    Records,
    Schedule,
    Task,
    Variables,
)
from jprune.masks import apply_masks
from jprune.reconstruct import Merge
from jprune.reconstruct.merge import matrix
from jprune.sparsify import centripetal, cluster, deviation_of, memberships, strength_for
from jprune.sparsify.centripetal import strengths, with_members
from jprune.sparsify.clusters import CLUSTERINGS
from jprune.stages.frame import fractions, record
from jprune.stages.train import Train, trained
from jprune.stages.walk import mergeable
from jprune.train.net import Net
from jprune.train.step import TrainState, plain
from jprune.units import map_units, ones, places_of, rows

PRODUCERS = ("pacesetter", "all")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Puts the units of every group into clusters, which are then in `extra`.

    Attributes:
        budget: what is kept of the dense net once every cluster is one unit.
        how: see `csgd`.
        producers: see `csgd`.
        name: of the record: fractions that will be kept, and the `deviation` of all weights from
            the means of their clusters (sum of squares).
    """

    budget: Budget
    how: str = "kmeans"
    producers: str = "pacesetter"
    name: str = "cluster"

    def __post_init__(self):
        if self.how not in CLUSTERINGS or self.producers not in PRODUCERS:
            raise errors.ArgumentError(
                f"csgd with clusters={self.how!r}, producers={self.producers!r}; write one of "
                f"{', '.join(CLUSTERINGS)}, and one of {', '.join(PRODUCERS)}."
            )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, with clusters {group: [units]} in `extra`.

        Raises:
            ArgumentError: nothing is mergeable, weights that are not finite, or masks of weights.
            BudgetError: a budget that cannot be met.
        """
        groups = Net(task).groups
        if pruned.masks is not None and not Net(task).are_units(pruned.masks):
            raise errors.ArgumentError(
                "csgd merges units, and came to a net of which single weights are masked: the sums "
                "would fill them again. Merge first."
            )
        masks = Net(task).unit_masks(pruned)
        # Only groups whose readers can take over a merged unit's outgoing weights.
        alive = {name: np.asarray(masks[name], bool) for name in mergeable(task)}
        goals = widths(alive, self.budget, Net(task).cost, lambda chosen: {**masks, **chosen})
        clusters = {}
        for number, (name, alive_units) in enumerate(alive.items()):
            points = self.points(groups, pruned.variables, name)[alive_units]
            # Pruned units are clusters by themselves, with numbers that no other cluster has.
            labels = np.arange(len(alive_units)) + len(alive_units)
            # A key per group: k-means of one does not depend on how many groups are before it.
            of_group = jax.random.fold_in(key, number)
            labels[alive_units] = cluster(points, min(goals[name], len(points)), of_group, self.how)
            clusters[name] = labels
        # What `MergeClusters` will leave: the budget is checked on it now, before training.
        chosen = {name: first_of(labels) & alive[name] for name, labels in clusters.items()}
        spread = deviation(task, pruned.variables, clusters)
        metrics = {**fractions(task, {**masks, **chosen}), "deviation": spread}
        return pruned._replace(extra={"clusters": clusters}), [record(self.name, metrics)]

    def check(self, task: Task) -> None:
        """Refuses a net of which nothing is mergeable, and a budget that cannot be met."""
        masks = ones(Net(task).groups)
        alive = {name: masks[name] for name in mergeable(task)}
        widths(alive, self.budget, Net(task).cost, lambda chosen: {**masks, **chosen})

    def points(self, groups: Groups, variables: Variables, name: str) -> np.ndarray:
        """[units, fan] in float64: the weights by which units are clustered."""
        # The pacesetter of a residual stream is its first producer, after which groups are named:
        # its clusters are those of all layers that add into the stream.
        if self.producers == "pacesetter":
            first = tuple(place for place in groups.places[name] if place.leaf == name)
            groups = groups._replace(places={name: first})
        return np.asarray(rows(groups, variables, name), np.float64)


@dataclasses.dataclass(frozen=True)
class Pull:
    """Training that pulls the units of a cluster together until they are equal.

    Every metric comes with `deviation`: the sum of the squared differences of weights from the
    means of their clusters.

    Attributes:
        train: how long, and how.
        strength: see `csgd`.
        of_vectors: see `csgd`.
        bias_rate: see `csgd`.
        goal: see `csgd`.
        name: of the records.
    """

    train: Train
    strength: float | None = None
    of_vectors: float = 0.1
    bias_rate: float = 2.0
    goal: float = 1e-6
    name: str = "pull"

    def __post_init__(self):
        numbers = (0.0 if self.strength is None else self.strength, self.of_vectors, self.bias_rate)
        if min(numbers) < 0 or not 0 < self.goal < 1:
            raise errors.ArgumentError(
                f"csgd(strength={self.strength}, of_vectors={self.of_vectors}, "
                f"bias_rate={self.bias_rate}, goal={self.goal}); goal is in (0, 1), the others are "
                "0 or more."
            )

    def check(self, task: Task) -> None:
        """Refuses training without SGD's momentum, from which the pull's strength follows."""
        del task
        self.train.takes("csgd", "warmup", "accumulate")

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: there are no clusters.
        """
        net, task = Net(task), self.train.taught(task, pruned)
        members = task.split(memberships(net.groups, clusters_in(pruned)))[0]
        sgd, strength = self.train.sgd(task), self.strength
        # The gentlest pull that is enough for scales and biases too, which are pulled least.
        if strength is None:
            rates = np.asarray(sgd.rate(np.arange(sgd.taken)))
            strength = strength_for(rates, sgd.momentum, self.goal, self.of_vectors)
        pulled = Pulled(strength, self.of_vectors, self.bias_rate)
        masks, batch_size = net.weight_masks(pruned.masks), self.train.batch_size
        learner = plain(task, pruned, masks, sgd, key, batch_size, pulled)

        def init() -> TrainState:
            state = learner.init()
            # Clusters are put into the state, and not into the
            # wrap: others then share what was compiled.
            pull, *others = state.opt_state
            return state._replace(opt_state=(with_members(pull, members), *others))

        def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
            state, metrics = learner.step(state, batch)
            # A copy: the next step gives the state's own array away.
            return state, {**metrics, "deviation": state.opt_state[0].deviation + 0}

        return learner._replace(init=init, step=step)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Pulls to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class Pulled:
    """How clusters take part in training: `centripetal` and faster biases before the optimizer.

    The clusters are in the first state of the chain; `Pull` writes them there.

    Attributes:
        strength: see `csgd`; a number.
        of_vectors: see `csgd`.
        bias_rate: see `csgd`.
    """

    strength: float
    of_vectors: float
    bias_rate: float

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        # No clusters: every unit is its own mean, and the pull is 0.
        alone = net.task.split(memberships(net.groups, {}))[0]
        # Twice the rate for biases is the authors' setting; in front of
        # the optimizer a rate is a factor of the gradient.
        biases = {place.leaf for _, place in places_of(net.groups, ("shift",))}
        factors = [self.bias_rate if path in biases else 1.0 for path in net.groups.leaves]
        of_params = net.task.split(net.groups.treedef.unflatten(factors))[0]
        pulls = net.task.split(strengths(net.groups, self.strength, self.of_vectors))[0]
        faster = lambda gradients, _: jax.tree.map(jnp.multiply, gradients, of_params)
        return lambda inner: optax.chain(centripetal(alone, pulls), optax.stateless(faster), inner)


@dataclasses.dataclass(frozen=True)
class MergeClusters:
    """Keeps the first unit of every cluster, with the sum of the cluster's outgoing weights.

    Attributes:
        name: of the record: fractions kept, how many units are `merged`, the `deviation` of all
            parameters from the means of their clusters (sum of squares), and `drift`,
            the largest change of an output over the largest output on validation images. Both are
            0 up to rounding where training has pulled long enough.
    """

    name: str = "merge"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The merged net under its masks.

        Raises:
            ArgumentError: there are no clusters.
        """
        del key
        net, clusters = Net(task), clusters_in(pruned)
        groups, masks = net.groups, net.unit_masks(pruned)
        firsts = {
            name: first_of(labels) & np.asarray(masks[name], bool)
            for name, labels in clusters.items()
        }
        mapped = {name: merge_map(labels) for name, labels in clusters.items()}
        # K2[h0] <- sum over k in H of K2[k], in every consumer; no producer is touched
        variables = map_units(groups, pruned.variables, mapped, ("in",))
        masks = {**masks, **firsts}
        # The other units of a cluster go: kernels, vectors and outgoing weights become 0.
        variables = apply_masks(variables, Net(task).weight_masks(masks))
        gone = sum(len(labels) - int(first_of(labels).sum()) for labels in clusters.values())
        metrics = {
            **fractions(task, masks),
            "merged": gone,
            "deviation": deviation(task, pruned.variables, clusters),
            "drift": drift(task, pruned.variables, variables),
        }
        return Pruned(variables, masks, None, pruned.saved), [record(self.name, metrics)]


def clusters_in(pruned: Pruned) -> dict[str, np.ndarray]:
    """The clusters that `Cluster` put into `extra`.

    Raises:
        ArgumentError: there are none.
    """
    if not (isinstance(pruned.extra, Mapping) and "clusters" in pruned.extra):
        raise errors.ArgumentError(
            "the net comes without clusters. Put Cluster(budget) before Pull and MergeClusters."
        )
    return {name: np.asarray(labels) for name, labels in pruned.extra["clusters"].items()}


def first_of(labels: np.ndarray) -> np.ndarray:
    """Bool [units]: the first unit of every cluster.

    Example:
        >>> first_of(np.array([3, 3, 0, 3])).tolist()
        [True, False, True, False]
    """
    # `return_index` gives the first position of every label.
    return np.isin(np.arange(len(labels)), np.unique(labels, return_index=True)[1])


def merge_map(labels: np.ndarray) -> np.ndarray:
    """[units, units] M: outgoing weights after merging are M times those before.

    Example:
        >>> merge_map(np.array([3, 3, 0])).tolist()
        [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    # Backwards, so that the first unit of a label is the one written last.
    firsts = {label: unit for unit, label in reversed([*enumerate(labels.tolist())])}
    steps = [Merge(firsts[label], unit, 1.0, 0.0) for unit, label in enumerate(labels.tolist())]
    return matrix(len(labels), [step for step in steps if step.into != step.gone])


def deviation(task: Task, variables: Variables, clusters: Mapping[str, np.ndarray]) -> float:
    """Sum of the squared differences of parameters from the means of their clusters."""
    members = memberships(Net(task).groups, clusters)
    return float(deviation_of(task.split(variables)[0], task.split(members)[0]))


def drift(task: Task, before: Variables, after: Variables) -> float:
    """The largest change of an output over the largest output, on a batch of validation images."""
    batch = next(iter(task.data.batches("validation", min(128, task.data.sizes["validation"]))))
    fn = jax.jit(task.fn)
    old, new = (np.asarray(fn(variables, batch["image"])) for variables in (before, after))
    return float(np.abs(new - old).max() / np.abs(old).max())
