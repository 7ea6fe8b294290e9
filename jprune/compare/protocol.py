"""What makes a comparison fair, and what one that is not is labelled with.

The validation split chooses, the test split is read once; at least three seeds, the same for all;
the same fine-tuning for all; beside the method always the dense net, random, L1, and the small net
trained from scratch for as many epochs (`scratch_e`) and as many MACs (`scratch_b`) as the dense
one; one version of everything, one device, one commit; budgets that are met.

References:
    Scratch-E and Scratch-B: Liu, Sun, Zhou, Huang, Darrell, Rethinking the value of network
    pruning, 2019, arXiv 1810.05270 [49]. Random: Mittal et al., 2018, arXiv 1801.10447 [47]. Why
    there is a protocol: Blalock, Gonzalez Ortiz, Frankle, Guttag, What is the state of neural
    network pruning?, 2020, arXiv 2003.03033.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from jprune.compare import beside as stands
from jprune.compare.rows import Row, Runs
from jprune.compare.steps import ROUNDED
from jprune.compare.words import budget_text, counted, device_text, some
from jprune.report import text

SEEDS = 3
"""The fewest seeds of a fair comparison."""
MISSED = 0.05
"""The largest relative difference between requested and achieved budget."""
BASELINES = ("dense", "random", "l1", "scratch_e", "scratch_b")
SCRATCH = ("scratch_e", "scratch_b")
"""Baselines without fine-tuning: the length of their training is what defines them."""


class Breach(NamedTuple):
    """A rule that a comparison breaks.

    Attributes:
        rule: its name, a key of `RULES`.
        says: whose rows break it, and how.
    """

    rule: str
    says: str


def breaches(runs: Runs, beside: Sequence[Row] = ()) -> list[Breach]:
    """All rules that a comparison breaks.

    Args:
        runs: of one task, from `rows.arms`.
        beside: rows that stand beside its methods, from `beside.apart_from`.

    Example:
        >>> breaches({})[0]
        Breach(rule='baselines', says='baselines missing: dense, random, l1, scratch_e, scratch_b')
    """
    broken_by = [(rule, says) for rule, broken in RULES.items() for says in broken(runs)]
    return [Breach(*each) for each in (*broken_by, *_own_steps(runs, beside))]


def notes(runs: Runs) -> list[str]:
    """Remarks that a reader needs, about settings that break no rule."""
    if not any((row["settings"] or {}).get("weights") for row in _rows(runs)):
        return []
    return [
        "The dense net was loaded and may have seen the validation images: settings were fixed "
        "beforehand, nothing was chosen on them."
    ]


def _pruned(runs: Runs) -> Runs:
    return {arm: seeds for arm, seeds in runs.items() if arm.budget is not None}


def _rows(runs: Runs) -> list[Row]:
    return [row for seeds in runs.values() for row in seeds.values()]


def _baselines(runs: Runs) -> list[str]:
    """The dense net must be there, and every other baseline at every budget."""
    budgets = list(dict.fromkeys(arm.budget for arm in _pruned(runs)))
    # The first word: settings may stand behind the name.
    present = {(arm.method.split()[0], arm.budget) for arm in runs}
    nowhere = [] if ("dense", None) in present else ["dense"]
    nowhere += [
        name for name in BASELINES[1:] if all((name, budget) not in present for budget in budgets)
    ]
    sentences = [f"baselines missing: {', '.join(nowhere)}"] if nowhere else []
    for budget in budgets:
        absent = [name for name in BASELINES[1:] if (name, budget) not in present]
        # What is missing at every budget was said above, once.
        absent = [name for name in absent if name not in nowhere]
        if absent and budget is not None:
            sentences.append(f"baselines missing at {budget_text(budget)}: {', '.join(absent)}")
    return sentences


def _seeds(runs: Runs) -> list[str]:
    """At least three seeds, the same for all methods, so that they can be compared seed by seed."""
    pruned = _pruned(runs)
    sentences = []
    # A dict with None as a set that keeps its order.
    few = {
        f"{arm.method} {len(seeds)}": None for arm, seeds in pruned.items() if len(seeds) < SEEDS
    }
    if few:
        sentences.append(f"fewer than {SEEDS} seeds: {some(few)}")
    # The union, not the intersection: a method without a seed that another has is the one to be
    # named.
    every = set[int]().union(*pruned.values())
    lacking = {arm.method: None for arm, seeds in pruned.items() if set(seeds) != every}
    if lacking:
        sentences.append(f"not the same seeds for all: some are missing for {some(lacking)}")
    return sentences


def _finetuning(runs: Runs) -> list[str]:
    """Equal epochs and learning rates for all methods, up to the rounding of steps."""
    methods: dict[tuple[float | None, float, int | None], list[str]] = {}
    for arm, seeds in _pruned(runs).items():
        settled = [row["finetune"] for row in seeds.values() if row["finetune"] is not None]
        for each in settled if arm.method.split()[0] not in SCRATCH else ():
            # Learning rates come from JSON, so equal settings are equal numbers.
            key = each["epochs"], each["learning_rate"], each["steps"]
            methods.setdefault(key, []).append(arm.method)
    epochs, rates, steps = zip(*methods) if methods else ((), (), ())
    if len(set(rates)) <= 1 and _alike(steps) and _alike(epochs):
        return []
    # Steps are what every row has counted; older rows have the epochs that were set, which are said
    # where nothing else differs.
    by_epochs = _alike(steps) and not _alike(epochs)
    each = [
        f"{some(dict.fromkeys(names))} {_length(number, of if by_epochs else None)} at {rate:g}"
        for (of, rate, number), names in methods.items()
    ]
    return [f"unequal fine-tuning: {some(each, '; ')}"]


def _own_steps(runs: Runs, beside: Sequence[Row]) -> list[tuple[str, str]]:
    """L1 and random stand beside each method at its own steps after the cut."""
    return [
        (
            "own_steps",
            f"no {name} at as many steps after the cut as {some(methods)} "
            + ("has" if len(methods) == 1 else "have"),
        )
        for name, methods in stands.lacking(runs, beside).items()
    ]


def _alike(lengths: Iterable[float | None]) -> bool:
    """Whether lengths differ by rounding alone; those that were not measured do not count."""
    numbers = [length for length in lengths if length is not None]
    # max <= (1 + 2 %) min: several rounds divide the epochs, and each rounds to whole steps.
    return not numbers or max(numbers) <= (1 + ROUNDED) * min(numbers)


def _length(steps: int | None, epochs: float | None) -> str:
    said = text.NOT_MEASURED if steps is None else counted(steps, "step")
    return said if epochs is None else f"{said} ({epochs:g} epochs)"


def _dense(runs: Runs) -> list[str]:
    """All methods of one seed must begin with the same dense net."""
    accuracies: dict[int, set[float]] = {}
    for row in _rows(_pruned(runs)):
        accuracy = (row["dense"] or {}).get("accuracy")
        if accuracy is not None:
            # The test accuracy is a fingerprint of the dense net: other weights hardly ever give
            # the same one.
            accuracies.setdefault(row["seed"], set()).add(accuracy)
    differing = [str(seed) for seed, values in sorted(accuracies.items()) if len(values) > 1]
    return [f"not one dense net for all methods: seeds {some(differing)}"] if differing else []


def _budgets(runs: Runs) -> list[str]:
    missed = []
    for arm, seeds in _pruned(runs).items():
        kind, asked = arm.budget or ("", 1.0)
        achieved = [(row["achieved"] or {}).get(kind) for row in seeds.values()]
        measured = [value for value in achieved if value is not None]
        # |achieved / requested - 1| of every seed: in a mean, one seed hides another. What is said
        # is the mean, as in the tables.
        off = sum(abs(value / asked - 1) > MISSED for value in measured)
        if off:
            mean = text.percent(statistics.fmean(measured))
            where = f" on average, missed in {off} of {counted(len(measured), 'seed')}"
            said = where if len(measured) > 1 else ""
            missed.append(f"{arm.method} keeps {mean} for {text.percent(asked)}{said}")
    if not missed:
        return []
    return [f"budgets missed by more than {100 * MISSED:g} %: {some(missed, '; ')}"]


def _versions(runs: Runs) -> list[str]:
    by_name: dict[str, set[str]] = {}
    for row in _rows(runs):
        for name, version in row["versions"].items():
            by_name.setdefault(name, set()).add(str(version))
    mixed = [
        f"{name} {' and '.join(sorted(versions))}"
        for name, versions in sorted(by_name.items())
        if len(versions) > 1
    ]
    return [f"mixed versions: {some(mixed)}"] if mixed else []


def _devices(runs: Runs) -> list[str]:
    kinds = sorted({device_text(row["device"]) for row in _rows(runs)})
    return [f"mixed devices: {some(kinds)}"] if len(kinds) > 1 else []


def _commits(runs: Runs) -> list[str]:
    if all(row.get("code") for row in _rows(runs)):
        return _sources(runs)
    # Seven digits, as git shortens them.
    commits = sorted({(row["commit"] or "none")[:7] for row in _rows(runs)})
    return [f"mixed commits: {some(commits)}"] if len(commits) > 1 else []


def _sources(runs: Runs) -> list[str]:
    """Rows that say of what source they are: of one, whatever else the commits have changed."""
    around = {row["code"]["shared"] for row in _rows(runs)}
    mixed = [
        arm.method
        for arm, seeds in _pruned(runs).items()
        if len({row["code"]["method"] for row in seeds.values()}) > 1
    ]
    said = [f"mixed sources of the job: {some(sorted(around))}"] if len(around) > 1 else []
    return [*said, *([f"mixed sources of {some(mixed)}"] if mixed else [])]


RULES: dict[str, Callable[[Runs], list[str]]] = {
    "baselines": _baselines,
    "seeds": _seeds,
    "finetuning": _finetuning,
    "dense": _dense,
    "budgets": _budgets,
    "versions": _versions,
    "devices": _devices,
    "commits": _commits,
}
"""{rule: function that returns a sentence per breach}; `own_steps` asks what stands beside."""
