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
# # How well does a saliency predict the loss?
#
# A saliency says what a weight is worth: the loss that pruning it will cost. OBD reads it off the
# diagonal of the Hessian, OBS off its inverse, and OBS moves the other weights to make up for the
# one that goes. Here each prediction stands beside the truth: the weight is deleted, and the loss
# is measured. Then the same for whole units, with the Kronecker factors of K-FAC and in the
# eigenbasis of EigenDamage.

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
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from scipy.stats import spearmanr

import jprune
from jprune import criteria, curvature, data
from jprune.reconstruct import obs

# %% [markdown]
# ## A small trained net
#
# Three layers on handwritten digits of 4 x 4 pixels, trained close to a minimum: all three methods
# drop the gradient from the Taylor series, since it is zero there. A net is a function of its
# variables and an input; any library's will do, and a dictionary of arrays is the shortest.

# %%
jax.config.update("jax_enable_x64", True)  # differences of losses need digits
digits = data.load("digits")
batch = next(digits.batches("train", 400 if SMOKE else digits.sizes["train"], seed=0))
pooled = batch["image"].reshape(-1, 4, 2, 4, 2).mean((2, 4))  # 4 x 4 pixels
batch = {"image": jnp.asarray(pooled.reshape(-1, 16), float), "label": batch["label"]}
sizes = {"first": (16, 12), "second": (12, 10), "out": (10, 10)}
keys = jax.random.split(jax.random.key(0), 3)
begun = {
    name: jax.random.normal(key, shape) * np.sqrt(1 / shape[0])
    for key, (name, shape) in zip(keys, sizes.items())
}
flat, shaped = ravel_pytree(begun)


def fn(v, x):
    return jax.nn.tanh(jax.nn.tanh(x @ v["first"]) @ v["second"]) @ v["out"]


def loss(out, batch):
    return optax.softmax_cross_entropy_with_integer_labels(out, batch["label"])


DECAY = 2e-3


@jax.jit
def mean_loss(v):
    penalty = DECAY / 2 * sum((leaf**2).sum() for leaf in jax.tree.leaves(v))
    return loss(fn(v, batch["image"]), batch).mean() + penalty


function = jax.jit(jax.value_and_grad(lambda w: mean_loss(shaped(w))))
w = minimize(function, flat, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 0}).x
variables = shaped(jnp.asarray(w))
start, slope = function(w)
print(f"{w.size} weights, loss {start:.4f}, largest slope {abs(slope).max():.1e}")

# %% [markdown]
# ## Single weights: OBD, OBS and size
#
# OBD: $\Delta E \approx \frac{1}{2} h_{kk} w_k^2$.
#
# OBS: $\Delta E \approx w_k^2 / (2 [H^{-1}]_{kk})$, with the other weights moved by
# $-\frac{w_k}{[H^{-1}]_{kk}} H^{-1} e_k$.
#
# The penalty on the weights belongs to the loss: it adds its own curvature to the diagonal.

# %%
hessian = jax.jit(jax.hessian(lambda w: mean_loss(shaped(w))))(w)
inverse = np.linalg.inv(hessian)
criterion = criteria.obd(fn, loss, curvature.exact(), negative="keep", weight_decay=DECAY)
scores = jprune.run_criterion(criterion, variables, [batch])
predicted = {
    "OBD": np.concatenate([np.ravel(scores[name]) for name in sorted(scores)]),
    "OBS": w**2 / (2 * np.diag(inverse)),
    "size": w**2,
}

# %%
moves = {
    "OBD": -np.diag(w),
    "OBS": -(w / np.diag(inverse))[:, None] * inverse,
}
after = jax.jit(lambda moves: jax.lax.map(lambda move: mean_loss(shaped(w + move)), moves))
true = {name: np.asarray(after(move)) - start for name, move in moves.items()}
true["size"] = true["OBD"]
ranks = {name: spearmanr(predicted[name], true[name])[0] for name in predicted}

figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axis, name in zip(axes, predicted):
    axis.loglog(predicted[name], np.maximum(true[name], 1e-7), ".", ms=3, color="#2e6f95")
    axis.set(title=f"{name}: rank correlation {ranks[name]:.2f}", xlabel="predicted")
    if name != "size":
        axis.axline((1e-4, 1e-4), (1e-2, 1e-2), color="#888888", lw=0.8)
axes[0].set_ylabel("true change of the loss")
plt.show()

# %% [markdown]
# ## Many weights: what adapting the others is worth
#
# `reconstruct.obs` deletes one weight after the other and keeps the rest at the minimum of the
# quadratic model. Its Hessian is the Gauss-Newton matrix, built up example by example. Against it:
# the same number of weights, the lowest by OBD, deleted at once.

# %%
counts = [20, 60, 120, 180]
cut = []
for count in counts:
    operated = obs(fn, loss, variables, [batch], count, alpha=DECAY)
    order = np.argsort(predicted["OBD"])
    masked = shaped(jnp.asarray(w).at[order[:count]].set(0))
    cut.append((float(mean_loss(masked)), float(mean_loss(operated.variables))))
plt.figure(figsize=(5, 3), layout="constrained")
plt.semilogy(counts, np.array(cut), "o-", label=["OBD", "OBS"])
plt.axhline(start, color="#888888", lw=0.8)
plt.xlabel("weights deleted of 412")
plt.ylabel("loss")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Whole units: Kronecker factors
#
# With $H \approx S \otimes A$ of every layer the damage of a unit is a product of two small
# quadratic forms. `kron_obd` prices the weights of a unit together, `c_obd` each weight alone.

# %%
groups = jprune.trace(fn, variables, batch["image"][:1])
layers = curvature.layers_of(fn, groups, variables, batch["image"][:1])
units = {}
for form in ("c_obd", "kron_obd"):
    by_form = criteria.kronecker(fn, loss, groups, layers, form, key=jax.random.key(1))
    units[form] = jprune.run_criterion(by_form, variables, [batch])
units["size"] = jprune.to_units(groups, jax.tree.map(jnp.square, variables))


def without(group, unit):
    masks = {group: np.arange(groups.sizes[group]) != unit}
    return float(mean_loss(jprune.apply_masks(variables, jprune.expand(groups, masks)))) - start


damage = {
    group: [without(group, unit) for unit in range(size)] for group, size in groups.sizes.items()
}
agreement = {
    form: {group: spearmanr(scores[group], damage[group])[0] for group in damage}
    for form, scores in units.items()
}
for form, by_group in agreement.items():
    print(f"{form:9}", {group: round(float(value), 2) for group, value in by_group.items()})

# %% [markdown]
# ## EigenDamage: the basis in which weights are independent
#
# In the eigenbasis of both factors the quadratic model has no cross terms: what is deleted there
# costs the sum of its parts. The same number of entries of the second layer, lowest damage first,
# in both bases.

# %%
factors = jprune.run_criterion(
    curvature.kfac(fn, loss, groups, layers, key=jax.random.key(2)), variables, [batch]
)
turned = curvature.rotated(variables["second"], factors["second"])
diagonal = curvature.Factors(*[np.diag(np.diag(each)) for each in factors["second"][:2]])
raw = curvature.rotated(variables["second"], diagonal)


def kept(parts, count):
    """The kernel without its `count` entries of least damage."""
    core = parts.core.copy()
    core.ravel()[np.argsort(parts.damage, axis=None)[:count]] = 0
    return jnp.asarray(parts.inputs @ core @ parts.outputs.T)


def loss_at(parts, share):
    return float(mean_loss({**variables, "second": kept(parts, int(share * 120))}))


shares = np.arange(0, 0.95, 0.1)
bases = {"its own basis": raw, "the eigenbasis": turned}
curves = {name: [loss_at(parts, share) for share in shares] for name, parts in bases.items()}
plt.figure(figsize=(5, 3), layout="constrained")
for name, values in curves.items():
    plt.semilogy(100 * shares, values, "o-", label=name)
plt.xlabel("entries of the second layer deleted, %")
plt.ylabel("loss")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# ## The claims of this page, checked
#
# Of single weights the saliencies tell the order, and size does not; what OBS makes up for is
# worth more the more weights go; in the eigenbasis more entries go at the same loss. Of whole units
# the scores say less: a unit is no small step from the minimum, and a series of two terms does not
# reach that far. On all images `kron_obd` orders them better than `c_obd`, and that better than
# size; on a third of them (smoke mode) not even that. So methods train between rounds, and a
# criterion is compared with the truth before it is believed.

# %%
assert ranks["OBD"] > 0.95
assert ranks["OBS"] > 0.85
assert ranks["size"] < min(ranks["OBD"], ranks["OBS"])
assert np.median(true["OBS"]) < np.median(true["OBD"])
assert all(by_surgery < by_diagonal for by_diagonal, by_surgery in cut)
assert sum(curves["the eigenbasis"]) < 0.8 * sum(curves["its own basis"])
mean_of = lambda form: np.mean([*agreement[form].values()])
assert SMOKE or mean_of("kron_obd") > mean_of("c_obd") > mean_of("size")
