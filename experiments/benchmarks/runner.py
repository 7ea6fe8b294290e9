"""What the runner costs, how busy it keeps the cores, and whether vmapped seeds pay.

    python -m experiments.benchmarks.runner

Expected: a sweep of 27 LeNet-5 runs (8 methods and the dense net x 3 seeds) keeps both cores over
85 % busy; runner and records take under 2 % of a run. Vmapped seeds are no faster than seeds one
after the other on two cores (their convolutions become grouped ones), and are on accelerators.
"""

import contextlib
import dataclasses
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import tyro

from experiments import rows, run, seeds, work
from experiments.sweep import Net, Sweep
from jprune import measure
from jprune.base import Pruned, Task
from jprune.job.main import Job, task_for
from jprune.measure.provenance import usable_cores
from jprune.recipes import Train
from jprune.runs.directory import RunDirectory

OUT = rows.RESULTS / "engine" / "runner.jsonl"
LENET5 = Net("lenet5", "mnist", train_images=15_000, epochs=4, finetune_epochs=2)
METHODS = (
    *("dense", "random", "l1", "l2", "taylor", "scratch_e", "scratch_b"),
    *("l1:schedule=iterative", "l2:allocator=global_topk"),
)
SWEEP = Sweep((LENET5,), METHODS, macs=(0.5,))


def main(steps: int | None = None, repeats: int = 10, out: Path = OUT) -> None:
    """Measures, prints, and adds a row per question.

    Args:
        steps: stop every training after so many steps; for trying out.
        repeats: timed rounds of vmapped seeds.
        out: file of the rows.
    """
    sweep = dataclasses.replace(SWEEP, steps=steps)
    for found in measured(sweep, repeats):
        print(found, flush=True)
        rows.append(out, {**found, "steps": steps, "repeats": repeats, **rows.provenance()})


def measured(sweep: Sweep, repeats: int) -> Iterator[dict[str, Any]]:
    """All questions, one after the other."""
    yield overhead(sweep)
    yield busy(sweep)
    yield from together(repeats)


@contextlib.contextmanager
def given(sweep: Sweep, workers: int = 1) -> Iterator[run.Given]:
    """A sweep in folders of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        yield run.Given(sweep, workers, runs=place / "runs", results=place / "results", quiet=True)


def overhead(sweep: Sweep) -> dict[str, Any]:
    """The time of one LeNet-5 run that is not the main job's, and that of its records."""
    one = dataclasses.replace(sweep, methods=("dense", "l1"), seeds=(0,))
    spent = {"job": 0.0, "records": 0.0}

    def timed(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.perf_counter() - began

        return call

    with (
        given(one) as settings,
        mock.patch.object(work, "perform", timed("job", work.perform)),
        mock.patch.object(RunDirectory, "append", timed("records", RunDirectory.append)),
    ):
        began = time.perf_counter()
        run.run(settings, "overhead", "")
        total = time.perf_counter() - began
    extra = total - spent["job"] + spent["records"]
    return {"name": "overhead", "fraction": extra / total, "runs": 2, "total_s": total, **spent}


def busy(sweep: Sweep) -> dict[str, Any]:
    """The share of the cores' time that a whole sweep uses, a worker a core."""
    cores = usable_cores()
    with given(sweep, cores) as settings:
        before, began = _processor_seconds(), time.perf_counter()
        run.run(settings, "busy", "")
        wall = time.perf_counter() - began
    used = _processor_seconds() - before
    runs = len(sweep.methods) * len(sweep.seeds)
    fraction = used / (cores * wall)
    return {"name": "busy", "runs": runs, "wall_s": wall, "cores": cores, "fraction": fraction}


def _processor_seconds() -> float:
    """Of this process and of its children that are over."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def together(repeats: int) -> Iterator[dict[str, Any]]:
    """Steps of three seeds in one vmapped step, against three steps."""
    for model, data in (("lenet300", "mnist"), ("lenet5", "mnist")):
        job = Job(model, data, "l1", SWEEP.budgets[0])
        task, stage = task_for(job), Train(1, 0.01)
        keys = [jax.random.key(seed) for seed in SWEEP.seeds]
        starts = [Pruned(task.init(key), None) for key in keys]
        times = measure.interleaved(calls(stage, starts, task, keys), repeats=repeats)
        ratio = times["together"]["median"] / times["apart"]["median"]
        yield {"name": f"vmap {model}", "seeds": len(keys), "ms": times, "ratio_of_medians": ratio}


def calls(
    stage: Train, starts: Sequence[Pruned], task: Task, keys: Sequence[jax.Array]
) -> dict[str, Callable[[], None]]:
    """{"apart": a step of every seed, "together": the same as one}, each with states of its own."""
    learners = [stage.learner(start, task, key) for start, key in zip(starts, keys)]
    batches = [jax.device_put(next(learner.batches(0))) for learner in learners]
    states = [learner.init() for learner in learners]
    state = [seeds.stacked([learner.init() for learner in learners], jnp.stack)]
    step, key = seeds.vmapped(stage, starts[0], task), jnp.stack(list(keys))
    batch = seeds.stacked(batches, jnp.stack)

    def apart() -> None:
        for number, learner in enumerate(learners):
            states[number], _ = learner.step(states[number], batches[number])
        jax.block_until_ready(states)

    def together() -> None:
        state[0], _ = step(state[0], batch, key)
        jax.block_until_ready(state)

    return {"apart": apart, "together": together}


if __name__ == "__main__":
    tyro.cli(main)
