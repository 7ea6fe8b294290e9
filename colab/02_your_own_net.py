# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own net, your own loop
#
# One net in Flax NNX, Flax Linen, Equinox and Keras, trained by the same ordinary optax loop and
# pruned by the same six lines. jprune reads the function that a net is: layers, channels and what
# hangs together are found in its equations, never guessed from the library, the layout or names.

# %%
import importlib.metadata
import os
import pathlib
import subprocess
import sys

# What pip installs on Colab: a name of an index, or the address of a repository or of a wheel.
PACKAGE = "jprune"

if "google.colab" in sys.modules:
    # Colab's own jax fits its accelerator: it stays as it is, older or newer than ours.
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in ("jax", "jaxlib")]
    pathlib.Path("constraints.txt").write_text("\n".join(pinned))
    install = [sys.executable, "-m", "pip", "install", "-q", "-c", "constraints.txt", PACKAGE]
    if subprocess.run(install).returncode:
        raise SystemExit(
            f"pip found no {PACKAGE!r} that goes with this jax. Write the repository into PACKAGE "
            "(git+https://...), or upload a wheel (`make build`) and write the wheel's name."
        )

# In smoke mode (the tests) everything is the same, only shorter.
SMOKE = bool(os.environ.get("JPRUNE_SMOKE"))

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx

import jprune
from jprune import Budget, allocate, criteria, data

# %% [markdown]
# ## Data and a loop, as you have them

# %%
digits = data.load("digits")
train_set = next(digits.batches("train", digits.sizes["train"], seed=0))
test_set = next(digits.batches("test", digits.sizes["test"]))
STEPS = 300 if SMOKE else 1500


def loss(out, batch):
    return optax.softmax_cross_entropy_with_integer_labels(out, batch["label"])


def fit(fn, variables, steps=STEPS):
    """Adam on batches of 64; `fn(variables, images)` are the logits."""
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    @jax.jit
    def step(carry, key):
        variables, state = carry
        rows = jax.random.randint(key, (64,), 0, len(train_set["label"]))
        batch = {name: jnp.asarray(train_set[name])[rows] for name in ("image", "label")}
        gradient = jax.grad(lambda v: loss(fn(v, batch["image"]), batch).mean())(variables)
        updates, state = tx.update(gradient, state, variables)
        return (optax.apply_updates(variables, updates), state), None

    keys = jax.random.split(jax.random.key(2), steps)
    return jax.lax.scan(step, (variables, tx.init(variables)), keys)[0][0]


def accuracy(fn, variables):
    return float((fn(variables, test_set["image"]).argmax(-1) == test_set["label"]).mean())


# %% [markdown]
# ## The net, four times
#
# Whatever the library: what jprune needs is `fn(variables, images)` and `variables`. Equinox takes
# one image with channels first, so it is put under `vmap`.

# %%
nets = {}


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 24, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Linear(24, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.out(x.mean((1, 2)))


graph, params = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param)
nets["NNX"] = (
    lambda params, x: nnx.merge(graph, params)(x),
    nnx.to_pure_dict(params),
)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(16, (3, 3))(x))
        x = linen.relu(linen.Conv(24, (3, 3), strides=2)(x))
        return linen.Dense(10)(x.mean((1, 2)))


x = jnp.asarray(train_set["image"][:1])
nets["Linen"] = Linen().apply, Linen().init(jax.random.key(0), x)


class Equinox(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0])
        self.second = eqx.nn.Conv2d(16, 24, 3, stride=2, padding=1, key=keys[1])
        self.out = eqx.nn.Linear(24, 10, key=keys[2])

    def __call__(self, x):
        x = jax.nn.relu(self.second(jax.nn.relu(self.first(x))))
        return self.out(x.mean((1, 2)))


arrays, static = eqx.partition(Equinox(jax.random.key(0)), eqx.is_array)
nets["Equinox"] = (
    lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x.transpose(0, 3, 1, 2)),
    arrays,
)

model = keras.Sequential(
    [
        keras.Input(digits.shape),
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.Conv2D(24, 3, strides=2, padding="same", activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(10),
    ]
)
rest = [variable.value for variable in model.non_trainable_variables]
nets["Keras"] = (
    lambda params, x: model.stateless_call(params, rest, x)[0],
    [variable.value for variable in model.trainable_variables],
)

# %% [markdown]
# ## Train, prune, train on
#
# `trace` reads the net, a criterion scores its units, an allocator keeps the best under the budget,
# `slim` makes the small function and `slim_params` its variables. The small net is dense: it goes
# back into the same loop.

# %%
rows = {}
for name, (fn, variables) in nets.items():
    variables = fit(fn, variables)
    groups = jprune.trace(fn, variables, x)
    cost = jprune.cost_model(fn, variables, x, groups=groups)
    scores = jprune.run_criterion(criteria.taylor(fn, loss), variables, [train_set])
    masks = allocate.uniform(jprune.to_units(groups, scores), Budget(macs=0.5), cost)
    small_fn = jprune.slim(fn, groups, masks)
    small = fit(small_fn, jprune.slim_params(groups, masks, variables))
    rows[name] = {
        "dense": accuracy(fn, variables),
        "small": accuracy(small_fn, small),
        "macs": float(cost(masks).macs / cost({}).macs),
        "widths": {group: int(mask.sum()) for group, mask in masks.items()},
    }
    print(name, rows[name])

# %%
figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
place = np.arange(len(rows))
axis.bar(place - 0.2, [row["dense"] for row in rows.values()], 0.4, color="#d8dee9", label="dense")
axis.bar(place + 0.2, [row["small"] for row in rows.values()], 0.4, color="#2e6f95", label="half")
axis.set_xticks(place, list(rows))
axis.set_ylabel("test accuracy")
axis.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# ## The claims of this page, checked
#
# The four spellings have the same groups and the same widths, meet the same budget, and lose less
# than three points.

# %%
assert len({tuple(sorted(row["widths"].values())) for row in rows.values()}) == 1
assert all(0.4 < row["macs"] <= 0.5 for row in rows.values())
assert all(row["small"] > row["dense"] - 0.03 for row in rows.values())
