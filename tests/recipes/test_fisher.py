"""Fisher information of channels, one at a time, and the control that trains the shape anew.

The sums and squares of checks [50] are in tests/criteria/test_gate_slopes.py, the removal in
tests/stages/test_one_by_one.py.
"""

import functools

import jax
import numpy as np
import pytest

from jprune import errors, recipes
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.recipes.fisher import fisher
from jprune.stages import RemoveOneByOne, TrainAnew
from jprune.train.net import Net
from tests.contracts.own import up_to
from tests.toys import drawn, toy_task

KEY = jax.random.key(1)
FINE = Train(4, 0.02, 16, name="finetune")


@functools.cache
def task_of():
    return toy_task()


def removal_of(recipe) -> RemoveOneByOne:
    return next(stage for stage in recipe if isinstance(stage, RemoveOneByOne))


def test_streams_stay_and_one_channel_goes_at_a_time():
    task = task_of()
    recipe = fisher(Budget(macs=0.6), None, FINE)
    assert removal_of(recipe).every == 100
    assert removal_of(recipe).removal(task).every == 2  # 6 steps, of which some 3 channels go
    before, after = up_to(recipe, task, "remove")
    assert before.masks is None
    kept = {name: int(mask.sum()) for name, mask in after.masks.items()}
    assert kept["params/conv1/kernel"] == 8
    share = float(Net(task).cost(after.masks).macs / Net(task).cost({}).macs)
    assert 0.5 < share <= 0.6 + 1e-6
    gone = ~np.asarray(after.masks["params/conv2/kernel"])
    assert not np.asarray(after.variables["params"]["conv2"]["kernel"])[..., gone].any()
    assert not np.asarray(after.variables["params"]["conv3"]["kernel"])[:, :, gone].any()


def test_the_control_has_the_shape_and_none_of_the_weights():
    """The pruned shape is trained as the dense net is, from values drawn for it."""
    task = task_of()
    recipe = fisher(Budget(macs=0.6), None, FINE, anew="epochs", epochs=2, learning_rate=0.1)
    done, rows = recipes.run(recipe, Pruned(drawn(task), None), task, KEY)
    assert [row["stage"] for row in rows] == ["dense", "remove", "before_finetune", "scratch"]
    assert rows[-1]["step"] == 2 * (48 // 16)
    last = recipe[-1]
    assert isinstance(last, TrainAnew)
    assert (last.train.epochs, last.train.learning_rate) == (2, 0.1)
    macs = {row["stage"]: row["metrics"].get("macs") for row in rows}
    assert macs["before_finetune"] <= 0.6 * macs["dense"] + 1
    fresh = task.init(jax.random.fold_in(KEY, 3))["params"]["conv1"]["kernel"]
    anew = up_to(recipe, task, "begin_anew")[1]
    assert not np.allclose(
        anew.variables["params"]["conv1"]["kernel"], drawn(task)["params"]["conv1"]["kernel"]
    )
    assert fresh.shape == anew.variables["params"]["conv1"]["kernel"].shape
    gone = ~np.asarray(done.masks["params/conv2/kernel"])
    assert gone.any()
    assert not np.asarray(done.variables["params"]["conv2"]["kernel"])[..., gone].any()


def test_words_and_numbers_that_do_nothing_are_refused():
    for options, says in (
        ({"score": "l2"}, "fisher or l1"),
        ({"anew": "steps", "epochs": 1, "learning_rate": 1.0}, "epochs or macs"),
        ({"epochs": 3}, "anew=epochs"),
        ({"anew": "epochs"}, "nobody knows how long"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            fisher(Budget(macs=0.5), None, FINE, **options)
    scored = removal_of(fisher(Budget(macs=0.5), None, FINE, score="l1", flop_aware=True))
    assert scored.scored.gates is None
    assert scored.adjust.divided
