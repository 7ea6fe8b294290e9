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
# # From JAX to the phone
#
# A network is trained, pruned to half of its multiply-accumulates, and written as .tflite files:
# float32, float16, int8 weights, and int8 throughout. No TensorFlow is needed. What counts is what
# the *file* does: its size, its time, and its accuracy on images that nothing was chosen by.

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
import matplotlib.pyplot as plt
import numpy as np

from jprune import data, export, measure, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.recipes import Train

# %% [markdown]
# ## A dense net and one of half its cost
#
# `multiple_of=8`: kernels of phones and CPUs take channels in eights, and 33 cost what 40 do.

# %%
digits = data.load("digits")
task = train.task(zoo.build("resnet8", shape=digits.shape), digits)
long = Train(8 if SMOKE else 30, 0.2, 64)
short = Train(5 if SMOKE else 20, 0.1, 64, name="finetune")
key = jax.random.key(0)
dense, _ = long(Pruned(task.init(key), None), task, key)
recipe = recipes.find("l1")(Budget(macs=0.5, multiple_of=8), None, short)
pruned, _ = recipes.run(recipe, dense, task, key)
small_fn, small = train.Net(task).slim(pruned)

# %% [markdown]
# ## Files
#
# `export.tflite` runs each float file beside JAX before it returns it. int8 needs a few training
# images, to see how large activations are.

# %%
shape = jax.ShapeDtypeStruct((1, *digits.shape), np.float32)
calibration = [b["image"] for b, _ in zip(digits.batches("train", 32, seed=0), range(8))]
files = {"dense float32": export.tflite(task.fn, dense.variables, shape)}
files["pruned float32"] = export.tflite(small_fn, small, shape)
for kind in ("fp16", "dynamic", "int8"):
    examples = calibration if kind == "int8" else None
    files[f"pruned {kind}"] = export.tflite(
        small_fn, small, shape, quantize=kind, calibration=examples
    )

# %% [markdown]
# ## What the files do
#
# The files run one image at a time, here on one thread; times are taken in turns.

# %%
test = next(digits.batches("test", digits.sizes["test"]))
images, labels = np.asarray(test["image"]), np.asarray(test["label"])


def accuracy(file):
    said = np.concatenate([export.run_tflite(file, image[None]) for image in images])
    return float((said.argmax(-1) == labels).mean())


right = {name: accuracy(file) for name, file in files.items()}
times = measure.tflite_latency(files, threads=1, repeats=20 if SMOKE else 200)
for name, file in files.items():
    print(
        f"{name:15} {len(file) / 1024:6.1f} kB  accuracy {right[name]:.3f}  "
        f"{1000 * times[name]['median']:5.0f} us"
    )

# %%
figure, axis = plt.subplots(figsize=(6, 2.4), layout="constrained")
axis.barh(list(files), [len(file) / 1024 for file in files.values()], color="#2e6f95")
axis.invert_yaxis()
axis.set_xlabel("kB")
plt.show()

# %% [markdown]
# ## To the phone
#
# The bytes are the file: this writes it, and any LiteRT interpreter (Android, iOS, Python) runs it.

# %%
pathlib.Path("digits_int8.tflite").write_bytes(files["pruned int8"])

# %% [markdown]
# ## The claims of this page, checked

# %%
jax_said = np.asarray(jax.jit(small_fn)(small, images))
file_said = np.concatenate([export.run_tflite(files["pruned float32"], i[None]) for i in images])
assert np.abs(jax_said - file_said).max() <= 1e-4 * np.abs(jax_said).max()
assert len(files["pruned float32"]) < 0.75 * len(files["dense float32"])
assert len(files["pruned int8"]) < 0.6 * len(files["pruned float32"])
assert right["pruned float32"] >= right["dense float32"] - 0.05
assert right["pruned int8"] >= right["pruned float32"] - 0.02
