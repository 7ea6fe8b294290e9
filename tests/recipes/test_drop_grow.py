"""SET and RigL as recipes: counts that stay, masks that move, defaults that scale."""

import jax
import numpy as np
import pytest

from jprune import errors, recipes, stages
from jprune.base import Budget, Pruned
from jprune.stages.drop_grow import DropGrow
from tests.contracts.own import by_path
from tests.toys import drawn, toy_task

KEY = jax.random.key(2)
SHORT = stages.Train(12, 0.1, 16)


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_every_layer_keeps_its_number_of_weights_and_other_ones(method):
    task = toy_task("lenet300")
    recipe = recipes.find(method)(Budget(density=0.2), SHORT)[3:]  # without the dense net
    start, records = Pruned(drawn(task), None), []
    for number, stage in enumerate(recipe):
        before = start
        start, added = stage(start, task, jax.random.fold_in(KEY, number))
        records += added
    first, last = by_path(before.masks), by_path(start.masks)
    for path, mask in last.items():
        assert mask.sum() == first[path].sum()
        assert not by_path(start.variables)[path][~mask].any()
    changed = sum((last[path] & ~mask).sum() for path, mask in first.items())
    assert changed > 0.1 * sum(mask.sum() for mask in first.values())
    metrics = {record["stage"]: record["metrics"] for record in records}
    assert metrics["sparse"]["density"] == pytest.approx(0.2, abs=1e-3)
    assert metrics["sparse"]["loss"] < 0.7 * metrics["before_finetune"]["loss"]


def test_defaults_are_the_papers_where_there_is_time_and_scale_where_there_is_not():
    rigl, growing = DropGrow(SHORT), DropGrow(SHORT, "random", stop=1.0)
    paper = rigl.moved(32_000, 313)
    assert (paper.every, paper.begin, paper.stop) == (100, 0, 24_000)
    short = rigl.moved(500, 313)
    assert (short.every, short.stop) == (10, 375)
    assert (growing.moved(32_000, 313).every, growing.moved(32_000, 313).begin) == (313, 313)
    assert growing.moved(500, 313).every == 50
    assert DropGrow(SHORT, every=7).moved(500, 313).every == 7
    assert rigl.moved(1, 1).every == 1


def test_a_stopped_training_goes_on_with_the_same_masks():
    """A step depends on the state and the batch alone: halves are the whole."""
    task = toy_task("lenet300")
    begun, _ = stages.RandomMasks(Budget(density=0.2))(Pruned(drawn(task), None), task, KEY)
    learner = DropGrow(SHORT, "random", every=2).learner(begun, task, KEY)
    batches = [batch for _, batch in zip(range(6), learner.batches(0))]
    whole = learner.init()
    for batch in batches:
        whole, _ = learner.step(whole, batch)
    half = learner.init()
    for batch in batches[:3]:
        half, _ = learner.step(half, batch)
    half = jax.tree.map(lambda leaf: jax.numpy.asarray(np.array(leaf)), half)
    for batch in learner.batches(3):
        half, _ = learner.step(half, batch)
        if half.step == 6:
            break
    for one, other in zip(*(by_path(learner.finish(s).masks).values() for s in (whole, half))):
        np.testing.assert_array_equal(one, other)


def test_what_cannot_be_is_refused():
    make = recipes.find("rigl")
    for wrong in ({"fraction": 0.0}, {"every": 0}, {"anneal": "linear"}, {"stop": 0.0},
                  {"stop": 1.5}, {"times": 0.0}, {"densities": "erc"}):  # fmt: skip
        with pytest.raises(errors.ArgumentError):
            make(Budget(density=0.5), SHORT, **wrong)
    with pytest.raises(errors.ArgumentError, match="Leave out --weights"):
        make(Budget(density=0.5), None)
    task = toy_task("lenet300")
    with pytest.raises(errors.ArgumentError, match="the net has none"):
        DropGrow(SHORT)(Pruned(drawn(task), None), task, KEY)
