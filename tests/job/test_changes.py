"""What a comparison changes of a recipe: the allocation, the widths, a second look."""

import jax
import numpy as np
import pytest

from jprune import data, errors, zoo
from jprune.base import Budget, Pruned
from jprune.job.changes import Changes, Widths, changed
from jprune.recipes import METHODS, Prune, Train
from jprune.train.task import task as task_of

TUNE = Train(1, 0.01, 16, max_steps=1, name="finetune")


def recipe_of(method, changes):
    return changed(METHODS[method](Budget(macs=0.5), None, TUNE), changes, method)


def prunes(recipe):
    return [stage for stage in recipe if isinstance(stage, Prune)]


@pytest.mark.parametrize("method", ["l1", "taylor", "fpgm", "hrank"])
def test_every_pruning_has_the_allocation(method):
    names = {s.allocator.__name__ for s in prunes(recipe_of(method, Changes("global_per_cost")))}
    assert names == {"global_per_cost"}
    recipe = METHODS[method](Budget(macs=0.5), None, TUNE)
    assert changed(recipe, Changes(), method) == recipe


@pytest.mark.parametrize("changes", [Changes("uniform"), Changes(widths={"a": 1})])
def test_methods_that_choose_widths_in_their_own_way_are_refused(changes):
    with pytest.raises(errors.ArgumentError, match="ssl chooses widths in its own way"):
        recipe_of("ssl", changes)


def test_an_unknown_allocation_is_refused():
    with pytest.raises(errors.ArgumentError, match="did you mean global"):
        recipe_of("l1", Changes("globl"))


def test_widths_are_met_whatever_the_scores_are():
    rng = np.random.default_rng(0)
    scores = {name: rng.normal(size=size) for name, size in (("a", 9), ("b", 5), ("c", 2))}
    masks = Widths({"a": 4, "b": 5})(scores, Budget(macs=0.1))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"a": 4, "b": 5, "c": 2}
    assert set(np.flatnonzero(masks["a"])) == set(np.argsort(scores["a"])[-4:])


def test_a_second_look_changes_no_net():
    """New statistics are in the record alone; a net without statistics has none."""
    images = data.load("digits", subset=64)
    for name, has in (("lenet300", False), ("resnet8", True)):
        task = task_of(zoo.build(name, shape=images.shape), images)
        (look,) = [
            stage
            for stage in recipe_of("l1", Changes(settled=1))
            if stage.name == "before_finetune"
        ]
        key = jax.random.key(0)
        before = Pruned(task.init(key), None)
        after, (record,) = look(before, task, key)
        assert after is before
        told = {key for key in record["metrics"] if key.startswith("settled_")}
        assert told == ({"settled_loss", "settled_accuracy"} if has else set())
