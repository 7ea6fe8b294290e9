"""Optimizers by name and of the user's own: their steps, under masks, in parts, averaged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import errors, recipes, stages
from jprune.base import Budget, Pruned, Task
from jprune.recipes import Train
from jprune.train.net import Net
from jprune.train.optimizers import SETTINGS, Around, Chosen, Sgd
from jprune.train.step import averaged, plain
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)
LONG = Train(1, 0.05, 16, schedule="constant", max_steps=3)


def shortened(learning_rate, share):
    """SGD whose step is a share of the norm of all weights: every weight's step is all others'."""

    def update(gradients, state, params=None):
        length = optax.global_norm(params) / (1e-6 + optax.global_norm(gradients))
        steps = jax.tree.map(lambda g: -share * learning_rate(0) * length * g, gradients)
        return steps, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def trained(task: Task, train: Train, pruned: Pruned | None = None) -> Pruned:
    start = Pruned(drawn(task), None) if pruned is None else pruned
    return train(start, task, KEY)[0]


def leaves_differ(a, b):
    pairs = zip(jax.tree.leaves(a.variables), jax.tree.leaves(b.variables))
    return max(float(jnp.abs(x - y).max()) for x, y in pairs)


# Steps


BY_OPTAX = {
    "adam": lambda rate, mask: optax.chain(
        optax.add_decayed_weights(0.1, mask), optax.adam(rate, b1=0.8)
    ),
    "adamw": lambda rate, mask: optax.adamw(rate, b1=0.8, weight_decay=0.1, mask=mask),
    "lion": lambda rate, mask: optax.lion(rate, b1=0.8, weight_decay=0.1, mask=mask),
    "lamb": lambda rate, mask: optax.lamb(rate, b1=0.8, weight_decay=0.1, mask=mask),
}


@pytest.mark.parametrize("name", BY_OPTAX)
def test_steps_are_those_of_optax(name):
    params = own.draw({"kernel": (3, 4), "bias": (4,)})
    decayed = {"kernel": True, "bias": False}
    settings = (("b1", 0.8),)
    chosen = Chosen(name, 0.01, "cosine", 5, 0.1, settings).transformation(decayed)
    right = BY_OPTAX[name](lambda step: 0.005 * (1 + jnp.cos(jnp.pi * step / 5)), decayed)
    both = [(params, tx.init(params)) for tx in (chosen, right)]
    for number in range(4):
        gradients = own.draw({"kernel": (3, 4), "bias": (4,)}, seed=number + 1)
        for place, tx in enumerate((chosen, right)):
            updates, state = tx.update(gradients, both[place][1], both[place][0])
            both[place] = optax.apply_updates(both[place][0], updates), state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), both[0][0], both[1][0])


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adam"},
        {"optimizer": "lamb", "weight_decay": 0.1},
        {"clip": 0.05},
        {"optimizer": shortened, "settings": {"share": 0.05}},
        {"optimizer": "adamw", "clip": 0.05, "ema": 0.9},
    ],
    ids=lambda change: "-".join(map(str, change)),
)
def test_the_masked_net_takes_the_steps_of_the_small_one(change):
    task = toy_task("tiny")
    masks = {n: np.arange(size) % 3 > 0 for n, size in Net(task).groups.sizes.items()}
    start = stages.Prune(stages.l1_of, lambda *_: masks, Budget(density=0.5))
    pruned, _ = start(Pruned(drawn(task), None), task, KEY)
    train = dataclasses.replace(LONG, learning_rate=0.01, **change)
    masked = trained(task, train, pruned)
    net = stages.small(task, pruned)
    small = trained(net.task, train, Pruned(net.variables, None))
    again = net.back(small.variables)
    moved = leaves_differ(masked, pruned)
    assert moved > 1e-3
    assert leaves_differ(masked, pruned._replace(variables=again)) < 2e-3 * max(moved, 0.05)
    weights = Net(task).leaves(Net(task).weight_masks(masks))
    for path, leaf in Net(task).leaves(masked.variables).items():
        assert not np.asarray(leaf)[~np.asarray(weights.get(path, np.ones(leaf.shape, bool)))].any()


def test_a_long_gradient_is_shortened_and_a_short_one_is_not():
    sgd = Sgd(1.0, "constant", 9, 0.0, 0.0)
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    params = jax.tree.map(jnp.zeros_like, gradients)
    for clip, factor in ((1.0, 0.2), (10.0, 1.0)):
        tx = sgd._replace(around=Around(clip=clip)).transformation(False)
        updates, _ = tx.update(gradients, tx.init(params), params)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(updates[name], -factor * gradient)
    masks = {"a": jnp.array([False, True]), "b": jnp.array([True])}
    tx = sgd._replace(around=Around(clip=1.0)).transformation(False, masks)
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert updates["b"].tolist() == [-1.0]  # the norm of what is left is 4


def test_the_rate_rises_in_the_warm_up_and_then_follows_its_schedule():
    rate = Sgd(1.0, "cosine", 12, 0.9, 0.0, around=Around(warmup=3)).rate
    whole = Sgd(1.0, "cosine", 9, 0.9, 0.0).rate
    np.testing.assert_allclose(rate(np.arange(3)), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(rate(np.arange(3, 12)), whole(np.arange(9)), rtol=1e-5)
    part = Sgd(1.0, "cosine", 12, 0.9, 0.0, 2, 8, Around(warmup=3)).rate
    np.testing.assert_allclose(part(np.arange(6)), rate(np.arange(2, 8)), rtol=1e-5)


def test_a_batch_in_parts_is_the_step_of_the_whole():
    task = own.channels_first(False)  # no norms: each example is by itself
    for optimizer in ("sgd", "adam"):
        train = dataclasses.replace(LONG, optimizer=optimizer)
        whole = trained(task, train)
        parts = trained(task, dataclasses.replace(train, accumulate=4))
        assert 0 < leaves_differ(whole, parts) < 1e-4
    with_norms = toy_task("tiny")
    both = [trained(with_norms, dataclasses.replace(LONG, accumulate=n)) for n in (1, 2)]
    assert leaves_differ(*both) > 1e-3  # norms see the parts one by one


# Averages


def test_the_average_is_the_running_mean_and_what_training_hands_on():
    task = toy_task("tiny")
    train = dataclasses.replace(LONG, ema=0.5, optimizer="adam", max_steps=5)
    start = Pruned(drawn(task), None)
    learner, alone = (
        dataclasses.replace(train, ema=ema).learner(start, task, KEY) for ema in (0.5, None)
    )
    state, plain_state = learner.init(), alone.init()
    mean = task.split(start.variables)
    for number, batch in zip(range(5), learner.batches(0)):
        state, _ = learner.step(state, batch)
        plain_state, _ = alone.step(plain_state, batch)
        weights = (plain_state.params, plain_state.rest)
        d = min(0.5, (1 + number + 1) / (10 + number + 1))
        mean = jax.tree.map(lambda a, w, d=d: d * a + (1 - d) * w, mean, weights)
    for tree in (learner.variables(state), learner.finish(state).variables):
        assert leaves_differ(Pruned(tree, None), Pruned(task.merge(*mean), None)) < 1e-6
    assert leaves_differ(learner.finish(state), alone.finish(plain_state)) > 1e-4


def test_what_does_not_change_keeps_its_last_bit_and_integers_are_taken():
    old = {"still": jnp.float32(0.1), "zero": jnp.zeros(2), "count": jnp.int32(3)}
    new = {**old, "count": jnp.int32(4)}
    mean = old
    for step in range(50):
        mean = averaged(mean, new, jnp.int32(step), 0.9)
    assert mean["still"] == old["still"]
    assert mean["count"] == 4
    assert not mean["zero"].any()


# What cannot be


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optimizer": "adamm"}, "no optimizer 'adamm'; did you mean adam"),
        ({"optimizer": "lamb", "settings": {"nesterov": True}}, "lamb has no setting 'nesterov'"),
        ({"optimizer": "adam", "momentum": 0.5}, "does not look at momentum"),
        ({"optimizer": shortened, "weight_decay": 0.1}, "does not look at weight_decay"),
        ({"warmup": 0.5, "schedule": "one_cycle"}, "one_cycle warms up by itself"),
        ({"warmup": 1.0}, "a fraction of the steps below 1"),
        ({"clip": 0.0}, "a norm above 0"),
        ({"ema": 1.0}, "a decay in (0, 1)"),
        ({"accumulate": 3}, "divides batch_size=16"),
        ({"ema": 0.9, "wrap": stages.cores_only}, "Leave out ema"),
    ],
)
def test_settings_that_cannot_be_or_would_do_nothing_are_refused(change, says):
    with pytest.raises(errors.ArgumentError) as caught:
        dataclasses.replace(LONG, **change)
    assert says in str(caught.value)


def test_a_function_that_returns_something_else_is_refused():
    task = own.channels_first(False)
    for function, says in (
        (lambda learning_rate: None, "returned a NoneType; expected an optax.Gradient"),
        (lambda rate: optax.sgd(rate), "failed: TypeError"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            trained(task, dataclasses.replace(LONG, optimizer=function))


OPTIONS = {
    "optimizer": {"optimizer": "adam"},
    "warmup": {"warmup": 0.5},
    "clip": {"clip": 1.0},
    "ema": {"ema": 0.9},
    "accumulate": {"accumulate": 2},
}
REFUSED = {
    "aofp": {"ema"},
    **{method: {"ema", "accumulate"} for method in ("autopruner", "bar")},
    "csgd": {"optimizer", "clip", "ema"},
    "depgraph": {"ema"},
    "dns": {"ema"},
    **{method: {"ema"} for method in ("dpf", "gmp", "iht", "sfp", "asfp", "mfp")},
    "movement": {"ema"},
    "nm": {"ema"},
    "rigl": {"ema"},
    "set": {"ema"},
    "fbs": {"ema", "accumulate"},
    "manidp": {"ema", "accumulate"},
    "fisher": {"ema", "accumulate"},
    "taylor2016": {"ema", "accumulate"},
    "gal": {"optimizer", "ema", "accumulate"},
    "lcs": {"ema", "accumulate"},
    "group_brain_damage": {"ema"},
    "guided_sparsity": {"ema"},
    "less_is_more": {"ema"},
    "greg": {"optimizer", "ema"},
    "gsm": {"optimizer", "ema"},
    "hesso": {"ema"},
    "increg": {"optimizer", "ema"},
    "play_and_prune": {"ema"},
    "resrep": {"ema"},
    "slimming": {"ema"},
    "ssl": {"ema"},
    "ssr": {"ema"},
    "struct_admm": {*OPTIONS},
    "autocompress": {*OPTIONS},
    "tas": {"ema", "accumulate"},
    "edge_popup": {"ema"},
    "metapruning": {"ema"},
    "variational": {"optimizer", "clip", "ema", "accumulate"},
}
"""{method: what its stages refuse}; the others train with all of them."""


@pytest.mark.parametrize("method", recipes.METHODS)
def test_recipes_that_need_sgd_say_so_before_training(method):
    task = toy_task("tiny")
    budget = own.OF_ITS_OWN.get(method, Budget(macs=0.7))
    make = functools.partial(own.recipe_of, method, budget, **own.OPTIONS.get(method, {}))

    def refuses(train):
        try:
            stages.check(make(train), task)
        except errors.JpruneError as error:
            return str(error)
        return ""

    usual = dataclasses.replace(own.SHORT, epochs=1, max_steps=None)
    if refuses(usual):
        pytest.skip(f"{method} does not take this net")
    said = {o: refuses(dataclasses.replace(usual, **given)) for o, given in OPTIONS.items()}
    assert {option for option, words in said.items() if words} == REFUSED.get(method, set())
    assert all("eave it out" in w or "eave out ema" in w for w in said.values() if w)


def test_every_named_optimizer_has_its_settings():
    params = {"w": jnp.ones(3)}
    for name, settings in SETTINGS.items():
        train = Train(1, 0.1, 8, optimizer=name, settings={k: v for k, v in settings.items()
                                                        if k != "momentum"})  # fmt: skip
        tx = train.optimizer_for(own.channels_first(False)._replace()).transformation(False)
        updates, _ = tx.update(params, tx.init(params), params)
        assert (updates["w"] < 0).all()


def test_learners_of_methods_take_the_optimizer_that_is_asked_for():
    task = own.channels_first(False)
    learner = functools.partial(plain, task, Pruned(drawn(task), None), None)
    sgd, adam = (learner(t.optimizer_for(task), KEY, 16) for t in (
        LONG, dataclasses.replace(LONG, optimizer="adam")))  # fmt: skip
    states = [each.step(each.init(), next(each.batches(0)))[0] for each in (sgd, adam)]
    assert jax.tree.structure(states[0].opt_state) != jax.tree.structure(states[1].opt_state)
