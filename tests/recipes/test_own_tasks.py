"""Tasks of one's own: outputs that are no logits, no metric named accuracy or loss."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import errors, recipes
from jprune.base import Budget, Data, Pruned, Task
from jprune.recipes import Train
from jprune.stages.hypernetwork import TrainHypernetwork
from jprune.train.net import Net
from jprune.train.task import distilled

KEY = jax.random.key(0)
SHORT = Train(1, 1e-3, 16, max_steps=2, schedule="constant", name="finetune")
SMALL = {
    "han": {"rounds": 1, "examples": 16},
    "three_d": {"points": 2, "degree": 1, "dimensions": "width"},
    "metapruning": {
        "generations": 1,
        "population": 4,
        "parents": 2,
        "mutants": 2,
        "crossovers": 2,
        "images": 16,
        "recalibrate": 1,
    },
    "gal": {},
}


def per_pixel() -> Task:
    """Every pixel has a value to be found, by a small residual net; the metric is `error`."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(32, 8, 8, 2)).astype(np.float32)
    labels = images.mean(-1)

    def batches(split, batch_size, seed=None, epoch=0, start=0):
        for number in range(start, 32 // batch_size or 1):
            chosen = np.arange(number * batch_size, (number + 1) * batch_size)
            weight = (chosen < 32).astype(np.float32)
            chosen = np.minimum(chosen, 31)
            yield {"image": images[chosen], "label": labels[chosen], "weight": weight}

    def conv(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)

    def fn(v, x):
        x = jax.nn.relu(conv(x, v["params"]["a"]))
        x = x + conv(jax.nn.relu(conv(x, v["params"]["b"])), v["params"]["c"])
        return conv(jax.nn.relu(x), v["params"]["out"])

    shapes = {"a": (3, 3, 2, 6), "b": (3, 3, 6, 6), "c": (3, 3, 6, 6), "out": (1, 1, 6, 1)}
    params = {
        name: rng.normal(size=shape).astype(np.float32) * np.sqrt(2 / np.prod(shape[:-1]))
        for name, shape in shapes.items()
    }
    squares = lambda out, batch: ((out[..., 0] - batch["label"]) ** 2).mean((1, 2))
    return Task(
        name="per_pixel",
        fn=fn,
        train_fn=lambda variables, x, key: (fn(variables, x), variables["stats"]),
        loss=squares,
        metrics=lambda out, batch: {"error": squares(out, batch)},
        init=lambda key: {"params": jax.tree.map(jnp.asarray, params), "stats": {}},
        example=jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32),
        data=Data(
            "made", (8, 8, 2), 3, dict.fromkeys(("train", "validation", "test"), 32), batches
        ),
        split=lambda variables: (variables["params"], variables["stats"]),
        merge=lambda params, stats: {"params": params, "stats": stats},
        update=lambda variables, stats: {**variables, "stats": stats},
    )


@pytest.mark.parametrize("method", SMALL)
def test_a_recipe_does_without_accuracy_and_without_logits(method):
    task, budget = per_pixel(), Budget(macs=0.7)
    factory = recipes.find(method)
    stages = (None, SHORT) if "finetune" in inspect.signature(factory).parameters else (SHORT,)
    recipe = factory(budget, *stages, **SMALL[method])
    done, _ = recipes.run(recipe, Pruned(task.init(KEY), None), task, KEY)
    dense, net = float(Net(task).cost({}).macs), Net(task)
    assert float(net.cost({} if done.masks is None else done.masks).macs) <= 0.7 * dense
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(done.variables))


def test_labels_that_are_no_classes_are_not_smoothed():
    task = per_pixel()
    stages = recipes.find("metapruning")(Budget(macs=0.7), SHORT, **SMALL["metapruning"])
    (stage,) = [stage for stage in stages if isinstance(stage, TrainHypernetwork)]
    assert stage.smoothing > 0
    learner = stage.learner(Pruned(task.init(KEY), None), task, KEY)
    state, batch = learner.init(), next(learner.batches(0))
    _, metrics = learner.step(state, batch)
    assert {*metrics} == {"error"}


def test_distillation_refuses_what_is_no_logits_and_takes_logits_of_every_pixel():
    task = per_pixel()
    with pytest.raises(errors.ArgumentError, match=r"logits \[batch, ..., classes\].*distill=0"):
        distilled(task, task.init(KEY), 0.5)
    many = task._replace(
        fn=lambda v, x: task.fn(v, x) * jnp.arange(3.0), loss=lambda out, batch: out.sum((1, 2, 3))
    )
    taught = distilled(many, task.init(KEY), 1.0, temperature=1.0)
    ours, theirs = jax.random.normal(KEY, (2, 4, 8, 8, 3))
    right = optax.losses.kl_divergence(jax.nn.log_softmax(ours), jax.nn.softmax(theirs)).mean(
        (1, 2)
    )
    np.testing.assert_allclose(taught.loss((ours, theirs), {}), right, rtol=1e-4)
