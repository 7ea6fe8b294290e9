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
# # Sparsity while training
#
# Four methods that make a net sparse while it trains: group lasso, ADMM, dynamic network surgery,
# and gates with a distribution (variational pruning). The first three are optax transformations in
# a loop of your own; the fourth trains more than weights, and runs as a recipe.

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

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import jprune
from jprune import blocks, data, recipes, sparsify, train, zoo
from jprune.base import Budget, Pruned

# %% [markdown]
# ## A net, data, a loop

# %%
digits = data.load("digits")
train_set = next(digits.batches("train", digits.sizes["train"], seed=0))
test_set = next(digits.batches("test", digits.sizes["test"]))
STEPS = 400 if SMOKE else 1500


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 24, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Linear(24, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.out(x.mean((1, 2)))


graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
params = nnx.to_pure_dict(params)
fn = lambda params, x: nnx.merge(graph, params)(x)
groups = jprune.trace(fn, params, jnp.asarray(train_set["image"][:1]))


def fit(params, tx, watch=lambda params: 0.0):
    """Batches of 64; returns the parameters, the optimizer's state, and what was watched."""

    def mean_loss(params, batch):
        out = fn(params, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(out, batch["label"]).mean()

    @jax.jit
    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (64,), 0, len(train_set["label"]))
        batch = {name: jnp.asarray(train_set[name])[rows] for name in ("image", "label")}
        updates, state = tx.update(jax.grad(mean_loss)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), watch(params)

    keys = jax.random.split(jax.random.key(1), STEPS)
    (params, state), seen = jax.lax.scan(step, (params, tx.init(params)), keys)
    return params, state, np.asarray(seen)


def accuracy(params):
    return float((fn(params, test_set["image"]).argmax(-1) == test_set["label"]).mean())


def norms(params):
    """Of the filters of the second layer."""
    return jnp.linalg.norm(params["second"]["kernel"].reshape(-1, 24), axis=0)


rate = optax.cosine_decay_schedule(0.1, STEPS)
dense, _, _ = fit(params, optax.sgd(rate, 0.9))
result = {"dense": (accuracy(dense), 40)}

# %% [markdown]
# ## Group lasso: whole filters become exactly 0
#
# A penalty on the norm of every filter, with its proximal step behind the optimizer. Nothing is cut
# afterwards: what the step makes 0 is 0.

# %%
filters = blocks.filters(groups)
lasso = sparsify.group_lasso(filters, strength=0.03, rate=0.05 / (1 - 0.9), least=2)
sparse, _, by_lasso = fit(dense, optax.chain(optax.sgd(0.05, 0.9), lasso), norms)
masks = blocks.alive(filters, sparse)
result["group lasso"] = (accuracy(sparse), sum(int(mask.sum()) for mask in masks.values()))

# %% [markdown]
# ## ADMM: pulled towards a sparse copy
#
# The weights are drawn to their own projection on nets with half of the filters; the cut is the
# last projection.

# %%
both = blocks.filters(groups, shifts=True)
project = sparsify.projection(both, keep=0.5)
tx = sparsify.admm(optax.adam(3e-3), project, rho=0.3, every=20)
pulled, state, by_admm = fit(dense, tx, norms)
masks = blocks.alive(both, project(pulled))
cut = jprune.apply_masks(pulled, jprune.expand(groups, masks))
result["ADMM"] = (accuracy(cut), sum(int(mask.sum()) for mask in masks.values()))

# %% [markdown]
# ## Dynamic network surgery: masks of single weights that move
#
# A weight under the mask goes on learning, and comes back if it grows. `lift` says which units are
# left when single weights are gone.

# %%
weights = blocks.weights(groups)
ones = blocks.spread(weights, blocks.alive(weights, dense))
surgery = sparsify.dynamic_surgery(optax.sgd(0.05), ones, -0.3, jax.random.key(0), stop=STEPS // 2)
begun = jprune.apply_masks(dense, jprune.masks_of(surgery.init(dense)))
operated, state, _ = fit(begun, surgery)
density = float(jprune.masks.density(jprune.masks_of(state)))
units = blocks.lift(groups, jprune.masks_of(state))
result["surgery"] = (accuracy(operated), sum(int(mask.sum()) for mask in units.values()))

# %% [markdown]
# ## Variational: gates with a distribution
#
# Every channel's scale gets a mean and a variance; channels whose distribution sits at 0 go. It
# trains more than weights, so it is a recipe: stages on a task, for a net with batch norms.

# %%
task = train.task(zoo.build("resnet8", shape=digits.shape), digits)
fit_resnet = recipes.Train(3 if SMOKE else 30, 0.1, 64)
recipe = recipes.find("variational")(Budget(macs=0.7), fit_resnet)
start = Pruned(task.init(jax.random.key(0)), None)
gated, records = recipes.run(recipe, start, task, jax.random.key(1))
widths = train.Net(task).groups.sizes
left = sum(int(np.sum(gated.masks[name])) for name in widths)
macs = float(train.Net(task).cost(gated.masks).macs / train.Net(task).cost({}).macs)
print(f"variational: {left} of {sum(widths.values())} channels, {macs:.2f} of the MACs")

# %% [markdown]
# ## What the filters did
#
# Norms of the 24 filters of the second layer, step by step.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for axis, name, seen in zip(axes, ("group lasso", "ADMM"), (by_lasso, by_admm)):
    axis.plot(seen, color="#2e6f95", lw=0.8)
    axis.set(title=name, xlabel="step")
axes[0].set_ylabel("norm of a filter")
plt.show()
for name, (right, count) in result.items():
    print(f"{name:12} accuracy {right:.3f}  units {count} of 40")
print(f"surgery keeps {density:.2f} of the weights")

# %% [markdown]
# ## The claims of this page, checked
#
# Nothing is trained after a cut here; the papers of ADMM go on training under the masks.

# %%
assert (by_lasso[-1] == 0).any()
assert 4 < result["group lasso"][1] < 36
assert result["ADMM"][1] == 20
# Half of the filters are far below the others before anything is cut.
ordered = np.sort(by_admm[-1])
assert ordered[11] < 0.5 * ordered[12:].mean()
assert density < 0.8
assert macs <= 0.7
assert min(right for right, _ in result.values()) > result["dense"][0] - 0.2
