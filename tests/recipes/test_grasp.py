"""GraSP: numbers of checks.md B6, Hessian products against a full Hessian, halves, its recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jprune
from jprune import criteria, errors
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.recipes.grasp import grasp
from jprune.stages import PruneUntrained
from jprune.stages.untrained_scores import ByGradientFlow
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)
SHORT = Train(1, 0.05, 16, max_steps=2)


def test_scores_of_a_quadratic(float64):
    """Checks B6: g = (1, -2), H g = (0, -5), S = -w (H g) = (0, -5), which sums to -||g||^2."""
    hessian = np.array([[2.0, 1.0], [1.0, 3.0]])
    w = np.array([1.0, -1.0])
    g = hessian @ w
    np.testing.assert_allclose([*g, *(hessian @ g)], [1, -2, 0, -5])
    loss = lambda out, batch: 0.5 * ((out @ hessian) * out).sum(axis=1)
    criterion = criteria.gradient_flow(lambda v, x: v["w"] * x, loss, temperature=1.0)
    scores = jprune.run_criterion(criterion, {"w": w}, [{"image": np.ones((1, 2))}])["w"]
    np.testing.assert_allclose(scores * (g @ g), [0, 5], atol=1e-8)
    masks = jprune.allocate.global_topk({"w": scores}, Budget(density=0.5))
    assert masks["w"].tolist() == [False, True]


def small():
    """A tanh net with three logits, six examples of two halves."""
    rng = np.random.default_rng(0)
    fn = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"]
    variables = {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=(2, 3))}
    batch = {"image": rng.normal(size=(6, 3)), "label": np.array([0, 0, 1, 1, 2, 2])}
    return fn, variables, batch


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("parts", [1, 2])
def test_it_is_w_times_the_full_hessian_times_g(float64, temperature, parts):
    fn, variables, batch = small()
    flat, back = ravel_pytree(variables)
    mean = lambda w: own.cross_entropy(fn(back(w), batch["image"]) / temperature, batch).mean()
    right = flat * (jax.hessian(mean)(flat) @ jax.grad(mean)(flat))
    criterion = criteria.gradient_flow(fn, own.cross_entropy, temperature, parts)
    scores, _ = ravel_pytree(jprune.run_criterion(criterion, variables, [batch]))
    np.testing.assert_allclose(scores, right / (abs(right.sum()) + 1e-10), rtol=1e-6)


def test_temperature_changes_the_order(float64):
    """The loss at T = 200 is nearly linear in the logits: not the same scores times a number."""
    fn, variables, batch = small()
    orders = []
    for temperature in (0.5, 200.0):
        criterion = criteria.gradient_flow(fn, own.cross_entropy, temperature)
        orders.append(ravel_pytree(jprune.run_criterion(criterion, variables, [batch]))[0])
    assert (np.argsort(orders[0]) != np.argsort(orders[1])).any()


def test_norms_of_a_half_see_that_half_alone(float64):
    """A norm by the batch's mean: two parts are two nets, whose gradients and Hessians add up."""
    fn, variables, batch = small()
    normed = lambda v, x: (fn(v, x - x.mean(0)), ())
    mean = lambda v, part: own.cross_entropy(normed(v, part["image"])[0], part).mean()
    halves = [jax.tree.map(lambda leaf, s=s: leaf[s], batch) for s in (slice(0, 3), slice(3, 6))]
    flat, back = ravel_pytree(variables)
    both = lambda w: 0.5 * sum(mean(back(w), half) for half in halves)
    right = flat * (jax.hessian(both)(flat) @ jax.grad(both)(flat))
    whole, cut = (
        ravel_pytree(
            jprune.run_criterion(
                criteria.gradient_flow(normed, own.cross_entropy, 1.0, parts, has_aux=True),
                variables,
                [batch],
            )
        )[0]
        for parts in (1, 2)
    )
    np.testing.assert_allclose(cut, right / (abs(right.sum()) + 1e-10), rtol=1e-6)
    assert np.abs(whole - cut).max() > 1e-3


def test_dense_layers_are_drawn_anew_for_scores_alone():
    task = toy_task()
    net, start = Net(task), Pruned(drawn(task), None)
    batch = next(task.data.batches("train", 12, seed=0))
    seen = {}
    for redraw in (False, True):
        criterion = ByGradientFlow(redraw_dense=redraw)(task, net.groups, KEY)
        seen[redraw] = net.leaves(jprune.run_criterion(criterion, start.variables, [batch]))
    # The copy differs from the net, and with it all scores in front of the dense layer.
    assert np.abs(seen[True]["params/fc/kernel"] - seen[False]["params/fc/kernel"]).max() > 0
    stage = PruneUntrained(ByGradientFlow(), Budget(density=0.3), per_class=4, batch_size=16)
    pruned, (line,) = stage(start, task, KEY)
    assert line["metrics"]["density"] == pytest.approx(0.3, abs=1e-3)
    for path, mask in net.leaves(pruned.masks).items():
        np.testing.assert_array_equal(
            net.leaves(pruned.variables)[path], np.where(mask, net.leaves(start.variables)[path], 0)
        )


def test_the_gradient_stays_longer_than_under_random_masks():
    """What the score is for: ||g|| of the masked net, at a tenth of the weights."""
    task = own.channels_first(False)
    start, net = Pruned(task.init(KEY), None), Net(task)
    criterion = ByGradientFlow(redraw_dense=False, norms="inference", temperature=1.0)
    stage = PruneUntrained(criterion, Budget(density=0.2), batch_size=32)
    pruned, _ = stage(start, task, KEY)
    (batch,) = stage.examples(task, jax.random.split(KEY)[1])

    def squared(masks):
        masked = jprune.apply_masks(start.variables, masks)
        slope = jax.grad(lambda v: task.loss(task.fn(v, batch["image"]), batch).mean())(masked)
        kept = zip(net.leaves(slope).items(), net.leaves(masks).values())
        return sum(float((np.asarray(g) ** 2)[m].sum()) for (_, g), m in kept)

    rng = np.random.default_rng(0)
    shuffle = lambda m: rng.permutation(np.ravel(m)).reshape(m.shape)
    random = [squared(jax.tree.map(shuffle, pruned.masks)) for _ in range(5)]
    assert squared(pruned.masks) > 2 * np.mean(random)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.0}, "the temperature is above 0"),
        ({"parts": 0}, "parts are 1 or more"),
        ({"per_class": 0}, "numbers of 1 or more"),
        ({"norms": "train"}, "write one of inference, batch"),
    ],
)
def test_options_that_cannot_be_are_refused(settings, says):
    with pytest.raises(errors.ArgumentError, match=says):
        grasp(Budget(density=0.5), SHORT, **settings)


def test_fewer_examples_than_parts_are_refused():
    fn, variables, batch = small()
    criterion = criteria.gradient_flow(fn, own.cross_entropy, parts=9)
    with pytest.raises(errors.ArgumentError, match="for 9 parts"):
        jprune.run_criterion(criterion, variables, [batch])
