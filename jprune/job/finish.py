"""What follows a recipe in the main job: the law on real data, export, measurements."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jprune import errors, execute, export, measure
from jprune.base import Pruned, Records, Task, Variables
from jprune.cost.samples import gates_of
from jprune.forms.leaf_type import has_dynamic, is_leaf_type
from jprune.forms.opened import dense_of
from jprune.graph import slim, slim_params
from jprune.job.saved import WRITES, write_net
from jprune.masks import apply_masks
from jprune.runs.files import write_json
from jprune.stages.frame import record
from jprune.train.evaluate import EVALUATION_BATCH
from jprune.train.net import Net
from jprune.train.task import seen_at
from jprune.units import expand

Function = Callable[..., Any]
LARGEST = float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class Law:
    """Compares the masked net with the slim one on real images.

    Attributes:
        fn: the net in float32, whatever type the task computes in.
        split: whose images.
        name: of the record.

    The record's `max_rel_err` is max |a - b| / max |a| over all outputs, a being those of the dense
    net whose consumers' slices are masked, all kernels being arrays. Where a net chooses its
    channels for every image, a is that of the dense kernels with gates on their outputs. Where
    only one of the two nets gives a number, it is the largest float32.
    """

    fn: Function
    split: str = "test"
    name: str = "law"
    alone = True

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record."""
        del key
        groups, masks = Net(task).groups, Net(task).unit_masks(pruned)
        dense = dense_of(pruned.variables)
        # The law: masks on the `in` places (the consumers' slices) alone make the dense net compute
        # what the slim one does. Producers may say what they like.
        masked, fn = apply_masks(dense, expand(groups, masks, roles=("in",))), self.fn
        # Its channels differ between images: gates in the net are the same for all, so the kernels'
        # own choice is made visible by gates on what they give.
        if has_dynamic(pruned.variables):
            run = gates_of(self.fn, groups)
            masked, fn = pruned.variables, lambda variables, image: run(variables, image)[0]
        small, small_fn = slim_params(groups, masks, pruned.variables), slim(self.fn, groups, masks)

        @jax.jit
        def largest(image: jax.Array) -> tuple[jax.Array, jax.Array]:
            a, b = fn(masked, image), small_fn(small, image)
            # Relative to the largest output of all batches, not element by element: logits near 0
            # would make any rounding look large.
            both = jnp.isfinite(a) & jnp.isfinite(b)
            # Not a number in both is the same; else NaN would be lost in the maximum below.
            gap = jnp.where((a == b) | (jnp.isnan(a) & jnp.isnan(b)), 0.0, LARGEST)
            gap = jnp.where(both, jnp.abs(a - b), gap)
            return gap.max(), jnp.where(jnp.isfinite(a), jnp.abs(a), 0.0).max()

        difference, size = 0.0, 0.0
        with jax.default_matmul_precision("highest"):  # GPUs and TPUs round float32 otherwise
            for batch in task.data.batches(self.split, EVALUATION_BATCH):
                worst_of_batch = largest(batch["image"])
                difference, size = (
                    max(difference, float(worst_of_batch[0])),
                    max(size, float(worst_of_batch[1])),
                )
        # Outputs that are 0 everywhere have no size to compare with.
        error = min(difference / size if size else LARGEST * bool(difference), LARGEST)
        return pruned, [record(self.name, {"max_rel_err": error})]


WRITERS: dict[str, Callable[[Function, Variables, Any], bytes]] = {
    ".stablehlo": export.stablehlo,
    ".tflite": export.tflite,
}
"""{suffix: function of (fn, variables, example) that returns what the file holds}."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes the slim net: `params/`, `net.stablehlo`, `model.stablehlo`, `model.tflite`.

    Attributes:
        folder: the run directory.
        fn: the net in float32, for the .tflite.
        note: is told what could not be written, and why.
        name: of the stage.
        writes: what it leaves in the run directory; made again where it is missing or damaged.
    """

    folder: pathlib.Path
    fn: Function
    note: Callable[[str], None]
    name: str = "export"
    alone = True
    writes = WRITES

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net; the files."""
        del key
        fn, variables = Net(task).slim(pruned)
        # .tflite holds float32 kernels: a net that computes in bfloat16 is exported from its
        # float32 form.
        exact = slim(self.fn, Net(task).groups, Net(task).unit_masks(pruned))
        exact = seen_at(exact, pruned.resolution)
        write_net(self.folder, fn, exact, variables, task.example, self.note)
        return pruned, []


@dataclasses.dataclass(frozen=True)
class Measure:
    """Measures latencies of the dense and the slim net, and the sizes of their .tflite files.

    Attributes:
        folder: the run directory, with the slim `model.tflite` where there is one.
        fn: the net in float32.
        seconds: to spend on each comparison, at least.
        name: of the record.

    The record has `dense` and `pruned`, each with `bytes` and the entries of `latency_ms`.
    """

    folder: pathlib.Path
    fn: Function
    seconds: float = 2.0
    name: str = "measure"
    alone = True

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record."""
        del key
        # Latency depends on shapes alone: where no stage has saved the dense net, the present
        # kernels serve.
        dense = pruned.saved.get("dense", pruned.variables)
        table: dict[str, Any] = measure.xla_latency(
            (task.fn, dense), Net(task).slim(pruned), task.example, seconds=self.seconds
        )
        metrics = {"dense": dict(table["dense"]), "pruned": dict(table["slim"])}
        for name, value in self._tflite(dense, task).items():
            metrics[name] |= value
        return pruned, [record(self.name, metrics)]

    def _tflite(self, dense: Variables, task: Task) -> dict[str, dict[str, Any]]:
        small = self.folder / "model.tflite"
        if not small.exists():
            return {}
        # Both models are timed in turns, so that a machine that slows down slows both.
        large = export.tflite(self.fn, dense, task.example)
        models = {"dense": large, "pruned": small.read_bytes()}
        times = measure.tflite_latency(models, seconds=self.seconds)
        return {
            name: {"bytes": len(model), "tflite_b1": times[name]} for name, model in models.items()
        }


@dataclasses.dataclass(frozen=True)
class ExecuteSparse:
    """Runs the net with its masked kernels in sparse form, where that pays, and measures it.

    Attributes:
        fn: the net in float32.
        folder: the run directory, which gets `sparse.json`: {kernel: form, density, speedup that
            the roofline promises}.
        seconds: to spend on the comparison of latencies, at least.
        name: of the record.

    The record has the latency of one image of the `dense` net, of the slim one with `zeros` in its
    kernels, and of the `sparse` one [ms]; `kernels`, how many are in sparse form; and
    `max_rel_err`, the largest difference from the masked net on a batch of test images.
    """

    fn: Function
    folder: pathlib.Path
    seconds: float = 2.0
    name: str = "sparse"
    alone = True
    writes = ("sparse.json",)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record.

        Raises:
            ArgumentError: no single weights are masked.
            MissingExtraError: numba is not installed.
        """
        del key
        net, dense = Net(task), pruned.saved.get("dense", pruned.variables)
        if pruned.masks is None or net.are_units(pruned.masks):
            raise errors.ArgumentError(
                "execute='sparse' is for methods that prune single weights; this one has pruned "
                "whole units, and its small net is dense. Leave out --execute, or choose a method "
                "of weights, such as --method gmp."
            )
        example = jax.ShapeDtypeStruct((1, *task.example.shape[1:]), task.example.dtype)
        variables = apply_masks(pruned.variables, pruned.masks)
        arguments = (self.fn, variables, pruned.masks, example)
        decided = execute.verdicts(*arguments)
        fast, held = execute.compact(*arguments)
        image = next(iter(task.data.batches("test", EVALUATION_BATCH)))["image"]
        a, b = jax.jit(self.fn)(variables, image), jax.jit(fast)(held, image)
        error = float(jnp.abs(a - b).max() / jnp.abs(a).max())
        x = jnp.asarray(image[:1])
        closed = lambda fn, variables: (lambda x: fn(variables, x), (x,))
        times = measure.latency(
            {
                "dense": closed(self.fn, dense),
                "zeros": closed(*net.slim(pruned)),
                "sparse": closed(fast, held),
            },
            seconds=self.seconds,
        )
        write_json(self.folder / "sparse.json", {name: v._asdict() for name, v in decided.items()})
        sparse = sum(map(is_leaf_type, jax.tree.leaves(held, is_leaf=is_leaf_type)))
        metrics = {"kernels": sparse, "max_rel_err": error}
        return pruned, [record(self.name, {**times, **metrics})]
