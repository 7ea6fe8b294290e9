"""New initial values under masks, to train pruned nets from scratch."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import errors
from jprune.base import Learner, Pruned, Records, Task, Variables, is_none
from jprune.graph import slim, slim_params, trace
from jprune.masks import apply_masks
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.units import expand


@dataclasses.dataclass(frozen=True)
class BeginAnew:
    """New initial values for the weights that are kept, as the small net by itself would draw them.

    Initial kernels have a variance of 1 / fan-in, and the small net's fan-in is smaller: what is
    drawn for the dense net is multiplied by sqrt(inputs / kept inputs) at every consumer. Under
    masks of single weights the values are those of the dense net, as in the paper.

    Attributes:
        name: of the stage.
    """

    name: str = "begin_anew"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under the same masks, with new values."""
        variables, masks = task.init(key), pruned.masks
        if masks is not None and Net(task).are_units(masks):
            read = expand(Net(task).groups, masks, roles=("in",))
            # Var w = 1 / fan-in: with a fraction f of the inputs, w is f^(-1/2) times as large.
            widen = lambda mask, leaf: leaf if mask is None else leaf * float(mask.mean()) ** -0.5
            variables = jax.tree.map(widen, read, variables, is_leaf=is_none)
        if masks is not None:
            variables = apply_masks(variables, Net(task).weight_masks(masks))
        return pruned._replace(variables=variables), []


@dataclasses.dataclass(frozen=True)
class ShuffleMasks:
    """Shuffles the masks within every leaf: the same densities, other weights.

    Attributes:
        name: of the stage.
    """

    name: str = "shuffle_masks"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net under other masks; the next stage brings back what they keep."""
        del task
        # NumPy's generator: permutations of single leaves would compile one by one in JAX.
        drawn = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        shuffle = lambda mask: drawn.permutation(np.ravel(mask)).reshape(np.shape(mask))
        return pruned._replace(masks=jax.tree.map(shuffle, pruned.masks)), []


@dataclasses.dataclass(frozen=True)
class Reinitialise:
    """New initial values under the present masks.

    Attributes:
        name: of the stage.
    """

    name: str = "reinitialise"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The masked net with new values; the masks stay."""
        masks, variables = Net(task).weight_masks(pruned.masks), task.init(key)
        if masks is not None:
            variables = apply_masks(variables, masks)
        return pruned._replace(variables=variables), []


@dataclasses.dataclass(frozen=True)
class TrainAnew:
    """Trains the small net from scratch, for the epochs or for the MACs of the dense training.

    Attributes:
        train: training of the dense net.
        same: "epochs" or "macs".
        cap: the largest ratio of MACs that counts.
        name: of the records.
    """

    train: Train
    same: str
    cap: float | None = None
    name: str = "scratch"

    def settled(self, pruned: Pruned, task: Task) -> Train:
        """The training, with the epochs that these masks are worth."""
        if self.same == "epochs":
            return self.train
        model = Net(task).cost
        # As many epochs as cost what the dense training did.
        dense, small = (float(model(masks).macs) for masks in ({}, pruned.masks or {}))
        return dataclasses.replace(
            self.train, epochs=epochs_of(self.train.epochs, dense / small, self.cap)
        )

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """Its steps; under masks of single weights they are those of the dense net."""
        train = self.settled(pruned, task)
        # Single weights leave the shapes as they are: there is no smaller net to train.
        if not Net(task).are_units(pruned.masks):
            return train.learner(pruned, task, key)
        net = small(task, pruned)
        steps = train.learner(Pruned(net.variables, None), net.task, key)
        variables = lambda state: net.back(steps.variables(state))
        return steps._replace(
            variables=variables,
            finish=lambda state: pruned._replace(variables=variables(state)),
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory."""
        return trained(self.learner(pruned, task, key), self.name)


def like_the_dense(
    train: Train | None,
    finetune: Train,
    same: str = "epochs",
    cap: float | None = None,
    **own: Any,
) -> TrainAnew:
    """Training of a small net from scratch, as the dense one was trained.

    Args:
        train: training of the dense net; None where it is read.
        finetune: whose batch size and optimizer are taken where the dense net is read.
        same: as what the dense net's training took: "epochs" or "macs".
        cap: the largest ratio of MACs that counts.
        **own: `epochs`, `learning_rate` and `schedule` that are other ones; None: those of `train`.

    Raises:
        ArgumentError: another word, a cap below 1, or the dense net is read, and epochs or learning
            rate are not written.
    """
    if same not in ("epochs", "macs") or (cap is not None and cap < 1):
        raise errors.ArgumentError(
            f"scratch(same={same!r}, cap={cap}); same is epochs or macs, cap is 1 or more."
        )
    # A dense net that is read says nothing of its training: epochs and rate then come by hand.
    if train is None and (own.get("epochs") is None or own.get("learning_rate") is None):
        raise errors.ArgumentError(
            "The dense net is read, so nobody knows how long it was trained. Write --set "
            "epochs=160,learning_rate=0.1, as the paper trains its nets for CIFAR-10."
        )
    like = dataclasses.replace(
        dataclasses.replace(finetune, distill=0.0) if train is None else train,
        **{name: value for name, value in own.items() if value is not None},
        name="scratch",
    )
    return TrainAnew(like, same, cap)


def epochs_of(epochs: float, ratio: float, cap: float | None = None) -> float:
    """Epochs of a small net that cost as much as those of the dense one.

    Args:
        epochs: of the dense net. Whole ones stay whole, rounded down as in the paper.
        ratio: MACs of the dense net over those of the small one.
        cap: the largest ratio that counts.

    Example:
        >>> epochs_of(160, 1 / (1 - 0.342)), epochs_of(90, 3.0, cap=2)
        (243, 180)
    """
    # E_B = E_dense * (MACs of the dense net / MACs of the small one), the ratio capped
    longer = epochs * (ratio if cap is None else min(ratio, cap))
    # A ratio of 2 comes out of a division a hair below it.
    return math.floor(longer + 1e-6) if epochs == int(epochs) else longer


class Small(NamedTuple):
    """A pruned net without the removed units.

    Attributes:
        task: with the small net's functions; `init` is still the dense net's.
        variables: of the small net.
        back: `back(small variables) -> dense ones`, with the pruned net's values at removed units.
    """

    task: Task
    variables: Variables
    back: Callable[[Variables], Variables]


def small(task: Task, pruned: Pruned) -> Small:
    """The small net of unit masks, and the way back.

    Args:
        task: of the dense net.
        pruned: with unit masks.
    """
    # Training reads statistics that inference does not: they become small as well.
    training = lambda variables, x: task.train_fn(variables, x, jax.random.key(0))
    groups = trace(task.fn, Net(task).shapes, task.example, twin=training)
    masks = Net(task).unit_masks(pruned)
    # Every weight's index in the dense leaf; slimmed along,
    # they say where the small leaf's weights go.
    numbered = jax.tree.map(lambda leaf: np.arange(leaf.size).reshape(leaf.shape), Net(task).shapes)
    places = slim_params(groups, masks, numbered)

    def write(place: np.ndarray | None, whole: jax.Array, part: jax.Array) -> jax.Array:
        if place is None:  # in a branch that is gone
            return whole
        return whole.ravel().at[np.ravel(place)].set(part.ravel()).reshape(whole.shape)

    return Small(
        task._replace(
            fn=slim(task.fn, groups, masks),
            train_fn=slim(task.train_fn, groups, masks),
            # Its shapes say what the small net's groups and kernels are.
            init=lambda key: slim_params(groups, masks, task.init(key)),
        ),
        slim_params(groups, masks, pruned.variables),
        lambda variables: jax.tree.map(write, places, pruned.variables, variables, is_leaf=is_none),
    )
