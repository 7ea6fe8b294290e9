"""Tasks of a user's own: a function, arrays and data, put together by hand as `base.Task` says."""

import dataclasses
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors, recipes
from jprune.base import Budget, Data, Pruned, Task
from jprune.recipes import Train

KEY = jax.random.key(0)
CLASSES = 4
EXAMPLES = 32
BATCH = 16
SHORT = Train(1, 0.05, BATCH, max_steps=2, schedule="constant", weight_decay=0.1, name="finetune")
"""Training in which decay shows, long enough for a recipe to run."""


def data_of(images, labels, classes: int = CLASSES) -> Data:
    """A data set whose three splits are the same examples."""
    images, labels = np.asarray(images), np.asarray(labels)

    def batches(split, batch_size, seed=None, epoch=0, start=0):
        order = np.arange(len(labels))
        if seed is not None:
            np.random.default_rng([seed % 2**32, epoch]).shuffle(order)
        count = len(order) // batch_size if seed is not None else -(-len(order) // batch_size)
        for number in range(start, count):
            chosen = order[number * batch_size :][:batch_size]
            padding = (0, batch_size - len(chosen))
            weight = np.pad(np.ones(len(chosen), np.float32), padding)
            padded = np.pad(chosen, padding, mode="edge")
            yield {"image": images[padded], "label": labels[padded], "weight": weight}

    sizes = {split: len(labels) for split in ("train", "validation", "test")}
    return Data("made", images.shape[1:], classes, sizes, batches)


def cross_entropy(out, batch):
    return optax.softmax_cross_entropy_with_integer_labels(out, batch["label"])


def no_loss(out, batch):
    """A loss without a gradient: what moves is moved by the method alone."""
    return 0.0 * out.sum(-1)


def loss_and_accuracy(out, batch):
    right = out.argmax(-1) == batch["label"]
    return {"loss": cross_entropy(out, batch), "accuracy": right.astype(jnp.float32)}


def task_of(fn, params, shape, stats=None, images=None, labels=None, **others) -> Task:
    """A task around `fn(variables, x)`: 32 examples, and statistics that no training moves.

    Args:
        fn: the net; its variables are {"params", "stats"}.
        params: arrays.
        shape: of an image.
        stats: arrays; none by default.
        images: [examples, *shape]; drawn by default.
        labels: [examples, ...]; drawn from the classes by default.
        others: fields of the task that are other ones.
    """
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(EXAMPLES, *shape)).astype(np.float32) if images is None else images
    labels = rng.integers(0, 3, len(images)).astype(np.int32) if labels is None else labels
    start = {"params": params, "stats": {} if stats is None else stats}
    task = Task(
        name="made",
        fn=fn,
        train_fn=lambda variables, x, key: (fn(variables, x), variables["stats"]),
        loss=cross_entropy,
        metrics=loss_and_accuracy,
        init=lambda key: jax.tree.map(jnp.asarray, start),
        example=jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        data=data_of(images, labels),
        split=lambda variables: (variables["params"], variables["stats"]),
        merge=lambda params, stats: {"params": params, "stats": stats},
        update=lambda variables, stats: {**variables, "stats": stats},
    )
    return task._replace(**others)


def run(recipe, task) -> Pruned:
    """The net at the end of a recipe."""
    return recipes.run(recipe, Pruned(task.init(KEY), None), task, KEY)[0]


def up_to(recipe, task, name) -> tuple[Pruned, Pruned]:
    """The net before and after the first stage of a name, the stages before it having run."""
    pruned = Pruned(task.init(KEY), None)
    for number, stage in enumerate(recipe):
        before = pruned
        pruned, _ = stage(pruned, task, jax.random.fold_in(KEY, number))
        if stage.name == name:
            return before, pruned
    raise LookupError(f"the recipe has no stage {name}")


def recipe_of(method, budget, finetune=SHORT, dense=True, **options):
    """A method's recipe with short training; with `dense`, of the dense net as well."""
    factory = recipes.find(method)
    train = dataclasses.replace(finetune, name="train") if dense else None
    takes = "finetune" in inspect.signature(factory).parameters
    return factory(budget, train, *((finetune,) if takes else ()), **options)


class TooLong(Exception):
    """More training batches were drawn than there should be."""


def watched(task, drawn, most=math.inf) -> Task:
    """The task with a list that grows with every training batch, and how long it may become."""

    def batches(split, *args, **options):
        for batch in task.data.batches(split, *args, **options):
            if split == "train":
                drawn.append(batch)
                if len(drawn) > most:
                    raise TooLong
            yield batch

    return task._replace(data=task.data._replace(batches=batches))


def trouble(recipe, task) -> str:
    """Why a recipe neither prunes a task nor refuses it before training; empty if it does."""
    drawn = []
    try:
        run(recipe, watched(task, drawn))
    except errors.JpruneError as error:
        return f"refused after {len(drawn)} training batches: {error}" if drawn else ""
    except Exception as error:
        return f"after {len(drawn)} training batches {type(error).__name__}: {error}"
    return ""


OF_ITS_OWN = {"subset_sum": Budget(density=1.0), "three_d": Budget(macs=0.7)}
"""Budgets of methods that take no density."""

OPTIONS: dict[str, dict[str, Any]] = {
    "aofp": {"period": 1, "warmup": 0, "streams": True},
    "apoz": {"rounds": 1, "batches": 2, "batch_size": 16},
    "amc": {"episodes": 3, "warmup": 1, "hidden": 8, "batches": 1, "examples": 32},
    "autocompress": {"evaluations": 3, "images": 16, "recalibrate": 1},
    "cacp": {"episodes": 3, "warmup": 1, "hidden": 8, "batches": 1, "examples": 32},
    "entropy": {"rounds": 1, "batches": 2, "batch_size": 16},
    "hrank": {"rounds": 1, "batches": 2, "batch_size": 16},
    "from_scratch": {"gate_epochs": 1},
    "chip": {"batches": 1, "batch_size": 16},
    "metapruning": {
        "generations": 2,
        "population": 4,
        "parents": 2,
        "mutants": 2,
        "crossovers": 2,
        "recalibrate": 2,
    },
    "lcp": {"evaluations": 6, "population": 4, "tournament": 2, "images": 16, "recalibrate": 1},
    "lottery_ticket": {"rounds": 1},
    "partial_order": {"evaluations": 2, "images": 16},
    "particle_filter": {"particles": 3, "generations": 1},
    "channel_lasso": {"batches": 2, "batch_size": 16, "points": 25},
    "cpli": {"batches": 2, "batch_size": 16, "points": 25},
    "thinet": {"rounds": 1, "batches": 2, "batch_size": 16, "points": 25},
    "depgraph": {"rounds": 1},
    "taylor": {"rounds": 1},
    "granularity": {"rounds": 1, "ratios": 1.0},
    "greedy_forward": {"rounds": 1, "batches": 2, "batch_size": 16, "candidates": 4},
    "han": {"rounds": 1},
    "lamp": {"rounds": 1},
    "nm": {"m": 3},
    "play_and_prune": {"rounds": 1, "tolerance": 0.5},
    "netadapt": {"step": 1.0, "images": 16, "recalibrate": 1},
    "obd": {"rounds": 1, "batches": 2},
    "obs": {"batches": 2},
    "energy_aware": {"batches": 2, "batch_size": 16, "points": 25},
    "exact_obs": {"batches": 2, "batch_size": 16, "points": 25},
    "sparsegpt": {"batches": 2, "batch_size": 16, "points": 25},
    "woodfisher": {"gradients": 16, "batch_size": 16},
    "m_fac": {"gradients": 16, "batch_size": 16, "recomputations": 2},
    "snip": {"batch_size": 16},
    "grasp": {"per_class": 2, "batch_size": 16},
    "synflow": {"rounds": 3},
    **{
        method: {"recalibrate": 2, "batches": 2}
        for method in ("c_obd", "c_obs", "kron_obd", "kron_obs", "eigendamage")
    },
}
"""What makes a method short."""


# ---- plain nets ---------------------------------------------------------------------------------


def conv(x, kernel, stride=1, layout="NHWC"):
    """A convolution with kernels HWIO, or OIHW for channels first."""
    numbers = (layout, {"NHWC": "HWIO", "NCHW": "OIHW"}[layout], layout)
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=numbers)


def draw(shapes, seed=0):
    """Random arrays in the place of shapes; kernels [..., in, out] keep the variance of data."""
    rng = np.random.default_rng(seed)

    def one(shape):
        return (rng.normal(size=shape) * np.sqrt(2 / math.prod(shape[:-1]))).astype(np.float32)

    return jax.tree.map(one, shapes, is_leaf=lambda node: isinstance(node, tuple))


def kernels(shapes, bias=False):
    """Random layers {name: {"kernel"}} of these shapes, with biases or without."""
    layer = lambda shape: {"kernel": shape, "bias": shape[-1:]} if bias else {"kernel": shape}
    return draw({name: layer(shape) for name, shape in shapes.items()})


def by_path(tree) -> dict[str, np.ndarray]:
    """{path: array} of a tree without its None leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def channels_first(first) -> Task:
    """Two convolutions and a dense layer, kernels HWIO or, channels first, OIHW."""
    params = kernels({"a": (3, 3, 2, 6), "b": (3, 3, 6, 8), "c": (8, 3)})
    if first:
        params = jax.tree.map(lambda w: w.transpose(3, 2, 0, 1) if w.ndim > 2 else w.T, params)

    def fn(v, x):
        a, b, c = (v["params"][name]["kernel"] for name in "abc")
        if first:
            x = jax.nn.relu(conv(x.transpose(0, 3, 1, 2), a, layout="NCHW"))
            return jax.nn.relu(conv(x, b, layout="NCHW")).mean((2, 3)) @ c.T
        return jax.nn.relu(conv(jax.nn.relu(conv(x, a)), b)).mean((1, 2)) @ c

    return task_of(fn, params, (5, 5, 2))


def per_pixel() -> Task:
    """Regression of every pixel by a small residual net; its metric is `error`."""

    def fn(v, x):
        kernel = {name: layer["kernel"] for name, layer in v["params"].items()}
        x = jax.nn.relu(conv(x, kernel["a"]))
        x = x + conv(jax.nn.relu(conv(x, kernel["b"])), kernel["c"])
        return conv(jax.nn.relu(x), kernel["out"])

    shapes = {"a": (3, 3, 2, 6), "b": (3, 3, 6, 6), "c": (3, 3, 6, 6), "out": (1, 1, 6, 1)}
    squares = lambda out, batch: ((out[..., 0] - batch["label"]) ** 2).mean((1, 2))
    return task_of(
        fn,
        kernels(shapes),
        (8, 8, 2),
        labels=np.random.default_rng(0).uniform(size=(32, 8, 8)).astype(np.float32),
        loss=squares,
        metrics=lambda out, batch: {"error": squares(out, batch)},
    )
