"""Pruning before training: the untrained net is scored and pruned, and then trained as usual."""

import dataclasses
import itertools
import logging
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.allocate import refuse_impossible
from jprune.allocate.global_topk import global_topk
from jprune.base import (
    Batch,
    Budget,
    Data,
    Masks,
    Pruned,
    Recipe,
    Records,
    Scores,
    Stage,
    Task,
    is_none,
    run_criterion,
)
from jprune.criteria.synaptic_flow import Flow, flow_of
from jprune.masks import apply_masks
from jprune.stages.frame import Evaluate, Rewind, Save, check_prunable, fractions, opening, record
from jprune.stages.prune import CriterionOf, Prune
from jprune.stages.rounds import evenly
from jprune.stages.train import Train
from jprune.train.net import Net
from jprune.train.step import stream

COLLAPSE = ("refuse", "warn")


def before_training(
    who: str, train: Train | None, prune: "PruneUntrained", *after: Stage
) -> Recipe:
    """The dense net is trained for comparison; the untrained one is pruned, and trained alike.

    Args:
        who: the method, for messages.
        train: training of the dense net, and of the pruned one.
        prune: what prunes the net as it was drawn.
        *after: stages between pruning and training.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation, of
        the untrained pruned net), its training `finetune`.

    Raises:
        ArgumentError: the net is read, and not trained here.
    """
    if train is None:
        raise errors.ArgumentError(
            f"{who} prunes a net before it is trained, and this one is read from a file. Leave out "
            "--weights."
        )
    return (
        Save("init"),
        *opening(train),
        Rewind("init"),
        prune,
        *after,
        Evaluate("validation", name="before_finetune"),
        dataclasses.replace(train, name="finetune"),
    )


@dataclasses.dataclass(frozen=True)
class PruneUntrained:
    """Scores a net and keeps the best of all layers together, in rounds without training between.

    Every round keeps the same fraction of what is left, and scores what is left anew, on the same
    examples. The best weight of every layer stays.

    What few weights of a layer are left may lie on no path from the inputs to the outputs: such
    layers are named by a warning (of `logging`) and counted in the record.

    Attributes:
        criterion: makes the criterion for this net.
        budget: what is kept; a density is that of all kernels, and biases where they may go.
        rounds: number of rounds.
        per: "weight" or "unit": scores are then summed over all weights of a unit.
        biases: whether biases compete too, in the layers whose kernels do.
        batches: calibration batches, from the training split, where the criterion looks at data.
        batch_size: examples in such a batch.
        per_class: so many examples of every class in one batch instead, sorted by class; None:
            batches as in training. Where labels are no classes, batches are as in training.
        collapse: where no path is left at all: "refuse", or "warn" and go on.
        name: of the record.
    """

    criterion: CriterionOf
    budget: Budget
    rounds: int = 1
    per: str = "weight"
    biases: bool = False
    batches: int = 1
    batch_size: int = 128
    per_class: int | None = None
    collapse: str = "refuse"
    name: str = "prune"

    def __post_init__(self):
        per_class = 1 if self.per_class is None else self.per_class
        counts = (self.rounds, self.batches, self.batch_size, per_class)
        if self.per not in ("unit", "weight") or self.collapse not in COLLAPSE or min(counts) < 1:
            raise errors.ArgumentError(
                f"pruning before training with per={self.per!r}, collapse={self.collapse!r}, "
                f"rounds={self.rounds}, batches={self.batches}, batch_size={self.batch_size}, "
                f"per_class={self.per_class}; write per='weight' or 'unit', collapse='refuse' or "
                "'warn', and numbers of 1 or more."
            )
        if self.biases and self.per == "unit":
            raise errors.ArgumentError(
                "biases=True with per='unit': the biases of a unit go with it. Leave out biases."
            )

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does, and what making the criterion and scoring do."""
        check_prunable(task, self.budget, self.per)
        criterion = self.criterion(task, Net(task).groups, jax.random.key(0))
        # What needs no data says at once whether it can score this net.
        if not criterion.needs_data:
            run_criterion(criterion, task.init(jax.random.key(0)), ())
        if self.per == "weight":
            alive = self.competing(task, None)
            refuse_impossible(alive, self.budget.of_weights(), Net(task).cost)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks, masked variables, and a record of the fractions kept and of the thinnest layer.

        Raises:
            BudgetError: no path is left from the inputs to the outputs.
        """
        drawn, order = jax.random.split(key)
        criterion = self.criterion(task, Net(task).groups, drawn)
        examples = self.examples(task, order) if criterion.needs_data else []
        dense = pruned
        for goal in evenly(self.budget, self.rounds):
            scores = run_criterion(criterion, pruned.variables, examples)
            if self.per == "unit":
                # Residual sums and masks of before are those of `Prune`.
                masks = Prune(self.criterion, global_topk, goal).of_units(pruned, task, scores)
            else:
                masks = self.of_weights(pruned, task, scores, goal)
            variables = apply_masks(pruned.variables, Net(task).weight_masks(masks))
            pruned = pruned._replace(variables=variables, masks=masks)
        found = {} if self.per == "unit" else self.layers(dense, pruned, task)
        return pruned, [record(self.name, {**fractions(task, pruned.masks), **found})]

    def competing(self, task: Task, masks: Masks) -> Masks:
        """Masks of all weights that compete, True where one is alive; None for other leaves."""
        net = Net(task)
        alive = net.leaves(net.prunable(masks, self.budget))
        if self.biases:
            before = {} if masks is None else net.leaves(net.weight_masks(masks))
            for path in tuple(alive):
                bias = net.groups.layers[path].bias
                if bias is not None:
                    ones = np.ones(net.groups.leaves[bias].shape, bool)
                    alive[bias] = np.asarray(before.get(bias, ones))
        return net.tree(alive)

    def of_weights(self, pruned: Pruned, task: Task, scores: Scores, goal: Budget) -> Masks:
        """Masks of the best weights of all layers together.

        Raises:
            ArgumentError: the criterion scores no single weights, or not all that compete.
        """
        net, alive = Net(task), self.competing(task, pruned.masks)
        found = {} if net.are_units(scores) else net.leaves(scores)
        if missing := [path for path in net.leaves(alive) if path not in found]:
            raise errors.ArgumentError(
                f"the criterion has no score for the weights of {missing[0]}. Leave that group "
                "whole by a floor, or write per='unit'."
            )
        # -inf: gone already.
        return global_topk(
            jax.tree.map(
                lambda mask, score: None if mask is None else np.where(mask, score, -np.inf),
                alive,
                scores,
                is_leaf=is_none,
            ),
            goal.of_weights(),
            net.cost,
        )

    def examples(self, task: Task, key: jax.Array) -> list[Batch]:
        """The calibration batches."""
        size = min(self.batch_size, task.data.sizes["train"])
        if self.per_class is not None:
            whole = by_class(task.data, self.per_class, size, key)
            if whole is not None:
                return [whole]
        # Calibration data are training data: validation stays unseen.
        return list(itertools.islice(stream(task.data, size, key), self.batches))

    def layers(self, dense: Pruned, pruned: Pruned, task: Task) -> dict[str, float]:
        """The smallest density of a layer, and how many layers no path leads through any more.

        Raises:
            BudgetError: no path is left at all.
        """
        net = Net(task)
        masks = {path: np.asarray(m) for path, m in net.leaves(pruned.masks).items()}
        kernels = {path: masks[path] for path in net.groups.layers if path in masks}
        silent = silent_layers(net, dense.variables, pruned.variables, kernels)
        least = min(kernels, key=lambda path: kernels[path].mean())
        if len(silent) == len(kernels) and self.collapse == "refuse":
            raise errors.BudgetError(
                f"{self.budget} leaves no path of weights from the inputs to the outputs: "
                f"{least} keeps {int(kernels[least].sum())} of {kernels[least].size}, and the net "
                "would say the same to every input. Keep more, take more rounds, or write "
                "collapse='warn'."
            )
        if silent:
            logging.getLogger(__name__).warning(
                "no path of weights leads through %s any more: what is left there says nothing. "
                "Keep more, or take more rounds.",
                ", ".join(silent),
            )
        return {
            "least_density": float(kernels[least].mean()),
            "silent_layers": len(silent),
        }


def silent_layers(
    net: Net, dense: Any, variables: Any, kernels: dict[str, np.ndarray]
) -> list[str]:
    """Layers that carried a signal from the inputs to the outputs, and do so no more.

    Args:
        net: of the task.
        dense: variables before pruning.
        variables: after it.
        kernels: {path: mask}.

    Returns:
        Paths of their kernels, in the order of `kernels`.
    """
    matrices = (net.groups.layers[path].matrix(mask) for path, mask in kernels.items())
    # Where every channel of every layer has a weight to it and a weight from it, paths lead on
    # from each to the next layer, and nothing has to be computed.
    if all(m.any(axis=(0, 1)).all() and m.any(axis=(1, 2)).all() for m in matrices):
        return []
    flow: Flow = net.once(_flow)
    before, after = (net.leaves(flow(each)[1]) for each in (dense, variables))
    carries = lambda scores, path: bool(np.asarray(scores[path]).any())
    return [path for path in kernels if carries(before, path) and not carries(after, path)]


def _flow(net: Net) -> Flow:
    return flow_of(net.task.fn, net.task.example)


def by_class(data: Data, per_class: int, batch_size: int, key: jax.Array) -> Batch | None:
    """One batch of so many training examples of every class, sorted by class.

    Args:
        data: whose split "train" is read, once at most. Of a class with fewer examples all are
            taken.
        per_class: how many.
        batch_size: examples that are read at a time.
        key: determines which ones.

    Returns:
        The batch; None where labels are no classes.

    Example:
        >>> labels = np.array([2, 0, 1, 0, 2, 1])
        >>> batch = {"image": np.arange(6.0), "label": labels, "weight": np.ones(6)}
        >>> sizes = {"train": 6, "validation": 0, "test": 0}
        >>> data = Data("six", (), 3, sizes, lambda split, size, **order: iter([batch]))
        >>> found = by_class(data, 1, 6, jax.random.key(0))
        >>> found["label"].tolist(), found["image"].tolist()
        ([0, 1, 2], [1.0, 2.0, 0.0])
    """
    found: dict[int, list[Batch]] = {}
    number = max(1, data.sizes["train"] // batch_size)
    for batch in itertools.islice(stream(data, batch_size, key), number):
        labels = np.asarray(batch["label"]) if "label" in batch else np.zeros(())
        if labels.shape != (batch_size,) or not np.issubdtype(labels.dtype, np.integer):
            return None
        for place, label in enumerate(map(int, labels)):
            if len(found.setdefault(label, [])) < per_class:
                found[label].append(jax.tree.map(lambda leaf, n=place: np.asarray(leaf)[n], batch))
        if len(found) == data.classes and all(len(one) == per_class for one in found.values()):
            break
    sorted_ = [example for label in sorted(found) for example in found[label]]
    return jax.tree.map(lambda *parts: np.stack(parts), *sorted_)
