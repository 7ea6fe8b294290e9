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
# # From a trained net to a smaller one, in ten lines
#
# We train ResNet-8 on handwritten digits, keep half of its multiply-accumulates, fine-tune what
# is left, and hand
# over a dense network that is really smaller. All of it runs on a CPU in half a minute.

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
EPOCHS = 12 if SMOKE else 30

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import jprune
from jprune import allocate, criteria, data, train, zoo
from jprune.base import Budget, Pruned
from jprune.stages import Train
from jprune.train import evaluate

# %% [markdown]
# ## A trained net
#
# A network is a pure function of its variables: `fn(variables, x)`. Everything that must shrink,
# batch-norm
# statistics included, is in `variables`. A *task* puts it together with data and a loss.

# %%
digits = data.load("digits")
net = zoo.build("resnet8", shape=digits.shape)
task = train.task(net, digits)
start = Pruned(net.init(jax.random.key(0)), None)
dense, _ = Train(EPOCHS, learning_rate=0.2, batch_size=64)(start, task, jax.random.key(1))
evaluate(task, dense.variables, "validation")

# %% [markdown]
# ## Ten lines
#
# `trace` finds which channels live or die together; a criterion scores them; an allocator keeps
# the best under a
# budget, here half of the multiply-accumulates. `hold` keeps what is pruned at exactly zero in
# any optax chain (the
# stage `Train` does so below). `slim` makes the network small.

# %%
fn, variables, x = net.fn, dense.variables, net.example
batches = [batch for batch, _ in zip(digits.batches("train", 64, seed=0), range(8))]
groups = jprune.trace(fn, variables, x)
criterion = criteria.taylor(fn, task.loss, groups, form="gate")
scores = jprune.run_criterion(criterion, variables, batches)
model = jprune.cost_model(fn, variables, x, groups=groups)
masks = allocate.global_topk(scores, Budget(macs=0.5, multiple_of=8), model)
masked = Pruned(jprune.apply_masks(variables, jprune.expand(groups, masks)), masks)
tuned, _ = Train(EPOCHS, learning_rate=0.1, batch_size=64)(masked, task, jax.random.key(2))
small_fn = jprune.slim(fn, groups, masks)
small = jprune.slim_params(groups, masks, tuned.variables)

# %% [markdown]
# ## What is left

# %%
names = [name.removeprefix("params/").removesuffix("/kernel") for name in groups.names]
before = np.array([groups.sizes[name] for name in groups.names])
after = np.array([masks[name].sum() for name in groups.names])
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
axes.barh(names, before, color="#d8dee9", label="before")
axes.barh(names, after, color="#2e6f95", height=0.5, label="after")
axes.invert_yaxis()
axes.set_xlabel("channels")
axes.legend(frameon=False)
plt.show()

# %%
costs = {"dense": jprune.cost(fn, variables, x), "slim": jprune.cost(small_fn, small, x)}
accuracy = {
    "dense": evaluate(task, variables, "test")["accuracy"],
    "slim": evaluate(task, small, "test", small_fn)["accuracy"],
}
for name, cost in costs.items():
    print(
        f"{name:6} {cost.params:8.0f} parameters {cost.macs:9.0f} MACs  accuracy "
        f"{accuracy[name]:.3f}"
    )

# %% [markdown]
# ## The claims of this page, checked
#
# Masked and slim networks give the same logits; the budget is met; the accuracy stays within
# three points.

# %%
batch = next(digits.batches("test", 64))
gate = jprune.expand(groups, masks, roles=("in",))
masked_logits = fn(jprune.apply_masks(tuned.variables, gate), batch["image"])
slim_logits = jax.jit(small_fn)(small, batch["image"])
assert abs(masked_logits - slim_logits).max() <= 1e-5 * abs(masked_logits).max()
assert costs["slim"].macs <= 0.5 * costs["dense"].macs
assert accuracy["slim"] >= accuracy["dense"] - 0.03
