"""What training-time methods cost: a step of each against a dense one, in one interleaved run.

    python -m experiments.benchmarks.steps

Expected on ResNet-8: group lasso, ADMM, C-SGD and variational gates at most 1.15 of the dense step,
FBS, ManiDP and LCS at most 1.25. Options are the recipes' defaults; ADMM updates its duals once in
a hundred steps, and FBS is measured at the density of its last phase.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import tyro

from experiments import rows
from experiments.benchmarks.hold import step_of, task_of
from jprune import measure, recipes
from jprune.base import Budget, Learner, Pruned, Task
from jprune.recipes import Evaluate, LongStage, Train

OUT = rows.RESULTS / "benchmarks" / "steps.jsonl"
METHODS = {
    **dict.fromkeys(("ssl", "struct_admm", "csgd", "variational"), 1.15),
    **dict.fromkeys(("fbs", "manidp", "lcs"), 1.25),
}
"""{name: the most that is expected}."""
BUDGET = Budget(macs=0.5)
OPTIONS = {"fbs": {"drop": 0.99}}
"""Its first phase is at density 1, and the second is the last."""


def train_for(task: Task, batch_size: int, steps: int) -> Train:
    """So many steps."""
    epochs = steps * batch_size / task.data.sizes["train"]
    return Train(epochs, 0.01, batch_size=batch_size, schedule="constant")


def learner_of(method: str, task: Task, start: Pruned, train: Train) -> Learner:
    """The stage of a recipe that trains more than weights, at the point where it begins."""
    factory, key = recipes.find(method), jax.random.key(1)
    if method == "variational":
        recipe = factory(BUDGET, train)
    else:
        recipe = factory(BUDGET, None, train, **OPTIONS.get(method, {}))
    for stage in recipe:
        if isinstance(stage, LongStage) and stage is not train:
            return stage.learner(start, task, key)
        if stage is not train and not isinstance(stage, Evaluate):
            start, _ = stage(start, task, key)
    raise AssertionError(f"{method} has no such stage")


def steps_of(model: str, batch_size: int, steps: int) -> dict[str, Callable[[], None]]:
    """{"dense" and every method: a training step}."""
    task, batch = task_of(model, batch_size)
    start, key = Pruned(task.init(jax.random.key(0)), None), jax.random.key(1)
    train = train_for(task, batch_size, steps)
    calls = {"dense": step_of(train.learner(start, task, key), batch)}
    for method in METHODS:
        calls[method] = step_of(learner_of(method, task, start, train), batch)
    for _ in range(steps // 2):
        calls["fbs"]()
    return calls


def main(
    model: str = "resnet8",
    repeats: int = 50,
    batch_size: int = 128,
    steps: int = 200,
    out: Path = OUT,
) -> None:
    """Times the steps, and adds a row per method.

    Args:
        model: name in the zoo.
        repeats: timed rounds, at least 10.
        batch_size: images in a step.
        steps: of the trainings that the timed steps are part of, more than twice the rounds.
        out: file of the rows.
    """
    times = measure.interleaved(steps_of(model, batch_size, steps), repeats=repeats)
    found = []
    for method, most in METHODS.items():
        ratio = times[method]["median"] / times["dense"]["median"]
        row = {"net": model, "batch_size": batch_size, "repeats": repeats, "steps": steps}
        row |= {"method": method, "ratio_of_medians": ratio, "expected": most}
        pair = {name: times[name] for name in ("dense", method)}
        found.append({**row, "ms": pair, **rows.provenance()})
        print(f"{model}, {method}: {ratio:.3f} (at most {most} expected)")
    rows.append(out, *found)


if __name__ == "__main__":
    tyro.cli(main)
