"""In which of three ways a gradient meets its mask, for every method that trains under masks.

Frozen: a masked weight is exactly 0 after every step. Straight-through: the net runs on masked
weights, and what they are worth (their values, or their scores) takes steps all the same. Prox:
there is no mask while it trains; zeros are made by the step itself and read off afterwards.

A new method is a row of `METHODS`; a new kind of training stage is a row of `STAGES` and, if its
way of moving is a new one, a proof.
"""

import inspect
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import masks_of, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.learners import top_masks
from jprune.masks import apply_masks
from jprune.recipes import LongStage, Train
from jprune.recipes._surgery import Surgery
from jprune.recipes.edge_popup import Popup
from jprune.recipes.scratch import TrainAnew
from tests.toys import CLASSES, SHAPE, drawn, toy_data

FROZEN, STRAIGHT, PROX = "frozen", "straight-through", "prox"
METHODS = {
    **dict.fromkeys(
        """
        l1 l2 random taylor han lottery_ticket scratch_e scratch_b obd obs eigendamage c_obd c_obs
        kron_obd kron_obs data_free channel_lasso thinet
        """.split(),
        frozenset({FROZEN}),
    ),
    "dns": frozenset({STRAIGHT, FROZEN}),
    "edge_popup": frozenset({STRAIGHT}),
    "subset_sum": frozenset(),  # trains nothing under masks
}
STAGES = {Train: FROZEN, TrainAnew: FROZEN, Surgery: STRAIGHT, Popup: STRAIGHT}
DENSE = ("train", "early")
"""Names of stages that train the dense net, before there is a mask."""

KEY = jax.random.key(8)
SHORT = Train(1, 0.05, 16, max_steps=3)


@pytest.fixture(scope="module")
def net():
    task = train.task(zoo.build("lenet300", CLASSES, SHAPE), toy_data())
    return task, Pruned(drawn(task), None)


@pytest.mark.parametrize("name", recipes.METHODS)
def test_the_stages_of_a_method_are_of_the_way_that_it_names(name):
    assert name in METHODS, f"say in METHODS in which way gradients meet the masks of {name}"
    factory = recipes.find(name)
    budget = Budget(density=1.0 if name == "subset_sum" else 0.5)
    given = (budget, Train(2, 0.1), Train(2, 0.1, name="finetune"))
    takes = "finetune" in inspect.signature(factory).parameters
    stages = recipes.unrolled(factory(*given[: 3 if takes else 2]))
    long = [s for s in stages if isinstance(s, LongStage) and s.name not in DENSE]
    unknown = [type(stage).__name__ for stage in long if type(stage) not in STAGES]
    assert not unknown, f"say in STAGES in which way {unknown} train, and prove it"
    assert {STAGES[type(stage)] for stage in long} == METHODS[name]


@pytest.mark.parametrize("name", METHODS)
def test_the_docstring_of_a_method_names_the_way(name):
    if name not in recipes.METHODS:
        pytest.skip(f"{name} is not there yet")
    module = sys.modules[getattr(recipes.METHODS[name], "func", recipes.METHODS[name]).__module__]
    assert all(f"*{way}*" in " ".join((module.__doc__ or "").split()) for way in METHODS[name])


def steps(learner):
    state = learner.init()
    for batch in itertools.islice(learner.batches(0), 3):
        state, _ = learner.step(state, batch)
        yield state


def leaves(tree):
    return {
        path: np.asarray(leaf)
        for path, leaf in (
            (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        )
    }


@pytest.mark.parametrize("stage", [SHORT, TrainAnew(SHORT, "epochs")], ids=["Train", "TrainAnew"])
@pytest.mark.parametrize("kind", ["weights", "units"])
def test_frozen_weights_are_exactly_0_and_the_others_move(net, stage, kind):
    task, start = net
    draw = lambda shape: np.random.default_rng(0).random(shape) < 0.5
    if kind == "units":
        masks = {name: draw(size) for name, size in recipes.groups_of(task).sizes.items()}
    else:
        masks = jax.tree.map(lambda w: draw(w.shape) if w.ndim > 1 else None, start.variables)
    of_weights = recipes.weight_masks(task, masks)
    begun = Pruned(apply_masks(start.variables, of_weights), masks)
    learner = stage.learner(begun, task, KEY)
    before = leaves(begun.variables)
    for state in steps(learner):
        after = leaves(learner.variables(state))
        for path, mask in leaves(of_weights).items():
            assert not after[path][~mask].any()
            if path.endswith("kernel"):
                assert (after[path] != before[path])[mask].mean() > 0.5


def test_straight_through_surgery_moves_what_masked_weights_are_worth(net):
    task, start = net
    learner = Surgery(SHORT, Budget(density=0.3), biases=False).learner(start, task, KEY)
    first = leaves(learner.init().opt_state.hidden)
    for state in steps(learner):
        masks, seen = leaves(masks_of(state.opt_state)), leaves(state.params)
        for path, mask in masks.items():
            assert not seen[path][~mask].any()
            assert not leaves(state.opt_state.hidden)[path][mask].any()
            still = ~mask & (first[path] != 0)
            moved = leaves(state.opt_state.hidden)[path] != first[path]
            assert moved[still].mean() > 0.5


def test_straight_through_scores_move_where_weights_are_masked_and_weights_nowhere(net):
    task, start = net
    learner = Popup(Budget(density=0.3), SHORT).learner(start, task, KEY)
    first = leaves(learner.init().params)
    masks = leaves(top_masks(jax.tree.map(jnp.asarray, learner.init().params), 0.3))
    for state in steps(learner):
        for path, mask in masks.items():
            assert (leaves(state.params)[path] != first[path])[~mask].mean() > 0.5
        for path, weight in leaves(start.variables).items():
            np.testing.assert_array_equal(leaves(state.rest)[path], weight)
