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
# # Your own method, in one file
#
# A method of your own is a criterion or a wrap around the optimizer, and a recipe: a tuple of
# stages. This page writes one of each kind and compares them with L1 and random filters at equal
# budgets and equal training. docs/add_a_method.md says what a method needs before it is in jprune.

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
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jprune
from jprune import data, recipes, stages, train, zoo
from jprune.allocate import global_topk
from jprune.base import Budget, Criterion, Pruned
from jprune.recipes.three_step import three_step

# %% [markdown]
# ## A criterion
#
# Higher scores are kept. This one asks how far a unit's weights lie from those of the other units
# of its group: what lies in the middle can be replaced by the others.


# %%
def distance(groups):
    def score(state, variables):
        scores = {}
        for group in groups.names:
            units = jprune.rows(groups, variables, group)  # [units, weights of one]
            apart = units[:, None] - units[None]
            scores[group] = jnp.sqrt((apart**2).sum(-1)).sum(-1)
        return scores

    return Criterion(
        init=lambda variables: (),
        update=lambda state, variables, batch: state,
        score=score,
        needs_data=False,
    )


recipes.METHODS["distance"] = partial(
    three_step, criterion=lambda task, groups, key: distance(groups)
)

# %% [markdown]
# ## A wrap
#
# It acts while the net trains: behind every step it takes a little off the scale of every batch
# norm, down to exactly 0. Which leaves are scales is asked of `groups.places`, never of names.


# %%
@dataclasses.dataclass(frozen=True)
class ShrinkScales:
    """|scale| loses rate * strength in every step, rate being learning rate / (1 - momentum)."""

    strength: float

    def __call__(self, net, rate, key):
        groups = net.groups
        places = [place for group in groups.names for place in groups.places[group]]
        scales = {place.leaf for place in places if "scale" in place.roles}

        def update(updates, step, params):
            def shrunk(path, change, weight):
                name = "params/" + jax.tree_util.keystr(path, simple=True, separator="/")
                if name not in scales:
                    return change
                moved = weight + change
                least = jnp.maximum(jnp.abs(moved) - rate(step) * self.strength, 0)
                return jnp.sign(moved) * least - weight

            return jax.tree_util.tree_map_with_path(shrunk, updates, params), step + 1

        shrink = optax.GradientTransformation(lambda params: jnp.zeros((), int), update)
        return lambda inner: optax.chain(inner, shrink)


def scale_of(task, groups, key):
    sizes = lambda variables: jax.tree.map(jnp.abs, variables)
    return Criterion(
        init=lambda variables: (),
        update=lambda state, variables, batch: state,
        score=lambda state, variables: jprune.to_units(groups, sizes(variables), roles=("scale",)),
        needs_data=False,
    )


def shrinking(budget, train, finetune, *, strength=0.01):
    """Half of the fine-tuning under shrinking scales, the cut, and the other half."""
    half = dataclasses.replace(finetune, epochs=finetune.epochs / 2)
    sparse = dataclasses.replace(half, wrap=ShrinkScales(strength), name="shrink")
    cut = stages.Prune(scale_of, global_topk, budget)
    return stages.framed(train, sparse, cut, finetune=half)


recipes.METHODS["shrinking"] = shrinking

# %% [markdown]
# ## Beside L1 and random filters
#
# One dense net, one budget, the same number of steps for all.

# %%
digits = data.load("digits")
task = train.task(zoo.build("resnet8", shape=digits.shape), digits)
key = jax.random.key(0)
fit = recipes.Train(8 if SMOKE else 30, 0.2, 64)
dense, _ = fit(Pruned(task.init(key), None), task, key)
tune = recipes.Train(4 if SMOKE else 16, 0.1, 64, name="finetune")
rows = {"dense": (train.evaluate(task, dense.variables, "test")["accuracy"], 1.0)}
before, chosen = {}, {}
for method in ("distance", "shrinking", "l1", "random"):
    recipe = recipes.find(method)(Budget(macs=0.5, multiple_of=8), None, tune)
    pruned, records = recipes.run(recipe, dense, task, jax.random.key(1))
    small_fn, small = train.Net(task).slim(pruned)
    cost = train.Net(task).cost
    macs = float(cost(pruned.masks).macs / cost({}).macs)
    rows[method] = (train.evaluate(task, small, "test", small_fn)["accuracy"], macs)
    chosen[method] = np.concatenate([pruned.masks[name] for name in pruned.masks]).tobytes()
    seen = [r["metrics"] for r in records if r["stage"] == "before_finetune"]
    before[method] = seen[-1]["accuracy"]
for name, (right, macs) in rows.items():
    first = f"  before fine-tuning {before[name]:.3f}" if name in before else ""
    print(f"{name:10} accuracy {right:.3f}  MACs {macs:.2f}{first}")

# %%
figure, axis = plt.subplots(figsize=(6, 2.4), layout="constrained")
axis.barh(list(before), list(before.values()), color="#d8dee9", label="before fine-tuning")
axis.barh(list(before), [rows[m][0] for m in before], 0.4, color="#2e6f95", label="after")
axis.invert_yaxis()
axis.set_xlabel("accuracy")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## The claims of this page, checked
#
# Both methods meet the budget on a net with residual sums and batch norms, which their code never
# mentions. That they are better than random filters is *not* claimed: one seed says nothing, and
# `jprune compare` is the tool that asks.

# %%
assert all(macs <= 0.5 for name, (_, macs) in rows.items() if name != "dense")
assert all(right > 0.8 for right, _ in rows.values())
# Each method chose filters of its own.
assert len(set(chosen.values())) == len(chosen)
