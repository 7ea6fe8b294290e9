"""All classifiers of keras.applications through the engine: `make zoos`.

    python -m experiments.zoos [--nets NAME ...]

Every net runs in a process of its own. It is traced, a random 40 % of the units of every group are
masked, and the masked net must equal the slim one. As a control, two kept units of one slim array
are exchanged: this must be noticed. One row per net goes to
`results/engine/keras_zoo.jsonl`, the table made from all rows beside it.
"""

import collections
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jprune
from experiments import rows
from experiments.keras_nets import QUICK, KerasNet, build, draw, names
from jprune.jaxprs import program_of

OUT = rows.RESULTS / "engine" / "keras_zoo.jsonl"
BOUND = 1e-4
"""Of max|logit|: the largest difference of masked and slim net, the smallest of the control."""
PAIRS = 3
UNITS = {
    "ResNet50": 11_456,
    "DenseNet121": 10_240,
    "NASNetMobile": 11_956,
    "InceptionResNetV2": 30_272,
    "EfficientNetB0": 11_404,
    "InceptionV3": 17_216,
    "VGG16": 12_416,
}
"""Units that a prototype of the engine found: at least so many must be found."""


def main(nets: tuple[str, ...] = (), side: int = 96, seed: int = 0, out: Path = OUT) -> None:
    """Puts classifiers through the engine, adds a row for each, and makes the table anew.

    Args:
        nets: names of functions in keras.applications; all classifiers if none is named.
        side: height and width of the images; nets that need more get their smallest.
        seed: of weights, inputs and masks.
        out: file of the rows.
    """
    found = []
    for name in nets or names():
        found.append(in_its_own_process(measured, name, side, seed))
        print(one_line(found[-1]), flush=True)
        rows.append(out, found[-1])
    rows.write(out.with_suffix(".md"), table(rows.read(out)))
    failed = [row["net"] for row in found if not row["passed"]]
    if failed:
        sys.exit(f"these nets do not pass: {', '.join(failed)}")


def in_its_own_process(function: Callable[..., rows.Row], name: str, *args: Any) -> rows.Row:
    """Runs `function(name, *args)` elsewhere; whatever goes wrong there becomes a row."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(function, name, *args).result()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            return {"net": name, "passed": False, "error": said, **rows.provenance("keras")}


def measured(name: str, side: int, seed: int) -> rows.Row:
    """One net, traced, slimmed and compared."""
    net = build(name, side)
    groups, seconds = timed_trace(net)
    units = sum(groups.sizes.values())
    masks = random_masks(groups, seed)
    error, control = law(net, groups, masks, seed)
    passed = error <= BOUND < control and units >= UNITS.get(name, 1)
    return {
        "net": name,
        "passed": bool(passed),
        "equations": len(program_of(net.fn, net.shapes, net.example)[0].equations),
        "trace_s": seconds,
        "groups": len(groups.sizes),
        "units": units,
        "units_at_least": UNITS.get(name),
        "masked": sum(int((~mask).sum()) for mask in masks.values()),
        "frozen": frozen(groups),
        "law_max_rel_err": error,
        "control_max_rel_err": control,
        "side": net.example.shape[1],
        "seed": seed,
        **rows.provenance("keras"),
    }


def timed_trace(net: KerasNet) -> tuple[jprune.Groups, dict[str, float]]:
    """The groups, and the seconds that the net's own Python took apart from ours."""
    library = 0.0

    def fn(variables: Any, x: Any) -> Any:
        nonlocal library
        start = time.perf_counter()
        result = net.fn(variables, x)
        library += time.perf_counter() - start
        return result

    start = time.perf_counter()
    groups = jprune.trace(fn, net.shapes, net.example)
    total = time.perf_counter() - start
    return groups, {"ours": total - library, "library": library}


def random_masks(groups: jprune.Groups, seed: int, masked: float = 0.4) -> dict[str, np.ndarray]:
    """A random fraction of the units of every group masked, at least one unit kept."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name, size in groups.sizes.items():
        masks[name] = rng.permutation(size) >= min(round(masked * size), size - 1)
    return masks


def law(
    net: KerasNet, groups: jprune.Groups, masks: dict[str, np.ndarray], seed: int
) -> tuple[float, float]:
    """Differences from the masked net, over max|logit|: of the slim net, and of the control.

    The control exchanges two kept units in the first, the middle or the last group, whichever makes
    the smallest difference; of a group the best of three pairs, since units of a ReLU may be dead.
    """
    masked = lambda v: jprune.apply_masks(v, jprune.expand(groups, masks, roles=("in",)))
    variables, x = draw(net, seed, masked)
    masked_fn = lambda variables, x: net.fn(masked(variables), x)
    expected = jax.jit(masked_fn, compiler_options=QUICK)(variables, x)
    slim_fn = jax.jit(jprune.slim(net.fn, groups, masks), compiler_options=QUICK)
    small = jprune.slim_params(groups, masks, variables)
    difference = lambda values: float(
        jnp.abs(slim_fn(values, x) - expected).max() / jnp.abs(expected).max()
    )
    wide = [name for name in groups.names if masks[name].sum() >= 2 * PAIRS]
    chosen = {wide[0], wide[len(wide) // 2], wide[-1]}
    control = min(
        max(difference(exchanged(groups, small, name, pair)) for pair in range(PAIRS))
        for name in chosen
    )
    return difference(small), control


def exchanged(groups: jprune.Groups, small: Any, name: str, pair: int) -> Any:
    """Slim variables with two channels of one kernel exchanged, equally far from its ends."""
    place = next(place for place in groups.places[name] if "kernel" in place.roles)
    part, path = place.leaf.split("/", 1)
    array = small[part][path]
    order = np.arange(array.shape[place.axis])
    order[[pair, -1 - pair]] = order[[-1 - pair, pair]]
    return {**small, part: {**small[part], path: np.take(array, order, place.axis)}}


def frozen(groups: jprune.Groups) -> list[dict[str, Any]]:
    """Reasons why axes are frozen, with the number of places and positions, most places first."""
    places, positions = collections.Counter(), collections.Counter()
    for entry in groups.frozen:
        places[entry.reason, entry.primitive] += 1
        positions[entry.reason, entry.primitive] += entry.positions
    return [
        {"reason": key[0], "primitive": key[1], "places": count, "positions": positions[key]}
        for key, count in places.most_common()
    ]


def one_line(row: rows.Row) -> str:
    """What to show while the others run."""
    if "error" in row:
        return f"{row['net']}: {row['error']}"
    return (
        f"{row['net']}: {'pass' if row['passed'] else 'FAIL'}, {row['units']} units in "
        f"{row['groups']} groups, ours {row['trace_s']['ours']:.2f} s, law "
        f"{row['law_max_rel_err']:.1e}, control {row['control_max_rel_err']:.1e}"
    )


def table(kept: list[rows.Row]) -> str:
    """The newest row of every net as Markdown, by name."""
    titles = ("net", "passes", "equations:", "ours [s]:", "library [s]:", "groups:", "units:")
    titles += ("law error:", "control:", "frozen, at how many places, and why")
    lines = [
        (
            row["net"],
            "yes" if row["passed"] else "NO",
            row["equations"],
            f"{row['trace_s']['ours']:.2f}",
            f"{row['trace_s']['library']:.2f}",
            row["groups"],
            row["units"],
            f"{row['law_max_rel_err']:.0e}",
            f"{row['control_max_rel_err']:.0e}",
            "; ".join(f"{entry['places']} {entry['reason']}" for entry in row["frozen"]),
        )
        for row in sorted(rows.newest(kept, "net"), key=lambda row: row["net"])
        if "error" not in row
    ]
    return rows.markdown(titles, lines)


if __name__ == "__main__":
    tyro.cli(main)
