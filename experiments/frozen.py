"""Outputs frozen before the code is moved about, and compared bit for bit after every step.

    python -m experiments.frozen write FOLDER [--only NAMES...]
    python -m experiments.frozen compare FOLDER [--only NAMES...]

`write` runs every case and leaves FOLDER/NAME.json: {what: its value as text}, of arrays the
SHA-256 of their bytes, shape and type. `compare` runs them again, prints a line a case, and exits
with 1 where anything has another value, is new or is missing. NAMES are those of cases or patterns,
such as `obs-*`.

- METHOD-NET: a method's whole recipe with two steps a training: masks, units kept, the variables,
  what the net says of test images, masked and slim, and all records. A budget that the method
  refuses is frozen as its message, and the next of `BUDGETS` is taken.
- inspect-NET: what `jprune inspect` says, all groups, and the net slimmed under random masks.
- demo: what the demo leaves; times, versions and places aside. methods: their table and options.

Only names of the public interface are used here, which stay when modules move. What is computed
depends on the processor and on versions: FOLDER/_machine.json says which, and `compare` says so
where they differ.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import importlib.metadata
import inspect
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Sums have an order of their own for every number of threads. Both are read on import, or when JAX
# first computes.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
os.environ["COLUMNS"] = "100"

import jax
import numpy as np
import tyro

import jprune
from jprune import cli, data, errors, recipes, train, zoo
from jprune.base import Budget, Data, Groups, Pruned, Task
from jprune.train import task as task_of

Facts = dict[str, str]

BUDGETS = (Budget(macs=0.5), Budget(density=0.5), Budget(macs=1.0))
"""The first that a method takes is its budget."""
TRAIN = recipes.Train(1, 0.01, 64, max_steps=2, schedule="constant")
OPTIONS: dict[str, dict[str, Any]] = {
    "han": {"rounds": 1, "examples": 128},
    "metapruning": {
        "generations": 2,
        "population": 6,
        "parents": 3,
        "mutants": 3,
        "crossovers": 3,
        "window": 0.3,
        "images": 100,
        "recalibrate": 2,
    },
    "obd": {"batches": 4, "rounds": 2},
    "obs": {"batches": 4, "block": 100},
    "three_d": {"points": 2, "degree": 2},
}
"""Of methods that would take long with their usual ones."""
ONLY_DENSE = ("subset_sum",)
"""Methods of nets without convolutions."""
INSPECTED = (
    *("lenet300", "lenet5", "vgg16", "resnet8", "resnet20", "resnet56"),
    *("densenet40", "mobilenetv2", "efficientnet_lite0", "resnet50"),
)
ELSEWHERE = ("wall_s", "latency_ms", "latency", "commit", "versions", "device", "command")
"""Keys of `result.json` that are other ones in every run, or on every machine."""
MACHINE = "_machine.json"


def write(folder: tyro.conf.Positional[Path], only: tuple[str, ...] = ()) -> None:
    """Runs cases and keeps what they come to.

    Args:
        folder: of the files; made if it is not there.
        only: names of cases, or patterns of them; all if none is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MACHINE).write_text(_text(machine()))
    for name, found, seconds in ran(chosen(only)):
        (folder / f"{name}.json").write_text(_text(found))
        crashed = f", {found['crash']}" if "crash" in found else ""
        print(f"written    {name}: {len(found)} values, {seconds:.1f} s{crashed}", flush=True)


def compare(folder: tyro.conf.Positional[Path], only: tuple[str, ...] = ()) -> None:
    """Runs cases again and compares; exits with 1 where one differs.

    Args:
        folder: that `write` filled.
        only: names of cases, or patterns of them; all if none is given.
    """
    before, here = _read(folder / MACHINE) or {}, machine()
    for name in differences(before, here):
        print(f"note       {name} was {before.get(name)} and is {here.get(name)}")
    cases, differing = chosen(only), 0
    for name, found, seconds in ran(cases):
        frozen = _read(folder / f"{name}.json")
        others = [] if frozen is None else differences(frozen, found)
        same = frozen is not None and not others
        differing += not same
        verdict = f"{len(others)} of {len(found)} values" if others else f"{len(found)} values"
        word = "same" if same else "MISSING" if frozen is None else "DIFFERENT"
        print(f"{word:<11}{name}: {verdict}, {seconds:.1f} s", flush=True)
        for other in sorted(others, key=lambda other: other != "crash")[:5]:
            print(f"           {other}: {(frozen or {}).get(other)} -> {found.get(other)}")
    files = () if only else sorted(folder.glob("[!_]*.json"))
    gone = [file.stem for file in files if file.stem not in cases]
    for name in gone:
        print(f"GONE       {name}: frozen, and no case any more")
    print(f"{len(cases) - differing} of {len(cases)} cases are the same")
    if differing or gone:
        sys.exit(1)


def differences(before: Facts, after: Facts) -> list[str]:
    """What has another value, or is only in one of the two.

    Example:
        >>> differences({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "0", "d": "4"})
        ['b', 'c', 'd']
    """
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def machine() -> Facts:
    """What numbers depend on beside the code."""
    packages = ("jax", "jaxlib", "numpy", "scipy", "flax", "optax", "scikit-learn")
    versions = {name: importlib.metadata.version(name) for name in packages}
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    kind = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    processor = ", ".join(sorted(kind)) or platform.machine()
    return {"processor": processor, "python": platform.python_version(), **versions}


# ---- cases --------------------------------------------------------------------------------------


Case = Callable[[], Any]
"""Its result is anything that `facts` reads."""


def table() -> dict[str, Case]:
    """All cases by name, in order."""
    found: dict[str, Case] = {"methods": methods}
    for net in INSPECTED:
        found[f"inspect-{net}"] = functools.partial(inspected, net)
    for net in TASKS:
        of_net = ONLY_DENSE if net == "lenet300" else recipes.METHODS
        for method in of_net:
            found[f"{method}-{net}"] = functools.partial(pruned_by, method, net)
    return {**found, "demo": demo}


def chosen(only: tuple[str, ...]) -> dict[str, Case]:
    """The cases that patterns name; a pattern that names none ends the command."""
    found = table()
    for pattern in only:
        if not fnmatch.filter(found, pattern):
            sys.exit(f"no case is named {pattern!r}; {errors.nearest(pattern, found)}")
    named = lambda name: any(fnmatch.fnmatch(name, pattern) for pattern in only)
    return {name: case for name, case in found.items() if not only or named(name)}


def ran(of: Mapping[str, Case]) -> Iterator[tuple[str, Facts, float]]:
    """Every case with its facts and its seconds; one that crashes comes to the error's text."""
    for name, case in of.items():
        began = time.perf_counter()
        try:
            found = dict(facts(case()))
        except Exception as error:
            found = {"crash": f"{type(error).__name__}: {error}"}
        yield name, found, time.perf_counter() - began


def methods() -> dict[str, Any]:
    """The table of methods without their files, and the options that each takes."""
    rows = json.loads(said("methods", "--json"))
    return {
        "table": {row["name"]: {**row, "file": None} for row in rows},
        "options": {name: _texts(recipes.options(name)) for name in recipes.METHODS},
    }


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(kind) for name, kind in options.items()}


def inspected(net: str) -> dict[str, Any]:
    """A net for CIFAR-10, as the command line shows it and as it is slimmed under random masks."""
    model = zoo.build(net)
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    groups = jprune.trace(model.fn, shapes, model.example)
    rng = np.random.default_rng(0)
    drawn = lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype)
    masks = {}
    for name, size in groups.sizes.items():
        masks[name] = rng.permutation(size) >= min(round(0.4 * size), size - 1)
    return {
        "said": _placeless(json.loads(said("inspect", "--model", net, "--json"))),
        "groups": _placeless(
            {
                **groups._asdict(),
                "treedef": str(groups.treedef),
                "frozen": [entry._asdict() for entry in groups.frozen],
            }
        ),
        "cost": jprune.cost_model(model.fn, shapes, model.example, groups=groups)(masks),
        "slim": jprune.slim_params(groups, masks, jax.tree.map(drawn, shapes)),
    }


def _placeless(found: dict[str, Any]) -> dict[str, Any]:
    """Without the lines of code that frozen axes come from."""
    return {**found, "frozen": [{**entry, "source": None} for entry in found["frozen"]]}


def demo() -> dict[str, Any]:
    """The main job of `make demo`."""
    asked = "prune --model resnet8 --data digits --method taylor --macs 0.5 --seed 0 --json --quiet"
    with tempfile.TemporaryDirectory() as folder:
        result = json.loads(said(*asked.split(), "--out", folder))
        plan = json.loads((Path(folder) / "plan.json").read_text())
    return {"result": _without(result, ELSEWHERE), "plan": _placeless(plan)}


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: _without(part, keys) for name, part in value.items() if name not in keys}


def said(*words: str) -> str:
    """What the command line writes to standard output.

    Raises:
        RuntimeError: it ends with another code than 0; the message is what it complains of.
    """
    out, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaint):
        code = cli.main(words)
    if code:
        raise RuntimeError(f"exit code {code}: {complaint.getvalue()}")
    return out.getvalue()


# ---- methods ------------------------------------------------------------------------------------


class Bench(NamedTuple):
    """A net that methods are tried on; those of one net share it, and what was compiled for it."""

    task: Task
    fn: Callable[..., Any]
    """The task's, jitted."""
    groups: Groups
    images: np.ndarray
    """Of the test split."""


TASKS: dict[str, Callable[[], tuple[str, Data]]] = {
    "resnet8": lambda: ("resnet8", data.load("digits")),
    "lenet300": lambda: ("lenet300", data.load("digits")),
    "lenet5": lambda: ("lenet5", enlarged(data.load("digits"))),
}


@functools.lru_cache(maxsize=1)
def bench(name: str) -> Bench:
    """A net of `TASKS`."""
    jax.clear_caches()  # what was compiled for another net is of no use, and takes gigabytes
    net, images = TASKS[name]()
    height, width, channels = images.shape
    task = task_of(zoo.build(net, shape=(height, width, channels)), images)
    shapes = jax.eval_shape(task.init, jax.eval_shape(lambda: jax.random.key(0)))
    groups = jprune.trace(task.fn, shapes, task.example)
    shown = next(images.batches("test", 64))["image"]
    return Bench(task, jax.jit(train.Net(task).fn), groups, shown)


def enlarged(small: Data) -> Data:
    """Images of twice the height and width: LeNet-5 does not take those of digits as they are."""

    def batches(*args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        for batch in small.batches(*args, **options):
            yield {**batch, "image": batch["image"].repeat(2, axis=1).repeat(2, axis=2)}

    height, width, channels = small.shape
    return small._replace(shape=(2 * height, 2 * width, channels), batches=batches)


def pruned_by(method: str, net: str) -> dict[str, Any]:
    """What a method makes of a net, under the first budget that it takes."""
    on = bench(net)
    key = jax.random.key(0)
    refused: dict[str, str] = {}
    for budget in BUDGETS:
        name = f"{budget.kind}={budget.value}"
        try:
            recipe = recipe_of(method, budget)
            done, records = recipes.run(recipe, Pruned(on.task.init(key), None), on.task, key)
        except errors.JpruneError as error:
            refused[name] = f"{type(error).__name__}: {error}"
            continue
        stages = [getattr(stage, "name", "") for stage in recipe]
        return {
            "refused": refused,
            "budget": name,
            "stages": stages,
            "records": records,
            **state(on, done),
        }
    return {"refused": refused}


def recipe_of(method: str, budget: Budget) -> Any:
    """A method's recipe, two steps a training, from the dense net on."""
    factory = recipes.find(method)
    finetune = dataclasses.replace(TRAIN, name="finetune")
    finetuned = "finetune" in inspect.signature(factory).parameters
    return factory(budget, TRAIN, *((finetune,) if finetuned else ()), **OPTIONS.get(method, {}))


def state(on: Bench, done: Pruned) -> dict[str, Any]:
    """All of a pruned net, and what it computes."""
    found = {
        **done._asdict(),
        "widths": {name: int(np.sum(mask)) for name, mask in alive(on.groups, done).items()},
        "masked": on.fn(done.variables, on.images),
    }
    if not _of_units(on.groups, done.masks):
        return found
    small = jprune.slim_params(on.groups, done.masks, done.variables)
    slim = jax.jit(jprune.slim(train.Net(on.task).fn, on.groups, done.masks))
    return {**found, "small": small, "slim": slim(small, on.images)}


def _of_units(groups: Groups, masks: Any) -> bool:
    known = {*groups.names, *(branch.name for branch in groups.branches)}
    return isinstance(masks, Mapping) and {*masks} <= known


def alive(groups: Groups, done: Pruned) -> dict[str, Any]:
    """Masks of units; where single weights are masked, a unit lives that has one left."""
    if done.masks is None or _of_units(groups, done.masks):
        return done.masks or {}
    whole = lambda mask, value: (
        np.ones(np.shape(value)) if mask is None else np.asarray(mask, float)
    )
    ones = jax.tree.map(whole, done.masks, done.variables, is_leaf=lambda leaf: leaf is None)
    return jprune.to_units(groups, ones, within="max", across="max")


# ---- values as text -----------------------------------------------------------------------------


def facts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Everything in a value, one by one, with its path.

    Example:
        >>> dict(facts({"a": [1, 0.5], "b": {}, "c": np.zeros(2, bool)}))["a/1"]
        '0.5'
    """
    at = f"{path}/" if path else ""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from facts(part, f"{at}{name}")
    elif isinstance(value, list | tuple) and value:
        for number, part in enumerate(value):
            yield from facts(part, f"{at}{number}")
    elif isinstance(value, float):
        yield path, repr(float(value))
    elif value is None or isinstance(value, bool | int | str | Mapping | list | tuple):
        yield path, repr(value)
    elif isinstance(value, jax.ShapeDtypeStruct):
        yield path, f"{value.shape} {value.dtype}"
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        yield path, hashed(value)
    else:  # a kernel in another form
        yield from facts(jax.tree.leaves(value), path)
        yield from facts(value.dense(), f"{at}dense")


def hashed(array: Any) -> str:
    """SHA-256 of an array's bytes, its shape and its type."""
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    held = np.asarray(array)
    return f"{hashlib.sha256(held.tobytes()).hexdigest()} {held.shape} {held.dtype}"


def _text(found: Facts) -> str:
    return json.dumps(found, indent=1) + "\n"


def _read(file: Path) -> Facts | None:
    return json.loads(file.read_text()) if file.exists() else None


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"write": write, "compare": compare})
