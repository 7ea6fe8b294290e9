"""The stages of menus: sets and heads are learned, cut to a budget, and the net is fine-tuned."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task, Variables
from jprune.cost.samples import dynamic_leaves
from jprune.forms.leaf_type import has_dynamic
from jprune.learners.channel_menu import (
    Menus,
    as_menus,
    choices_of,
    entropy,
    init_menus,
    menu_task,
    own_steps,
    thinned,
)
from jprune.learners.detector import area_under_curve, detector_area, sign_attack
from jprune.learners.input_gates import Gated
from jprune.stages.frame import record
from jprune.stages.input_gates import density_for, gated_layers, meet_budget
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState, plain

BATCH = 256
CHOOSES = 0.2
"""Entropy in nats from which a layer's menu counts as one that is chosen from."""


@dataclasses.dataclass(frozen=True)
class MenuSteps:
    """A `Wrap`: heads and menus take steps of Adam and stay where they may be.

    Attributes:
        rate: of Adam.
        top: the largest entry of a set.
    """

    rate: float
    top: float

    def __call__(self, net: Any, rate: Schedule, key: jax.Array) -> Any:
        """The transformation around the optimizer of the weights."""
        del net, rate, key
        return lambda inner: own_steps(inner, self.rate, self.top)


@dataclasses.dataclass(frozen=True)
class Choosing:
    """What the stages of menus have in common.

    Attributes:
        budget: of MACs, or a density.
        menus: how they are learned.
        gates: patterns of the layers that get a menu; none: those inside of blocks.
        target: of the mean of the chosen entries; None: the share of channels of the budget.
    """

    budget: Budget
    menus: Menus
    gates: str = ""
    target: float | None = None

    def layers(self, task: Task) -> dict[str, Gated]:
        """The layers that get a menu.

        Without patterns these are neither the first layer nor those whose outputs are summed with
        another activation; all of them where nothing would be left.

        Raises:
            ArgumentError: a menu with more sets than a layer has channels.
            FrozenError: a gate on something frozen.
        """
        layers = gated_layers(task, self.budget, self.gates, "lcs")
        if not self.gates:
            sites = Net(task).groups.sites
            first = next(site.layer for site in sites if site.kind == "in")
            summed = {n for site in sites if site.kind == "join" for n in site.groups}
            makes = {site.layer: {*site.groups} for site in sites if site.kind == "out"}
            inner = {n: g for n, g in layers.items() if n != first and not makes[n] & summed}
            layers = inner or layers
        narrow = {n: g.outputs for n, g in layers.items() if g.outputs < self.menus.actions}
        if narrow:
            name, width = min(narrow.items(), key=lambda pair: pair[1])
            raise errors.ArgumentError(
                f"lcs(actions={self.menus.actions}): {name} has {width} channels, and a menu has "
                f"at most as many sets. Write actions={width} or fewer, or leave it out of gates."
            )
        return layers

    def level(self, task: Task) -> float:
        """The target of the mean of the chosen entries."""
        head = lambda layer: layer.inputs * self.menus.actions
        density = density_for(task, self.layers(task), self.budget, "lcs", head)
        return density if self.target is None else self.target


@dataclasses.dataclass(frozen=True)
class LearnMenus:
    """Trains a net together with menus and the heads that choose from them.

    Afterwards its gated kernels are `FromMenu`, and `extra` has {"net", "gates"}.

    Attributes:
        train: how long, and how.
        choosing: which layers choose, from what, and how much.
        name: of the records.
    """

    train: Train
    choosing: Choosing
    name: str = "decide"

    def check(self, task: Task) -> None:
        """Refuses gates, menus and budgets that this net cannot have."""
        self.train.takes("lcs", "optimizer", "warmup", "clip")
        self.choosing.level(task)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: a gate on nothing, or a menu that is too large.
            FrozenError: a gate on something frozen.
            BudgetError: the fewest channels allowed cost too much.
        """
        menus, layers = self.choosing.menus, self.choosing.layers(task)
        gates = init_menus(jax.random.fold_in(key, 1), layers, menus)
        begun = {"net": pruned.variables, "gates": gates}
        made = menu_task(
            task,
            Net(task).groups,
            layers,
            menus,
            self.choosing.level(task),
            self.train.optimizer_for(task).taken,
        )
        wrap = MenuSteps(menus.rate, menus.top)
        return _learner(self.train, made, task, pruned, begun, layers, key, wrap)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class TrainChosen:
    """Trains the net alone: every image has the likeliest set, and heads and menus stay.

    Attributes:
        train: how long, and how.
        choosing: as of `LearnMenus`, which comes before.
        name: of the records.
    """

    train: Train
    choosing: Choosing
    name: str = "finetune"

    def check(self, task: Task) -> None:
        """Refuses options of the training that have no place here."""
        self.train.takes("lcs", "optimizer", "warmup", "clip")

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: no menus were learned before.
        """
        begun, layers = _learned(pruned, "TrainChosen"), self.choosing.layers(task)
        made = menu_task(task, Net(task).groups, layers, self.choosing.menus, 0.0, steps=0)
        return _learner(self.train, made, task, pruned, begun, layers, key)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class CutMenus:
    """Cuts the smallest entries of all menus until the mean MACs are within the budget.

    A set keeps the fewest channels that `min_units` and floors ask for. Under a budget in density
    nothing is cut: it is the target of the training. The record has the share of the menus'
    entries that are not 0.

    Attributes:
        choosing: as of `LearnMenus`, which comes before.
        last: whether the menus are not needed after it; then they leave `extra`.
        name: of the record.
    """

    choosing: Choosing
    last: bool = False
    name: str = "cut"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net with menus that are cut, and the record.

        Raises:
            ArgumentError: no menus were learned before.
        """
        del key
        begun, layers = _learned(pruned, "CutMenus"), self.choosing.layers(task)
        groups, budget = Net(task).groups, self.choosing.budget
        held = jax.jit(lambda variables: as_menus(task, groups, layers, variables))
        least = {name: layer.least for name, layer in layers.items()}
        cut = lambda x: {**begun, "gates": thinned(begun["gates"], x, least)}
        at = lambda x: held(cut(x))
        x = meet_budget(task, budget, at) if budget.kind == "macs" else 1.0
        after = cut(x) if budget.kind == "macs" else begun
        menus = [np.asarray(part["menu"]) for part in after["gates"].values()]
        share = sum((menu > 0).sum() for menu in menus) / sum(menu.size for menu in menus)
        cut_net = pruned._replace(variables=held(after), extra=None if self.last else after)
        return cut_net, [record(self.name, {"entries": float(share)})]


def _learner(
    train: Train,
    made: Task,
    task: Task,
    pruned: Pruned,
    begun: Variables,
    layers: dict[str, Gated],
    key: jax.Array,
    wrap: MenuSteps | None = None,
) -> Learner:
    """Plain training of a task of menus, whose net has kernels with menus at any point."""
    optimizer, groups = train.optimizer_for(task), Net(task).groups
    # Neither heads nor menus decay: a head has length 1, and a menu's zeros are those of the clamp.
    flat = jax.tree.map(lambda leaf: False, begun["gates"])
    decayed = {"net": task.split(Net(task).is_kernel)[0], "gates": flat}
    start = pruned._replace(variables={**begun, "step": jnp.zeros((), jnp.int32)})
    learner = plain(made, start, None, optimizer, key, train.batch_size, wrap, decayed)
    held = jax.jit(lambda variables: as_menus(task, groups, layers, variables))
    variables = lambda state: held(made.merge(state.params, state.rest))

    def finish(state: TrainState) -> Pruned:
        whole = made.merge(state.params, state.rest)
        extra = {name: whole[name] for name in ("net", "gates")}
        return pruned._replace(variables=held(whole), extra=extra)

    return learner._replace(variables=variables, finish=finish)


def _learned(pruned: Pruned, who: str) -> dict[str, Any]:
    """{"net", "gates"} that an earlier stage put into `extra`."""
    if not (isinstance(pruned.extra, Mapping) and {"net", "gates"} <= pruned.extra.keys()):
        raise errors.ArgumentError(
            f"{who}() came to a net without menus. Put LearnMenus(...) before it in the recipe."
        )
    return {name: pruned.extra[name] for name in ("net", "gates")}


@dataclasses.dataclass(frozen=True)
class EvaluateChoices:
    """Measures what a net's choices say: their entropy, and whether they betray an attack.

    The record has, in nats over the images, `entropy` (the mean of the layers), `entropy_least`
    and `choosing`, the share of layers with more than 0.2; and the area under the curve of a
    detector that reads the layers' probabilities, for images that were attacked in one step
    (`fgsm_auc`) and in ten (`pgd_auc`), as `jprune.learners.detector_area` has it; beside it, of
    the largest probability of the net's output alone (`fgsm_by_confidence`), where the net is a
    classifier. Images that are no floats are not attacked.

    Attributes:
        size: the most that an attack moves a pixel, as a part of the range of the images.
        images: so many at most.
        split: whose images.
        name: of the record.
    """

    size: float = 8 / 255
    images: int = 1024
    split: str = "test"
    name: str = "choices"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record.

        Raises:
            ArgumentError: no kernel has a menu.
        """
        del key
        leaves = dynamic_leaves(pruned.variables) if has_dynamic(pruned.variables) else {}
        if not any(hasattr(leaf, "menu") for leaf in leaves.values()):
            raise errors.ArgumentError(
                "EvaluateChoices came to a net without menus. Put it behind LearnMenus(...)."
            )
        net, variables = Net(task), pruned.variables
        choose, columns, count = choices_of(task.fn, net.groups), [], 0

        @jax.jit
        def looked(variables: Variables, batch: Any) -> Any:
            x = batch["image"]
            kinds = [x]
            # Whole numbers, such as words, have no slope.
            if jnp.issubdtype(x.dtype, jnp.floating):
                size = self.size * (x.max() - x.min())
                loss = lambda moved: task.loss(net.fn(variables, moved), batch)
                kinds += [sign_attack(loss, x, size, steps) for steps in (1, 10)]
            found = [choose(variables, moved) for moved in kinds]
            likely = [_confidence(out) for out, _ in found[:2]]
            return [choices for _, choices in found], likely

        for batch in task.data.batches(self.split, BATCH):
            there = np.asarray(batch["weight"]) > 0
            columns.append(
                jax.tree.map(lambda a, w=there: np.asarray(a)[w], looked(variables, batch))
            )
            count += int(there.sum())
            if count >= self.images:
                break
        kinds, likely = jax.tree.map(lambda *parts: np.concatenate(parts), *columns)
        actions = {n: (p.argmax(axis=-1), p.shape[-1]) for n, p in kinds[0].items()}
        entropies = [entropy(chosen, many) for chosen, many in actions.values()]
        metrics = {
            "entropy": float(np.mean(entropies)),
            "entropy_least": min(entropies),
            "choosing": float(np.mean(np.array(entropies) > CHOOSES)),
        }
        clean, *attacked = (np.concatenate([*p.values()], axis=-1) for p in kinds)
        if len(clean) > 1:
            areas = (detector_area(clean, each) for each in attacked)
            metrics |= dict(zip(("fgsm_auc", "pgd_auc"), areas))
        if len(likely) == 2 and likely[0].ndim == 1:
            scores, positive = np.concatenate(likely), np.repeat([False, True], len(clean))
            # An attacked image is the one that the net is less sure of.
            metrics["fgsm_by_confidence"] = area_under_curve(-scores, positive)
        return pruned, [{**record(self.name, metrics), "split": self.split}]


def _confidence(out: Any) -> jax.Array:
    """[batch]: the largest probability; [batch, 0] where the output is no row of logits."""
    if isinstance(out, jax.Array) and out.ndim == 2 and out.shape[1] > 1:
        return jax.nn.softmax(out).max(axis=-1)
    return jnp.zeros((len(jax.tree.leaves(out)[0]), 0))
